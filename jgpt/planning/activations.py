"""Memory that the layers' loop keeps for the backward pass, found in the compiled program."""

from jgpt.planning.counts import VIEWS
from jgpt.planning.hlo import Computation, Instruction, Program, trip_count


def saved_bytes(program: Program) -> float | None:
    """Bytes on one device that a loop stacks up, one row per trip, and a later loop only reads.

    That is how activations travel from the forward loop over layers to the backward one. None where
    no loop does so: layers that are not scanned keep theirs as buffers like any other.
    """
    total = 0.0
    for computation in program.computations.values():
        loops = [i for i in computation.instructions.values() if i.op == "while"]
        if len(loops) > 1:
            total += _between(program, computation, loops)
    return total or None


def _between(program: Program, computation: Computation, loops: list[Instruction]) -> float:
    read = {
        origin
        for loop in loops
        for position in _kept(program, loop)
        if (origin := _origin(computation, loop, position)) is not None
    }
    total = 0.0
    for loop in loops:
        trips = trip_count(program, loop, computation)
        kept = _kept(program, loop)
        for position, shape in enumerate(loop.shapes):
            stacked = len(shape.dims) > 1 and shape.dims[0] == trips
            if stacked and position not in kept and (loop.name, position) in read:
                total += shape.bytes
    return total


def _kept(program: Program, loop: Instruction) -> set[int]:
    """Elements of the loop's state that its body hands on as they came."""
    body = program.computations[loop.called["body"][0]]
    if body.root.op != "tuple":
        return set()
    kept = set()
    for position in range(len(body.root.operands)):
        source = _unwrapped(body, body.operand(body.root, position))
        if source is not None and source.op == "get-tuple-element":
            origin = body.operand(source, 0)
            if origin is not None and origin.op == "parameter" and _index(source) == position:
                kept.add(position)
    return kept


def _origin(computation: Computation, loop: Instruction, position: int) -> tuple[str, int] | None:
    """The earlier loop, and the element of its state, that this loop's element starts as."""
    initial = computation.operand(loop, 0)
    if initial is None or initial.op != "tuple" or position >= len(initial.operands):
        return None
    source = _unwrapped(computation, computation.operand(initial, position))
    if source is None or source.op != "get-tuple-element":
        return None
    return source.operands[0], _index(source)


def _unwrapped(computation: Computation, found: Instruction | None) -> Instruction | None:
    while found is not None and found.op in VIEWS:
        found = computation.operand(found, 0)
    return found


def _index(element: Instruction) -> int:
    return int(element.attributes.split("index=")[1].split(",")[0].split()[0])
