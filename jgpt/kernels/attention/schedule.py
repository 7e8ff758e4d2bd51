"""Which blocks of the score matrix a mask leaves to compute, known before anything runs."""

from dataclasses import dataclass

import numpy as np

from jgpt.kernels.attention.mask import block_visible
from jgpt.typing import Mask


@dataclass(frozen=True)
class Schedule:
    """Blocks to compute. Hashable: it is a static argument of the compiled kernel.

    Query block i is rows `[i * query_block, (i + 1) * query_block)`, key block j likewise; the last
    ones reach past the sequences where these are no multiples.
    """

    query_block: int
    key_block: int
    rows: tuple[tuple[int, ...], ...]
    """For each query block, its key blocks."""
    columns: tuple[tuple[int, ...], ...]
    """For each key block, its query blocks."""
    partial: tuple[tuple[bool, ...], ...]
    """For each block of `rows`, whether something in it is forbidden or lies past the last key."""

    @property
    def masked(self) -> bool:
        """Whether any block is partial."""
        return any(map(any, self.partial))


def even_block(length: int, limit: int) -> int:
    """The block size, a multiple of 8, that cuts `length` into as few and as even blocks as can be
    of at most `limit`."""
    blocks = -(-length // limit)
    return -(-length // (8 * blocks)) * 8


def make_schedule(
    mask: Mask, queries: int, keys: int, query_block: int, key_block: int
) -> Schedule:
    """The blocks of a [queries, keys] score matrix in which `mask` can allow anything.

    With explicit positions nothing is known in advance and every block is computed.
    """
    explicit = mask.q_positions is not None or mask.kv_positions is not None
    dynamic = mask.q_segment_ids is not None or mask.prefix_lengths is not None
    needed = np.zeros((-(-queries // query_block), -(-keys // key_block)), bool)
    partial = np.full(needed.shape, explicit or dynamic)
    partial[:, -1] |= keys % key_block != 0
    for i, j in np.ndindex(needed.shape):
        query = np.arange(i * query_block, min((i + 1) * query_block, queries))
        key = np.arange(j * key_block, min((j + 1) * key_block, keys))
        some, every = (True, False) if explicit else _cover(mask, query, key)
        needed[i, j] = some
        partial[i, j] |= not every
    return Schedule(
        query_block=query_block,
        key_block=key_block,
        rows=tuple(tuple(map(int, np.flatnonzero(row))) for row in needed),
        columns=tuple(tuple(map(int, np.flatnonzero(column))) for column in needed.T),
        partial=tuple(tuple(map(bool, part[row])) for part, row in zip(partial, needed)),
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
