"""Blockwise attention in plain JAX: online softmax, memory linear in the sequence, any device.

Only blocks in which the mask can allow something are computed (`schedule.py`). The backward pass
recomputes probabilities from the saved log-sum-exp (Dao et al. 2022, algorithm 4).

Inside, queries are laid out [B, K, S, G, d], G = H / K of them to one key/value head: a block of
queries is then one run of memory and one matrix of block * G rows, and K and V are never repeated.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jgpt.kernels.attention.mask import Indices, bias_scores, row_indices, visible
from jgpt.kernels.attention.schedule import Row, Schedule, even_block, make_schedule
from jgpt.typing import Array, Bias, Mask

BLOCK = 256
MAX_UNROLLED_PAIRS = 40
"""Up to so many blocks are unrolled (faster on CPU); above, loops keep the program small."""

FORBIDDEN = -1e30
LOWEST = -1e29
"""A row maximum never falls below this, so exp(FORBIDDEN - maximum) is 0 in rows without a key."""


def supports(*arguments, **options) -> str:
    """It can do everything."""
    return ""


@dataclass(frozen=True)
class _Static:
    schedule: Schedule
    keys: int
    softcap: float
    dropout: float


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Smooth:
    """What the result is differentiable in; q [B, K, S, G, d], k and v [B, K, T, d]."""

    q: Array
    k: Array
    v: Array
    scale: Array
    bias: Bias | None
    sinks: Array | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Fixed:
    mask: Mask
    at: Indices
    dropout_key: Array | None


def attention(
    q: Array,
    k: Array,
    v: Array,
    mask: Mask,
    *,
    scale: float | Array,
    softcap: float = 0.0,
    bias: Bias | None = None,
    sinks: Array | None = None,
    dropout: float = 0.0,
    dropout_key: Array | None = None,
    block: int = BLOCK,
) -> Array:
    """See `jgpt.kernels.attention.attention`; `block` bounds the queries and keys of one block."""
    batch, queries, heads, width = q.shape
    keys, kv_heads = k.shape[1:3]
    schedule = make_schedule(
        mask, queries, keys, even_block(queries, block), even_block(keys, block)
    )
    padded_queries = len(schedule.rows) * schedule.query_block
    padded_keys = schedule.num_key_blocks * schedule.key_block
    dropout = dropout if dropout_key is not None else 0.0
    grouped = q.reshape(batch, queries, kv_heads, heads // kv_heads, width)
    smooth = _Smooth(
        q=jnp.moveaxis(_pad(grouped, padded_queries), 2, 1),
        k=jnp.moveaxis(_pad(k, padded_keys), 2, 1),
        v=jnp.moveaxis(_pad(v, padded_keys), 2, 1),
        scale=jnp.asarray(scale, jnp.promote_types(q.dtype, jnp.float32)),
        bias=bias,
        sinks=sinks,
    )
    at = row_indices(mask, queries, keys)
    fixed = _Fixed(
        mask=_pad_segments(mask, padded_queries, padded_keys),
        at=Indices(_pad(at.query, padded_queries), _pad(at.key, padded_keys)),
        dropout_key=dropout_key if dropout else None,
    )
    out = _attend(_Static(schedule, keys, softcap, dropout), smooth, fixed)
    return jnp.moveaxis(out, 1, 2)[:, :queries].reshape(batch, queries, heads, v.shape[-1])


def _pad(x: Array, length: int) -> Array:
    """Zeros behind axis 1 up to `length`."""
    missing = length - x.shape[1]
    return jnp.pad(x, [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2)) if missing else x


def _pad_segments(mask: Mask, queries: int, keys: int) -> Mask:
    if mask.q_segment_ids is None:
        return mask
    return replace(
        mask,
        q_segment_ids=_pad(mask.q_segment_ids, queries),
        kv_segment_ids=_pad(mask.kv_segment_ids, keys),
    )


def _slice(x: Array, block: int | Array, size: int, axis: int) -> Array:
    return lax.dynamic_slice_in_dim(x, block * size, size, axis)


def _scores(
    static: _Static, smooth: _Smooth, fixed: _Fixed, i: int | Array, j: int | Array, masked: bool
) -> tuple[Array, Array | None]:
    """Masked scores of one block, [B, K, s, G, t] float32, and the softcap's derivative there."""
    schedule = static.schedule
    q = _slice(smooth.q, i, schedule.query_block, 2)
    k = _slice(smooth.k, j, schedule.key_block, 2)
    scores = _dot(q, k, contract=(4, 3)) * smooth.scale
    slope = None
    if static.softcap:
        tanh = jnp.tanh(scores / static.softcap)
        scores, slope = static.softcap * tanh, 1 - tanh * tanh
    if smooth.bias is not None:
        scores += _group(bias_scores(smooth.bias, _indices(static, fixed, i, j)), scores.shape)
    if masked:
        allowed = _allowed(static, fixed, i, j)
        scores = jnp.where(allowed[:, None, :, None, :], scores, FORBIDDEN)
    return scores, slope


