"""Which blocks of the score matrix a mask leaves to compute, known before anything runs."""

from dataclasses import dataclass

import numpy as np

from jgpt.kernels.attention.mask import block_visible
from jgpt.typing import Mask

MAX_UNROLLED = 16
"""Up to so many blocks a side, the work is unrolled (faster on CPU); above, it is done in loops."""


@dataclass(frozen=True)
class Run:
    """Neighbouring blocks along a row or a column of the score matrix, computed together."""

    first: int
    count: int
    masked: bool
    """Whether the mask may forbid some pair in there."""


Line = tuple[Run, ...]
"""The runs along one row or column of blocks."""


@dataclass(frozen=True)
class Schedule:
    """Blocks to compute. Hashable: it is a static argument of the compiled kernel.

    Query block i is rows `[i * query_block, (i + 1) * query_block)`, key block j likewise; the last
    ones reach past the sequences where these are no multiples.
    """

    query_block: int
    key_block: int
    rows: tuple[Line, ...]
    """For each query block, its key blocks."""
    columns: tuple[Line, ...]
    """For each key block, its query blocks."""
    unrolled: bool
    """Whether rows and columns are Python loops; else each run is one block."""


def even_block(length: int, limit: int) -> int:
    """The block size, a multiple of 8, that cuts `length` into as few and as even blocks as can be
    of at most `limit`."""
    blocks = -(-length // limit)
    return -(-length // (8 * blocks)) * 8


def best_block(length: int) -> int:
    """Small blocks waste less along the diagonal, but there should not be too many."""
    limit = 128
    while limit < 256 and length > MAX_UNROLLED * limit:
        limit *= 2
    return even_block(length, limit)


def make_schedule(
    mask: Mask, queries: int, keys: int, query_block: int, key_block: int, merge: bool = True
) -> Schedule:
    """The blocks of a [queries, keys] score matrix in which `mask` can allow anything.

    A block is marked to be masked where the structure, segment ids, prefix lengths or explicit
    positions may forbid some of it, or where it reaches past the last key. With explicit positions
    nothing is known in advance and every block is computed. `merge` makes runs of neighbouring
    blocks where the work is unrolled.
    """
    explicit = mask.q_positions is not None or mask.kv_positions is not None
    dynamic = mask.q_segment_ids is not None or mask.prefix_lengths is not None
    shape = -(-queries // query_block), -(-keys // key_block)
    needed, masked = np.zeros(shape, bool), np.zeros(shape, bool)
    for i, j in np.ndindex(shape):
        query = np.arange(i * query_block, min((i + 1) * query_block, queries))
        key = np.arange(j * key_block, min((j + 1) * key_block, keys))
        some, every = (True, False) if explicit else _cover(mask, query, key)
        needed[i, j] = some
        masked[i, j] = dynamic or not every or len(key) < key_block
    unrolled = max(shape) <= MAX_UNROLLED
    longest = MAX_UNROLLED if unrolled and merge else 1
    return Schedule(
        query_block=query_block,
        key_block=key_block,
        rows=tuple(_line(n, m, longest) for n, m in zip(needed, masked)),
        columns=tuple(_line(n, m, longest) for n, m in zip(needed.T, masked.T)),
        unrolled=unrolled,
    )


def _cover(mask: Mask, query: np.ndarray, key: np.ndarray) -> tuple[bool, bool]:
    """(some pair is allowed, every pair is) by the parts of `mask` that are structure.

    `query` and `key` are runs of consecutive indices, so the first and last of each tell for
    diagonals; the block-sparse pattern is looked up block by block.
    """
    some, every = True, True
    least, most = key[0] - query[-1], key[-1] - query[0]  # of key index - query index
    if mask.causal and mask.prefix_lengths is None:
        some &= least <= 0
        every &= most <= 0
    if mask.window:
        some &= least < mask.window and most > -mask.window
        every &= most < mask.window and least > -mask.window
    if mask.block_size:
        query_blocks = np.unique(query // mask.block_size)[:, None]
        key_blocks = np.unique(key // mask.block_size)[None, :]
        pattern = block_visible(mask, query_blocks, key_blocks)
        some &= pattern.any()
        every &= pattern.all()
    return bool(some), bool(every)


def _line(needed: np.ndarray, masked: np.ndarray, longest: int) -> Line:
    runs = []
    for block in map(int, np.flatnonzero(needed)):
        last = runs[-1] if runs else None
        if last and last.first + last.count == block and last.count < longest:
            runs[-1] = Run(last.first, last.count + 1, last.masked or bool(masked[block]))
        else:
            runs.append(Run(block, 1, bool(masked[block])))
    return tuple(runs)
