"""What a collective sends: bytes that one chip puts on the wire with ring algorithms."""

import math
import re

from jgpt.planning.hlo import Computation, Instruction

KINDS = (
    "all-gather",
    "reduce-scatter",
    "all-reduce",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)


def kind_of(instruction: Instruction, computation: Computation) -> str | None:
    """Which collective this is; None for other operations and for the second halves of pairs."""
    kind = instruction.op.removesuffix("-start")
    if kind not in KINDS:
        return None
    if kind == "all-reduce" and "all-reduce-scatter" in computation.name:
        return "reduce-scatter"  # the TPU compiler's fused form
    return kind


def repeats(instruction: Instruction, computation: Computation) -> bool:
    """Whether this is a further mention of a collective that is counted elsewhere.

    The TPU compiler writes an asynchronous collective into every fusion of its chain (start, steps
    and end); the end counts.
    """
    if "chain_id=" not in instruction.attributes:
        return False
    return not any(
        other.op == "custom-call"
        and "AsyncCollectiveDone" in other.attributes
        and instruction.name in other.operands
        for other in computation.instructions.values()
    )


def wire_bytes(kind: str, instruction: Instruction, computation: Computation) -> float:
    """Sent by one chip in one execution, n chips in a ring, on w whole bytes.

    all-gather, reduce-scatter and all-to-all: w (n - 1) / n; all-reduce: twice that;
    collective-permute and -broadcast: w. w is the larger side. Of a ragged all-to-all the smaller:
    the other is a buffer for the worst case.
    """
    names = [name for name in instruction.operands if name in computation.instructions]
    sent = sum(computation.instructions[name].bytes for name in names)
    received = instruction.bytes
    if instruction.op.endswith("-start") and kind not in ("all-reduce", "reduce-scatter"):
        # The type of a start names its operand again, and counters beside it.
        received = max(received - sent, 0.0)
    size = group_size(instruction.attributes)
    share = (size - 1) / size if size else 1.0
    if kind == "ragged-all-to-all":
        first = computation.operand(instruction, 0)
        return share * min(first.bytes if first else received, received)
    if kind in ("collective-permute", "collective-broadcast"):
        return sent
    return max(sent, received) * share * (2 if kind == "all-reduce" else 1)


def group_size(attributes: str) -> int:
    """Chips that take part together; 0 where the text does not say (all of them)."""
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return len(listed[1].split(","))
    if counted := re.search(r"replica_groups=\[(\d+),(\d+)\]", attributes):
        return int(counted[2])
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", named[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", named[2]))
    return 0