def _dot(a: Array, b: Array, contract: tuple[int, int]) -> Array:
    """Product over one axis of each, batched over the leading [B, K], in at least float32."""
    return lax.dot_general(
        a,
        b,
        (((contract[0],), (contract[1],)), ((0, 1), (0, 1))),
        preferred_element_type=jnp.promote_types(a.dtype, jnp.float32),
    )


def _indices(static: _Static, fixed: _Fixed, i: int | Array, j: int | Array) -> Indices:
    return Indices(
        query=_slice(fixed.at.query, i, static.schedule.query_block, 1),
        key=_slice(fixed.at.key, j, static.schedule.key_block, 1),
    )


def _group(x: Array, scores: tuple[int, ...]) -> Array:
    """[b, H, s, t] laid out as scores are, [b, K, s, G, t]."""
    x = x.reshape(x.shape[0], scores[1], scores[3], *x.shape[2:])
    return jnp.moveaxis(x, 2, 3)


def _allowed(static: _Static, fixed: _Fixed, i: int | Array, j: int | Array) -> Array:
    """[1 or B, s, t] bool."""
    schedule, mask = static.schedule, fixed.mask
    segments = (None, None)
    if mask.q_segment_ids is not None:
        segments = (
            _slice(mask.q_segment_ids, i, schedule.query_block, 1),
            _slice(mask.kv_segment_ids, j, schedule.key_block, 1),
        )
    allowed = visible(mask, _indices(static, fixed, i, j), *segments)
    slot = j * schedule.key_block + lax.iota(jnp.int32, schedule.key_block)
    exists = (slot < static.keys)[None, None]
    return exists if allowed is None else allowed & exists


def _kept(static: _Static, fixed: _Fixed, i: int | Array, j: int | Array, like: Array) -> Array:
    """What dropout multiplies a block's probabilities with; the same in both passes."""
    key = jax.random.fold_in(jax.random.fold_in(fixed.dropout_key, i), j)
    keep = jax.random.bernoulli(key, 1 - static.dropout, like.shape)
    return keep / jnp.asarray(1 - static.dropout, like.dtype)


def _fold(row: Any, body: Callable, carry: Any) -> Any:
    """The carry after `body(carry, block, masked)` for each block of a row or column."""
    if isinstance(row, tuple):
        for block, masked in row:
            carry = body(carry, block, masked)
        return carry
    blocks, count, masked = row["blocks"], row["count"], row["masked"]
    return lax.fori_loop(0, count, lambda n, c: body(c, blocks[n], masked), carry)


