"""What one run of a compiled program does, counted from its text with loop trip counts.

XLA's own `cost_analysis()` counts the body of a loop once, so that it is far too small for a model
whose layers are scanned; nothing here uses it.
"""

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from functools import cache

from jgpt.planning import collectives
from jgpt.planning.hlo import (
    Computation,
    Instruction,
    Program,
    is_bounded_by_data,
    trip_count,
)
from jgpt.planning.products import product_flops

DECLARED = re.compile(r'"cost_estimate":(\{[^}]*\})')
FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional",
    "call", "after-all", "partition-id", "replica-id", "opt-barrier", "iota", "async-start",
    "async-update",
}  # fmt: skip
"""Operations that move no bytes of their own."""


@dataclass
class Counts:
    """Sums over executions; per device."""

    matmul_flops: float = 0.0
    """of XLA's own products"""
    pallas_flops: float = 0.0
    """of Pallas calls, as far as they declare them"""
    pallas_flops_by_kernel: Counter = field(default_factory=Counter)
    """the same, by kernel"""
    pallas_calls: Counter = field(default_factory=Counter)
    """executions by kernel"""
    undeclared_calls: int = 0
    """executions of Pallas calls without an estimate"""
    collectives: Counter = field(default_factory=Counter)
    """executions by kind"""
    wire_bytes: Counter = field(default_factory=Counter)
    """sent, by kind"""
    wire_bytes_by_group: Counter = field(default_factory=Counter)
    """sent, by number of chips in the group"""
    hbm_bytes: float = 0.0
    """read and written, estimated: operands and results of what is not fused"""
    data_loops: int = 0
    """loops that run as often as the data asks, such as further rounds for uneven loads of experts;
    not counted"""
    unknown_loops: int = 0
    """loops whose trip count could not be read; counted once"""

    def as_dict(self) -> dict:
        """Plain data, for JSON."""
        values = ((name, getattr(self, name)) for name in self.__dataclass_fields__)
        return {name: dict(v) if isinstance(v, Counter) else v for name, v in values}

    def add(self, other: "Counts", times: int = 1) -> None:
        for name in self.__dataclass_fields__:
            mine, theirs = getattr(self, name), getattr(other, name)
            if isinstance(mine, Counter):
                for key, value in theirs.items():
                    mine[key] += times * value
            else:
                setattr(self, name, mine + times * theirs)


def count(program: Program) -> Counts:
    """Counts of one run of the program's entry; of a conditional the costliest branch."""

    @cache
    def of(name: str, fused: bool) -> Counts:
        computation, total = program.computations[name], Counts()
        for instruction in computation.instructions.values():
            total.add(_own(instruction, computation, program, fused))
            _add_called(total, instruction, computation, fused)
        return total

    def _add_called(
        total: Counts, instruction: Instruction, computation: Computation, fused: bool
    ) -> None:
        called = instruction.called
        if instruction.op == "while":
            trips = trip_count(program, instruction, computation)
            if trips is None and is_bounded_by_data(program, instruction):
                total.data_loops += 1
                return
            total.unknown_loops += trips is None
            for role in ("body", "condition"):
                total.add(of(called[role][0], fused), 1 if trips is None else trips)
        elif instruction.op == "conditional":
            branches = [of(name, fused) for names in called.values() for name in names]
            total.add(max(branches, key=lambda c: (c.matmul_flops + c.pallas_flops, c.hbm_bytes)))
        elif instruction.op == "call":
            total.add(of(called["to_apply"][0], fused))
        elif "calls" in called:
            inside = fused or instruction.op == "fusion"
            total.add(of(called["calls"][0], inside))

    return of(program.entry, False)


def _own(
    instruction: Instruction, computation: Computation, program: Program, fused: bool
) -> Counts:
    """What the instruction does by itself, without the computations that it calls."""
    own = Counts()
    if instruction.op in ("dot", "convolution"):
        own.matmul_flops = product_flops(instruction, computation)
    elif instruction.op == "custom-call" and '"tpu_custom_call"' in instruction.attributes:
        _add_pallas(own, instruction)
    elif (kind := collectives.kind_of(instruction, computation)) and not (
        fused and collectives.repeats(instruction, computation)
    ):
        sent = collectives.wire_bytes(kind, instruction, computation)
        own.collectives[kind] = 1
        own.wire_bytes[kind] = sent
        own.wire_bytes_by_group[collectives.group_size(instruction.attributes)] = sent
    if not fused:
        own.hbm_bytes = _hbm_bytes(instruction, computation, program)
    return own


