"""One rectangle of the score matrix: its scores, its mask, its bias, its dropout."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from jgpt.kernels.attention.mask import Indices, bias_scores, visible
from jgpt.kernels.attention.schedule import Schedule
from jgpt.typing import Array, Bias, Mask

FORBIDDEN = -1e30
"""The score of a pair that the mask forbids; finite, so that no difference of two is NaN."""


@dataclass(frozen=True)
class Static:
    """What is known when the program is made: `keys` without padding, `group` is H / K."""

    schedule: Schedule
    keys: int
    group: int
    softcap: float
    dropout: float


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Smooth:
    """What the result is differentiable in; q [B, K, R, d], k and v [B, K, T, d]."""

    q: Array
    k: Array
    v: Array
    scale: Array
    bias: Bias | None
    sinks: Array | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Fixed:
    """The rest; `at` and the mask's segment ids are those of rows, each position's G times."""

    mask: Mask
    at: Indices
    dropout_key: Array | None


@dataclass(frozen=True)
class Span:
    """Positions [start, start + size) of a sequence."""

    start: Array
    size: int

    def of(self, x: Array, axis: int) -> Array:
        return lax.dynamic_slice_in_dim(x, self.start, self.size, axis)


@dataclass(frozen=True)
class Piece:
    """A rectangle of the score matrix."""

    rows: Span
    columns: Span


def dot(a: Array, b: Array, contract: tuple[int, int]) -> Array:
    """Product over one axis of each, batched over the leading [B, K], in at least float32."""
    dimensions = (((contract[0],), (contract[1],)), ((0, 1), (0, 1)))
    dtype = jnp.promote_types(b.dtype, jnp.float32)
    return lax.dot_general(a.astype(b.dtype), b, dimensions, preferred_element_type=dtype)


def piece_scores(static: Static, smooth: Smooth, fixed: Fixed, piece: Piece) -> Array:
    """Masked scores of a piece, [B, K, r, t] float32."""
    scores = dot(piece.rows.of(smooth.q, 2), piece.columns.of(smooth.k, 2), (3, 3)) * smooth.scale
    if static.softcap:
        scores = static.softcap * jnp.tanh(scores / static.softcap)
    if smooth.bias is not None:
        scores += piece_bias(static, smooth.bias, fixed, piece, scores.shape[1])
    if static.schedule.masked:
        scores = jnp.where(_allowed(static, fixed, piece), scores, FORBIDDEN)
    return scores


def transposed_scores(
    static: Static, smooth: Smooth, fixed: Fixed, piece: Piece
) -> tuple[Array, Array | None]:
    """Masked scores of a piece, [B, K, t, r] float32, and the softcap's derivative there."""
    scores = dot(piece.columns.of(smooth.k, 2), piece.rows.of(smooth.q, 2), (3, 3)) * smooth.scale
    slope = None
    if static.softcap:
        tanh = jnp.tanh(scores / static.softcap)
        scores, slope = static.softcap * tanh, 1 - tanh * tanh
    if smooth.bias is not None:
        scores += piece_bias(static, smooth.bias, fixed, piece, scores.shape[1]).swapaxes(2, 3)
    if static.schedule.masked:
        allowed = _allowed(static, fixed, piece).swapaxes(2, 3)
        scores = jnp.where(allowed, scores, FORBIDDEN)
    return scores, slope


def _indices(fixed: Fixed, piece: Piece) -> Indices:
    return Indices(piece.rows.of(fixed.at.query, 1), piece.columns.of(fixed.at.key, 1))


def piece_bias(static: Static, bias: Bias, fixed: Fixed, piece: Piece, kv_heads: int) -> Array:
    """[1 or B, K, r, t]: row r of key/value head n is query head n * G + r % G."""
    at = _indices(fixed, piece)
    added = bias_scores(bias, Indices(at.query[:, :: static.group], at.key))
    added = added.reshape(added.shape[0], kv_heads, static.group, *added.shape[2:])
    return jnp.moveaxis(added, 2, 3).reshape(*added.shape[:2], piece.rows.size, piece.columns.size)


def _allowed(static: Static, fixed: Fixed, piece: Piece) -> Array:
    """[1 or B, 1, r, t] bool."""
    mask = fixed.mask
    segments = (None, None)
    if mask.q_segment_ids is not None:
        segments = piece.rows.of(mask.q_segment_ids, 1), piece.columns.of(mask.kv_segment_ids, 1)
    allowed = visible(mask, _indices(fixed, piece), *segments)
    padded = static.keys < len(static.schedule.columns) * static.schedule.key_block
    if padded or allowed is None:
        slot = piece.columns.start + lax.iota(jnp.int32, piece.columns.size)
        exists = (slot < static.keys)[None, None]
        allowed = exists if allowed is None else allowed & exists
    return allowed[:, None]


def dropout_factors(static: Static, fixed: Fixed, piece: Piece, shape: tuple[int, ...]) -> Array:
    """What dropout multiplies a block's probabilities with; the same in both passes."""
    key = jax.random.fold_in(fixed.dropout_key, piece.rows.start)
    key = jax.random.fold_in(key, piece.columns.start)
    keep = jax.random.bernoulli(key, 1 - static.dropout, shape)
    return keep.astype(jnp.float32) / (1 - static.dropout)
