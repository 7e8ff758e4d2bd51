"""Which blocks of the score matrix a mask leaves to compute, known before anything runs."""

from dataclasses import dataclass

import numpy as np

from jgpt.kernels.attention.mask import block_visible
from jgpt.typing import Mask

Row = tuple[tuple[int, bool], ...]
"""(block index, must it be masked) along one row or column of blocks."""


@dataclass(frozen=True)
class Schedule:
    """Blocks to compute. Hashable: it is a static argument of the compiled kernel.

    Query block i is rows `[i * query_block, (i + 1) * query_block)`, key block j likewise; the last
    ones reach past the sequences where these are no multiples.
    """

    query_block: int
    key_block: int
    num_key_blocks: int
    rows: tuple[Row, ...]
    """For each query block, its key blocks."""

    @property
    def columns(self) -> tuple[Row, ...]:
        """For each key block, its query blocks."""
        columns = [[] for _ in range(self.num_key_blocks)]
        for i, row in enumerate(self.rows):
            for j, masked in row:
                columns[j].append((i, masked))
        return tuple(tuple(column) for column in columns)

    @property
    def num_pairs(self) -> int:
        return sum(map(len, self.rows))


def even_block(length: int, limit: int) -> int:
    """The block size, a multiple of 8, that cuts `length` into as few and as even blocks as can be
    of at most `limit`."""
    blocks = -(-length // limit)
    return -(-length // (8 * blocks)) * 8


def _cover(mask: Mask, query: np.ndarray, key: np.ndarray) -> tuple[bool, bool]:
    """(some pair is allowed, every pair is) by the parts of `mask` that are structure.

    `query` and `key` are runs of consecutive indices, so the first and last of each tell for
    diagonals; the block-sparse pattern is looked up block by block.
    """
    some, every = True, True
    ahead = (key[0] - query[-1], key[-1] - query[0])  # least and greatest key index - query index
    if mask.causal and mask.prefix_lengths is None:
        some &= ahead[0] <= 0
        every &= ahead[1] <= 0
    if mask.window:
        some &= ahead[0] < mask.window and ahead[1] > -mask.window
        every &= ahead[1] < mask.window and ahead[0] > -mask.window
    if mask.block_size:
        query_blocks = np.unique(query // mask.block_size)[:, None]
        key_blocks = np.unique(key // mask.block_size)[None, :]
        pattern = block_visible(mask, query_blocks, key_blocks)
        some &= bool(pattern.any())
        every &= bool(pattern.all())
    return bool(some), bool(every)


def make_schedule(
    mask: Mask, queries: int, keys: int, query_block: int, key_block: int
) -> Schedule:
    """The blocks of a [queries, keys] score matrix in which `mask` can allow anything.

    A block is marked to be masked where the structure, segment ids, prefix lengths or explicit
    positions may forbid some of it, or where it reaches past the last key. With explicit positions
    nothing is known in advance and every block is computed.
    """
    explicit = mask.q_positions is not None or mask.kv_positions is not None
    dynamic = mask.q_segment_ids is not None or mask.prefix_lengths is not None
    key_ranges = [np.arange(j, j + key_block) for j in range(0, keys, key_block)]
    rows = []
    for i in range(0, queries, query_block):
        query = np.arange(i, min(i + query_block, queries))
        row = []
        for j, key in enumerate(key_ranges):
            some, every = (True, False) if explicit else _cover(mask, query, key[key < keys])
            if some:
                row.append((j, dynamic or not every or key[-1] >= keys))
        rows.append(tuple(row))
    return Schedule(query_block, key_block, len(key_ranges), tuple(rows))