def _add_pallas(own: Counts, call: Instruction) -> None:
    """Mosaic kernels are opaque: what they declare (`pl.CostEstimate`) counts, and says so."""
    kernel = re.sub(r"[.\d]+(refs_.*)?$", "", call.name)
    own.pallas_calls[kernel] = 1
    declared = DECLARED.search(call.attributes)
    if declared is None:
        own.undeclared_calls = 1
        return
    own.pallas_flops = float(json.loads(declared[1]).get("flops", 0))
    own.pallas_flops_by_kernel[kernel] = own.pallas_flops


def _hbm_bytes(instruction: Instruction, computation: Computation, program: Program) -> float:
    if instruction.op in FREE or instruction.op.endswith("-done"):
        return 0.0
    if instruction.op == "fusion":
        return _fusion_bytes(instruction, computation, program)
    written = _in_hbm(instruction)
    if instruction.op in ("dynamic-slice", "gather", "slice"):
        return 2 * written
    if instruction.op == "dynamic-update-slice":
        update = computation.operand(instruction, 1)
        return 2 * _in_hbm(update) if update else 0.0
    if instruction.op.endswith("-start"):
        return written
    read = [computation.instructions.get(name) for name in instruction.operands]
    return written + sum(_in_hbm(operand) for operand in read if operand is not None)


def _in_hbm(instruction: Instruction) -> float:
    return sum(shape.bytes for shape in instruction.shapes if not shape.on_chip)


def _fusion_bytes(fusion: Instruction, computation: Computation, program: Program) -> float:
    """Operands and results, where only a slice is read or written that slice."""
    body = program.computations[fusion.called["calls"][0]]
    read = sum(
        _bytes_read(program, body, position, _in_hbm(operand))
        for position, name in enumerate(fusion.operands)
        if (operand := computation.instructions.get(name)) is not None
    )
    updates = _updates(program, body)
    replaced = sum(update.bytes for update, _ in updates)
    parts = sum(part.bytes for _, part in updates if part is not None)
    written = _in_hbm(fusion)
    return read + max(0.0, written - replaced) + min(written, parts)


def _bytes_read(program: Program, body: Computation, number: int, whole: float) -> float:
    """Of parameter `number` of a fusion's body, which is `whole` bytes; fusions may be nested."""
    name = next(
        i.name
        for i in body.instructions.values()
        if i.op == "parameter" and int(i.argument_text) == number
    )
    read = None
    for use in body.instructions.values():
        if _is_view(use):
            continue
        for position, operand in enumerate(use.operands):
            if _source(body, operand) == name:
                read = (read or 0.0) + _bytes_used(program, use, position, whole)
    return whole if read is None else min(whole, read)


def _bytes_used(program: Program, use: Instruction, position: int, whole: float) -> float:
    """Of an operand of `whole` bytes that `use` takes as its operand number `position`."""
    if use.op == "fusion":
        return _bytes_read(program, program.computations[use.called["calls"][0]], position, whole)
    if position == 0 and use.op in ("dynamic-slice", "gather", "slice"):
        return use.bytes
    if position == 0 and use.op == "dynamic-update-slice":
        return 0.0  # written in place
    return whole


def _updates(program: Program, body: Computation) -> list[tuple[Instruction, Instruction | None]]:
    """What a fusion's body writes in place, and the part of each that is written."""
    found = []
    for instruction in body.instructions.values():
        if instruction.op == "dynamic-update-slice":
            found.append((instruction, body.operand(instruction, 1)))
        elif instruction.op == "fusion":
            found += _updates(program, program.computations[instruction.called["calls"][0]])
    return found


VIEWS = {"bitcast", "copy", "reshape"}
"""Operations that hand their operand on."""
ALIASED = "output_to_operand_aliasing={{}: (0, {})}"
"""Of a fusion in a fusion: the same bytes, read in tiles of another size."""


def _is_view(instruction: Instruction) -> bool:
    aliased = instruction.op == "fusion" and ALIASED in instruction.attributes
    return instruction.op in VIEWS or aliased


def _source(body: Computation, name: str) -> str:
    while (found := body.instructions.get(name)) is not None and _is_view(found):
        name = found.operands[0]
    return name
