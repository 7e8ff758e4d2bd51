"""Reads the text of a compiled XLA program: computations, instructions, shapes, trip counts."""

import functools
import math
import re
from dataclasses import dataclass, field

BYTES = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "s32": 4, "u32": 4,
    "s64": 8, "u64": 8, "f16": 2, "bf16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16,
    "f8e4m3fn": 1, "f8e5m2": 1, "f8e4m3": 1, "f8e4m3b11fnuz": 1, "f8e8m0fnu": 1, "f4e2m1fn": 0.5,
}  # fmt: skip
SHAPE = re.compile(r"\b(" + "|".join(BYTES) + r")\[([0-9,]*)\](\{[^}]*\})?")
HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*-> .*\{$")
INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*)")
OPERATION = re.compile(r"\s*([a-z][a-z0-9\-]*)\(")
CALLED = re.compile(
    r"\b(calls|to_apply|body|condition|branch_computations|true_computation|false_computation)"
    r"=\{?((?:%[\w.\-]+(?:, ?)?)+)"
)
ON_CHIP = re.compile(r"S\(\d+\)")
KNOWN_TRIPS = re.compile(r'"known_trip_count":\{"n":"?(\d+)')


@dataclass(frozen=True)
class Shape:
    """One array of an instruction's type."""

    dtype: str
    dims: tuple[int, ...]
    on_chip: bool
    """kept in a memory of the core, not in HBM"""

    @property
    def bytes(self) -> float:
        return BYTES[self.dtype] * math.prod(self.dims)


@dataclass
class Instruction:
    name: str
    op: str
    type_text: str
    argument_text: str
    attributes: str
    is_root: bool

    @functools.cached_property
    def shapes(self) -> list[Shape]:
        """The array of the result, or those of a tuple."""
        return [
            Shape(dtype, tuple(int(n) for n in dims.split(",") if n), bool(ON_CHIP.search(layout)))
            for dtype, dims, layout in SHAPE.findall(self.type_text)
        ]

    @functools.cached_property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.argument_text)

    @functools.cached_property
    def called(self) -> dict[str, list[str]]:
        """Computations by the role that they have (`body`, `calls`, ...)."""
        found = CALLED.findall(self.attributes)
        return {role: re.findall(r"%([\w.\-]+)", names) for role, names in found}

    @property
    def bytes(self) -> float:
        return sum(shape.bytes for shape in self.shapes)


@dataclass
class Computation:
    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)

    @functools.cached_property
    def root(self) -> Instruction:
        return next(i for i in self.instructions.values() if i.is_root)

    def operand(self, instruction: Instruction, position: int) -> Instruction | None:
        """The instruction of this computation that gives operand number `position`."""
        if position >= len(instruction.operands):
            return None
        return self.instructions.get(instruction.operands[position])

    def constant(self, name: str) -> int | None:
        """The integer that `name` is, seen through copies; None where it is none."""
        found = self.instructions.get(name)
        while found is not None and found.op in ("copy", "convert", "bitcast", "reshape"):
            found = self.operand(found, 0)
        if found is None or found.op != "constant":
            return None
        return int(found.argument_text) if re.fullmatch(r"-?\d+", found.argument_text) else None


@dataclass
class Program:
    computations: dict[str, Computation]
    entry: str


def parse(text: str) -> Program:
    """The program that `compiled.as_text()` describes.

    Raises:
        ValueError: the text has no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if line[:1] not in (" ", "\t"):
            header = HEADER.match(line)
            current = None
            if header:
                current = computations[header[2]] = Computation(header[2])
                entry = header[2] if header[1] else entry
        elif current is not None and (found := INSTRUCTION.match(line)):
            instruction = _instruction(found[2], found[3], bool(found[1]))
            if instruction is not None:
                current.instructions[found[2]] = instruction
    if not entry:
        raise ValueError("the text has no entry computation; give compiled.as_text()")
    return Program(computations, entry)


def _instruction(name: str, text: str, is_root: bool) -> Instruction | None:
    cut = _matching(text, 0) + 1 if text.startswith("(") else text.find(" ")
    operation = OPERATION.match(text, cut)
    if not operation:
        return None
    end = _matching(text, operation.end() - 1)
    arguments = text[operation.end() : end]
    return Instruction(name, operation[1], text[:cut], arguments, text[end + 1 :], is_root)


def _matching(text: str, start: int) -> int:
    """Index of the parenthesis that closes the one at `start`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    return len(text)


def trip_count(program: Program, loop: Instruction, caller: Computation) -> int | None:
    """How often the body of a `while` runs; None where its condition does not say.

    The CPU and GPU compilers annotate it. The TPU compiler does not, so that it is read from the
    condition `index < bound`, the index's first value and what the body adds to it.
    """
    if known := KNOWN_TRIPS.search(loop.attributes):
        return int(known[1])
    compared = _compared(program, loop)
    if compared is None:
        return None
    condition = program.computations[loop.called["condition"][0]]
    body = program.computations[loop.called["body"][0]]
    bound, index = condition.constant(compared[1].name), _tuple_index(compared[0])
    if bound is None or index is None:
        return None
    start = _first_value(loop, caller, index)
    return max(0, -(-(bound - start) // _increment(body, index)))


def is_bounded_by_data(program: Program, loop: Instruction) -> bool:
    """Whether the loop's bound is a value that the program computes, as in `i < rounds`."""
    compared = _compared(program, loop)
    return compared is not None and _tuple_index(compared[1]) is not None


def _compared(program: Program, loop: Instruction) -> tuple[Instruction, Instruction] | None:
    """(index, bound) of the condition `index < bound`; None where it is another."""
    condition = program.computations[loop.called["condition"][0]]
    compare, names = condition.root, condition.root.operands
    if compare.op == "fusion":
        inner = program.computations[compare.called["calls"][0]]
        compare = inner.root
        sources = [inner.operand(compare, position) for position in range(2)]
        if any(source is None or source.op != "parameter" for source in sources):
            return None
        names = [names[int(source.argument_text)] for source in sources]
    if compare.op != "compare" or "direction=LT" not in compare.attributes:
        return None
    index, bound = (condition.instructions.get(name) for name in names)
    return None if index is None or bound is None else (index, bound)


def _tuple_index(instruction: Instruction | None) -> int | None:
    if instruction is None or instruction.op != "get-tuple-element":
        return None
    return int(re.search(r"index=(\d+)", instruction.attributes)[1])


def _first_value(loop: Instruction, caller: Computation, index: int) -> int:
    """0 where the compiler hides it: JAX's loops start there."""
    initial = caller.operand(loop, 0)
    if initial is None or initial.op != "tuple":
        return 0
    return caller.constant(initial.operands[index]) or 0


def _increment(body: Computation, index: int) -> int:
    root = body.root
    after = body.operand(root, index) if root.op == "tuple" else None
    if after is None or after.op != "add":
        return 1
    steps = [body.constant(name) for name in after.operands]
    return next((step for step in steps if step), 1)