def _for_each(rows: tuple[Row, ...], unroll: bool, body: Callable, carry: Any) -> tuple[Any, Any]:
    """`carry, out = body(carry, i, rows[i])` for each i; the outs joined along their axis 2."""
    if unroll:
        outs = []
        for i, row in enumerate(rows):
            carry, out = body(carry, i, row)
            outs.append(out)
        return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=2), *outs)
    masked = any(masked for row in rows for _, masked in row)
    longest = max(map(len, rows))
    blocks = np.array([[j for j, _ in row] + [0] * (longest - len(row)) for row in rows], np.int32)
    counts = np.array([len(row) for row in rows], np.int32)

    def step(carry, at):
        i, blocks, count = at
        return body(carry, i, {"blocks": blocks, "count": count, "masked": masked})

    carry, outs = lax.scan(step, carry, (np.arange(len(rows), dtype=np.int32), blocks, counts))
    return carry, jax.tree.map(_join, outs)


def _join(x: Array) -> Array:
    """[n, B, K, s, ...] to [B, K, n * s, ...]."""
    x = jnp.moveaxis(x, 0, 2)
    return x.reshape(*x.shape[:2], -1, *x.shape[4:])


def _unrolled(schedule: Schedule) -> bool:
    return schedule.num_pairs <= MAX_UNROLLED_PAIRS


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(static: _Static, smooth: _Smooth, fixed: _Fixed) -> Array:
    return _forward(static, smooth, fixed)[0]


def _forward(static: _Static, smooth: _Smooth, fixed: _Fixed) -> tuple[Array, Any]:
    """The result [B, K, S, G, d], and what the backward pass needs."""
    schedule = static.schedule
    dtype = jnp.promote_types(smooth.q.dtype, jnp.float32)
    batch, kv_heads, _, group, _ = smooth.q.shape
    rows = (batch, kv_heads, schedule.query_block, group)

    def one_row(carry, i, row):
        def one_block(state, j, masked):
            highest, total, out = state
            scores, _ = _scores(static, smooth, fixed, i, j, masked)
            new = jnp.maximum(highest, scores.max(-1))
            weights = jnp.exp(scores - new[..., None])
            shrink = jnp.exp(highest - new)
            total = total * shrink + weights.sum(-1)
            if static.dropout:
                weights *= _kept(static, fixed, i, j, weights)
            v = _slice(smooth.v, j, schedule.key_block, 2)
            out = out * shrink[..., None] + _mix(weights, v)
            return new, total, out

        if smooth.sinks is None:
            highest, total = jnp.full(rows, LOWEST, dtype), jnp.zeros(rows, dtype)
        else:
            sinks = smooth.sinks.reshape(kv_heads, 1, group).astype(dtype)
            highest, total = jnp.broadcast_to(sinks, rows), jnp.ones(rows, dtype)
        out = jnp.zeros((*rows, smooth.v.shape[-1]), dtype)
        highest, total, out = _fold(row, one_block, (highest, total, out))
        total = jnp.where(total == 0, 1, total)
        log_total = jnp.where(highest > LOWEST, highest + jnp.log(total), 0)
        return carry, ((out / total[..., None]).astype(smooth.q.dtype), log_total)

    _, (out, log_total) = _for_each(schedule.rows, _unrolled(schedule), one_row, ())
    return out, (smooth, fixed, out, log_total)


def _mix(weights: Array, v: Array) -> Array:
    """weights [B, K, s, G, t] times v [B, K, t, d]; multiplied in v's dtype, summed in float32."""
    return _dot(weights.astype(v.dtype), v, contract=(4, 2))


