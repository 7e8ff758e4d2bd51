"""Which blocks of the score matrix a GPU kernel visits: loop bounds for each line of blocks.

A program of the forward and of the dq kernel has one block of queries and walks over blocks of
keys; one of the dk/dv kernel has one block of keys and walks over blocks of queries. Either way the
line of blocks is cut in three runs,

    begin .. full_begin   masked        (the tail of a window, the beginning of a document)
    full_begin .. full_end   whole      (every pair is allowed: no mask is computed)
    full_end .. end       masked        (the diagonal, the ragged end)

and what lies outside of [begin, end) costs nothing. A block-sparse pattern leaves no runs; then the
walk goes over a list that has whole blocks first. Bounds are constants, or small arrays where
segment ids or prefix lengths decide.
"""

import itertools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jgpt.kernels.attention.mask import block_visible
from jgpt.typing import Array, Mask, static


class Tile(NamedTuple):
    """How one kernel cuts the scores, powers of 2, and what its program is made of."""

    query_block: int
    key_block: int
    warps: int
    stages: int
    """Blocks that are in flight between memory and the loop."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Walk:
    """Loop bounds of every line of blocks; n = B where they depend on the batch row, else 1."""

    bounds: Array
    """[n, lines, 4] int32: begin, full_begin, full_end, end."""
    order: Array | None
    """[n, lines, blocks] int32: the blocks to visit, where they are no runs."""
    loops: tuple[bool, bool, bool] = static()
    """Which of the three runs any line can have."""


class Cover(NamedTuple):
    """Of every block, [.., query blocks, key blocks] bool."""

    some: Any
    """Some pair in it may be allowed."""
    every: Any
    """Every pair in it is allowed."""

    def both(self, other: "Cover") -> "Cover":
        return Cover(self.some & other.some, self.every & other.every)


class Spans(NamedTuple):
    """First and last index of blocks of queries [nq, 1] and of keys [1, nk]."""

    first_query: np.ndarray
    last_query: np.ndarray
    first_key: np.ndarray
    last_key: np.ndarray


def make_walk(mask: Mask, queries: int, keys: int, tile: Tile, columns: bool) -> Walk:
    """The walk over key blocks for each block of queries; with `columns`, the other way round.

    Args:
        mask: with its arrays.
        queries: number of them, without padding.
        keys: number of them, without padding.
        tile: sizes of the blocks.
        columns: lines are blocks of keys.
    """
    cover = make_cover(mask, queries, keys, tile)
    some, every = (x.swapaxes(-1, -2) if columns else x for x in cover)
    xp = np if isinstance(some, np.ndarray) else jnp
    some, every = (x.reshape(-1, *x.shape[-2:]) for x in (some, every))
    order = None
    if mask.block_size:
        rank = xp.where(every, 0, xp.where(some, 1, 2))
        order = xp.argsort(rank, axis=-1, stable=True).astype(xp.int32)
        zero, end = xp.zeros(some.shape[:2], xp.int32), some.sum(-1)
        bounds = [zero, zero, every.sum(-1), end]
    else:
        bounds = _runs(xp, some, every)
    loops = (True, True, True)
    if xp is np:
        loops = tuple(bool((b > a).any()) for a, b in itertools.pairwise(bounds))
    stacked = xp.stack(bounds, axis=-1).astype(xp.int32)
    return Walk(jnp.asarray(stacked), None if order is None else jnp.asarray(order), loops)


def _runs(xp: Any, some: Any, every: Any) -> list[Any]:
    """begin, full_begin, full_end, end [n, lines]; blocks between that allow nothing are masked."""
    count = some.shape[-1]
    index = xp.arange(count)
    end = xp.where(some, index + 1, 0).max(-1)
    begin = xp.minimum(xp.where(some, index, count).min(-1), end)
    full_begin = xp.where(every, index, count).min(-1)
    full_begin = xp.where(full_begin == count, begin, full_begin)  # no whole block: the third run
    broken = ~every & (index >= full_begin[..., None])
    full_end = xp.where(broken, index, end[..., None]).min(-1)
    return [begin, full_begin, xp.minimum(full_end, end), end]


def make_cover(mask: Mask, queries: int, keys: int, tile: Tile) -> Cover:
    """Of every block; numpy where nothing depends on arrays, else [B, ..] of jax."""
    first_query = np.arange(0, queries, tile.query_block)[:, None]
    first_key = np.arange(0, keys, tile.key_block)[None, :]
    spans = Spans(
        first_query,
        np.minimum(first_query + tile.query_block, queries) - 1,
        first_key,
        np.minimum(first_key + tile.key_block, keys) - 1,
    )
    shape = first_query.shape[0], first_key.shape[1]
    cover = Cover(np.full(shape, True), np.full(shape, True))
    if keys % tile.key_block:
        cover = cover.both(Cover(True, spans.first_key + tile.key_block <= keys))
    if mask.q_positions is not None or mask.kv_positions is not None:
        return cover.both(Cover(True, False))
    least = spans.first_key - spans.last_query  # of key index - query index
    most = spans.last_key - spans.first_query
    if mask.window:
        inside = (most < mask.window) & (least > -mask.window)
        cover = cover.both(Cover((least < mask.window) & (most > -mask.window), inside))
    if mask.block_size:
        cover = cover.both(_pattern(mask, spans))
    if mask.causal:
        behind = Cover(least <= 0, most <= 0)
        if mask.prefix_lengths is not None:
            prefix = mask.prefix_lengths[:, None, None]
            behind = Cover(
                behind.some | (spans.first_key < prefix), behind.every | (spans.last_key < prefix)
            )
        cover = cover.both(behind)
    if mask.q_segment_ids is not None:
        cover = cover.both(_segments(mask, tile))
    return cover


def _pattern(mask: Mask, spans: Spans) -> Cover:
    """The block-sparse pattern, whose blocks may be larger or smaller than the kernel's."""
    q0, q1, k0, k1 = (x // mask.block_size for x in spans)
    query_blocks = np.arange(q1.max() + 1)[:, None]
    key_blocks = np.arange(k1.max() + 1)[None, :]
    allowed = block_visible(mask, query_blocks, key_blocks)
    total = np.zeros((allowed.shape[0] + 1, allowed.shape[1] + 1), np.int64)
    total[1:, 1:] = allowed.cumsum(0).cumsum(1)
    count = total[q1 + 1, k1 + 1] - total[q0, k1 + 1] - total[q1 + 1, k0] + total[q0, k0]
    return Cover(count > 0, count == (q1 + 1 - q0) * (k1 + 1 - k0))


def _segments(mask: Mask, tile: Tile) -> Cover:
    """Blocks can meet where their ranges of ids do, 0 left out; whole are those of one id."""

    def blocks(ids: Array, block: int) -> Array:
        padded = jnp.pad(ids, ((0, 0), (0, -ids.shape[1] % block)), mode="edge")
        return padded.reshape(len(ids), -1, block)

    q = blocks(mask.q_segment_ids, tile.query_block)
    k = blocks(mask.kv_segment_ids, tile.key_block)
    top = jnp.iinfo(k.dtype).max
    least_q, most_q = q.min(-1)[:, :, None], q.max(-1)[:, :, None]
    least_k = jnp.where(k == 0, top, k).min(-1)[:, None, :]
    most_k = k.max(-1)[:, None, :]
    some = (least_q <= most_k) & (least_k <= most_q)
    one = (least_q == most_q) & (k.min(-1)[:, None, :] == most_k) & (most_k != 0)
    return Cover(some, one & (least_q == most_k))
