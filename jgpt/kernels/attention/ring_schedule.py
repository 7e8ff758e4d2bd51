"""Which parts of the score matrix each device of a ring computes, step by step, known in advance.

A row is cut into chunks and every device of the ring holds the same number of them: in natural
order device i of n holds chunk i; in zigzag order, of 2n chunks, chunks i and 2n - 1 - i, which
gives every device the same share of a causal matrix at every step. At step t device i works on the
keys of device i - t (mod n). The unit of work is a pair (chunk of queries, chunk of keys).
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from jgpt.kernels.attention.schedule import _cover as cover
from jgpt.typing import Mask


@dataclass(frozen=True, eq=False)
class Call:
    """Pairs that a device computes at once, stacked along the batch; as many on every device."""

    kind: str
    """`diagonal`: a chunk with itself; `full`: the mask's structure allows all; else `mixed`."""
    table: np.ndarray
    """[devices, pairs, 5] int32: the chunk's place among the device's own, of queries and of keys;
    the first token's index in the row, of queries and of keys; whether the pair counts."""


@dataclass(frozen=True, eq=False)
class Step:
    """What happens between two rotations of the keys."""

    hop: int
    """How many devices on the keys have come since the step before."""
    next_hop: int
    """And will go to the step after; 0 where it is the last."""
    calls: tuple[Call, ...]

    @property
    def form(self) -> tuple:
        """Steps of one form run as one loop."""
        return self.hop, self.next_hop, tuple((c.kind, c.table.shape) for c in self.calls)


@dataclass(frozen=True, eq=False)
class Ring:
    """All steps; compared by identity, so that it can be a static argument."""

    devices: int
    chunk: int
    """Tokens of a chunk."""
    steps: tuple[Step, ...]
    last: int
    """How many devices on the keys are at the last step."""

    def runs(self) -> Iterator[tuple[Step, ...]]:
        """The steps in order, neighbours of one form together."""
        run: list[Step] = []
        for step in self.steps:
            if run and run[-1].form != step.form:
                yield tuple(run)
                run = []
            run.append(step)
        yield tuple(run)


def chunks(devices: int, zigzag: bool) -> np.ndarray:
    """[devices, 1 or 2]: the chunks that each device holds."""
    i = np.arange(devices)
    return np.stack([i, 2 * devices - 1 - i], axis=1) if zigzag else i[:, None]


def zigzag_order(length: int, devices: int) -> np.ndarray:
    """[length] int32: the index in the row of each token as it lies in zigzag order.

    Raises:
        ValueError: `length` is no multiple of 2 * devices.
    """
    if length % (2 * devices):
        raise ValueError(f"{length} tokens cannot be cut into {2 * devices} chunks; pad the rows")
    indices = np.arange(length, dtype=np.int32).reshape(2 * devices, -1)
    return indices[chunks(devices, zigzag=True).reshape(-1)].reshape(-1)


@functools.lru_cache(maxsize=256)
def make_ring(
    mask: Mask, prefix: bool, biased: bool, devices: int, zigzag: bool, length: int
) -> Ring:
    """The steps of a ring in which something can be seen; the others are left out.

    Args:
        mask: its structure, without arrays.
        prefix: whether there are prefix lengths, which open pairs that structure alone forbids.
        biased: whether scores depend on the distance, which full pairs do not know.
        devices: in the ring.
        zigzag: the order of the tokens.
        length: of the row.
    """
    held = chunks(devices, zigzag)
    chunk = length // held.size
    kept: list[tuple[int, tuple[Call, ...]]] = []
    for distance in range(devices):
        pairs = [
            _pairs(mask, prefix, biased, held[i], held[(i - distance) % devices], chunk)
            for i in range(devices)
        ]
        calls = _calls(pairs)
        if calls:
            kept.append((distance, calls))
    distances = [distance for distance, _ in kept]
    hops = np.diff([0, *distances])
    steps = tuple(
        Step(int(hop), int(following), calls)
        for hop, following, (_, calls) in zip(hops, [*hops[1:], 0], kept)
    )
    return Ring(devices, chunk, steps, distances[-1])


def _pairs(
    mask: Mask, prefix: bool, biased: bool, queries: np.ndarray, keys: np.ndarray, chunk: int
) -> list[tuple[str, tuple[int, ...]]]:
    """Kind and table entry of each pair that a device has to compute."""
    found = []
    for q_slot, q_chunk in enumerate(queries):
        for k_slot, k_chunk in enumerate(keys):
            some, every = _cover(mask, q_chunk * chunk, k_chunk * chunk, chunk)
            kind = "full" if every and not biased else "mixed"
            if prefix:
                some, kind = True, "mixed"
            if q_chunk == k_chunk and not prefix and not mask.block_size:
                kind = "diagonal"
            if some:
                found.append((kind, (q_slot, k_slot, q_chunk * chunk, k_chunk * chunk, 1)))
    return found


def _cover(mask: Mask, query: int, key: int, chunk: int) -> tuple[bool, bool]:
    ends = np.arange(chunk) if mask.block_size else np.array([0, chunk - 1])
    return cover(mask, query + ends, key + ends)


def _calls(pairs: list[list[tuple[str, tuple[int, ...]]]]) -> tuple[Call, ...]:
    """One program for all devices: pairs by kind, filled up with pairs that do not count.

    Where some device's pairs are mixed, or devices have unequally many, full ones are mixed too.
    """
    calls = []
    diagonal = [[entry for kind, entry in of if kind == "diagonal"] for of in pairs]
    if diagonal[0]:
        calls.append(Call("diagonal", np.array(diagonal, np.int32)))
    rest = [[pair for pair in of if pair[0] != "diagonal"] for of in pairs]
    most = max(map(len, rest))
    if most:
        full = all(len(of) == most and all(kind == "full" for kind, _ in of) for of in rest)
        table = np.zeros((len(pairs), most, 5), np.int32)
        for row, of in zip(table, rest):
            for slot, (_, entry) in zip(row, of):
                slot[:] = entry
        calls.append(Call("full" if full else "mixed", table))
    return tuple(calls)