def _backward(static: _Static, saved: Any, dout: Array) -> tuple[_Smooth, None]:
    """Gradients; `ds` are those of scores, before and after softcap and bias."""
    smooth, fixed, out, log_total = saved
    schedule = static.schedule
    dtype = log_total.dtype
    along = (dout.astype(dtype) * out.astype(dtype)).sum(-1)

    def one_column(carry, j, column):
        k = _slice(smooth.k, j, schedule.key_block, 2)
        v = _slice(smooth.v, j, schedule.key_block, 2)

        def one_block(state, i, masked):
            (dq, dbias), dk, dv = state
            scores, slope = _scores(static, smooth, fixed, i, j, masked)
            normalizer = _slice(log_total, i, schedule.query_block, 2)
            probabilities = jnp.exp(scores - normalizer[..., None])
            q = _slice(smooth.q, i, schedule.query_block, 2)
            do = _slice(dout, i, schedule.query_block, 2)
            dp = _dot(do, v, contract=(4, 3))
            used = probabilities
            if static.dropout:
                kept = _kept(static, fixed, i, j, probabilities)
                used, dp = probabilities * kept, dp * kept
            dv += _gather_rows(used, do)
            ds = probabilities * (dp - _slice(along, i, schedule.query_block, 2)[..., None])
            if smooth.bias is not None:
                dbias = _add_bias_gradient(dbias, ds, smooth.bias, _indices(static, fixed, i, j))
            if slope is not None:
                ds *= slope
            dq = _add_block(dq, _mix(ds, k), i, schedule.query_block)
            dk += _gather_rows(ds, q)
            return (dq, dbias), dk, dv

        zero = jnp.zeros(k.shape, dtype), jnp.zeros(v.shape, dtype)
        carry, dk, dv = _fold(column, one_block, (carry, *zero))
        return carry, ((dk * smooth.scale).astype(k.dtype), dv.astype(v.dtype))

    unroll = _unrolled(schedule)
    dq = [None] * len(schedule.rows) if unroll else jnp.zeros(smooth.q.shape, dtype)
    dbias = jax.tree.map(lambda x: jnp.zeros(x.shape, dtype), smooth.bias)
    (dq, dbias), (dk, dv) = _for_each(schedule.columns, unroll, one_column, (dq, dbias))
    if unroll:
        empty = jnp.zeros((*smooth.q.shape[:2], schedule.query_block, *smooth.q.shape[3:]), dtype)
        dq = jnp.concatenate([empty if part is None else part for part in dq], axis=2)
    dsinks = None
    if smooth.sinks is not None:
        sinks = smooth.sinks.reshape(along.shape[1], 1, along.shape[3]).astype(dtype)
        dsinks = -(jnp.exp(sinks - log_total) * along).sum((0, 2)).reshape(-1)
        dsinks = dsinks.astype(smooth.sinks.dtype)
    gradient = _Smooth(
        q=(dq * smooth.scale).astype(smooth.q.dtype),
        k=dk,
        v=dv,
        scale=(dq * smooth.q).sum(),
        bias=jax.tree.map(lambda d, x: d.astype(x.dtype), dbias, smooth.bias),
        sinks=dsinks,
    )
    return gradient, None


def _gather_rows(weights: Array, rows: Array) -> Array:
    """weights [B, K, s, G, t], transposed, times rows [B, K, s, G, d]: [B, K, t, d] float32."""
    return lax.dot_general(
        weights.astype(rows.dtype),
        rows,
        (((2, 3), (2, 3)), ((0, 1), (0, 1))),
        preferred_element_type=jnp.promote_types(rows.dtype, jnp.float32),
    )


def _add_block(total: Any, part: Array, i: int | Array, size: int) -> Any:
    """`part` added to block i of an array (in a loop), or of a list of blocks (unrolled)."""
    if isinstance(total, list):
        before = total[i]
        return [*total[:i], part if before is None else before + part, *total[i + 1 :]]
    part += _slice(total, i, size, 2)
    return lax.dynamic_update_slice_in_dim(total, part, i * size, 2)


def _add_bias_gradient(total: Bias, ds: Array, bias: Bias, at: Indices) -> Bias:
    """`total` plus the gradient of `bias` where the scores of a block have gradient `ds`."""
    added, pull = jax.vjp(lambda b: bias_scores(b, at), bias)
    batch, kv_heads, queries, group, keys = ds.shape
    ds = jnp.moveaxis(ds, 3, 2).reshape(batch, kv_heads * group, queries, keys)
    if added.shape[0] == 1:
        ds = ds.sum(0, keepdims=True)
    (gradient,) = pull(ds.astype(added.dtype))
    return jax.tree.map(jnp.add, total, gradient)


_attend.defvjp(_forward, _backward)
