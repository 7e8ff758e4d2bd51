"""Blockwise attention in plain JAX: online softmax, memory linear in the sequence, any device.

Only blocks in which the mask can allow something are computed (`schedule.py`). The backward pass
recomputes probabilities from the saved log-sum-exp (Dao et al. 2022, algorithm 4).

Inside, the G = H / K queries that a position has for one key/value head are neighbouring rows: q is
[B, K, R, d] with R = S * G, a block of queries is one run of memory and one matrix, and K and V are
never repeated. Scores are [B, K, r, t] in the forward pass and transposed, [B, K, t, r], in the
backward pass: there, all products then contract the last axis of their left operand, which is what
XLA's CPU backend does well (`jgpt/kernels/matmul.py`). Rows have one axis, not [S, G], because its
loops are slow over arrays whose last axis is short.
"""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jgpt.kernels.attention.mask import Indices, row_indices
from jgpt.kernels.attention.pieces import (
    Fixed,
    Piece,
    Smooth,
    Span,
    Static,
    dot,
    dropout_factors,
    piece_bias,
    piece_scores,
    transposed_scores,
)
from jgpt.kernels.attention.schedule import even_block, make_schedule
from jgpt.kernels.matmul import row_major
from jgpt.typing import Array, Bias, Mask

MAX_UNROLLED = 10
"""Up to so many blocks are unrolled: XLA's CPU backend runs the operations of a loop's body one
after another, and small products on one thread; unrolled, two blocks run side by side. With more of
them, a loop's reuse of the same memory is worth more, and the program stays small."""
LOWEST = -1e29
"""A row maximum never falls below this, so exp(FORBIDDEN - maximum) is 0 in rows without a key."""


def supports(*arguments, **options) -> str:
    """It can do everything."""
    return ""


def attention(q: Array, k: Array, v: Array, mask: Mask, **options: Any) -> Array:
    """See `jgpt.kernels.attention.attention`; options as for `attention_with_logsumexp`."""
    return attention_with_logsumexp(q, k, v, mask, **options)[0]


def attention_with_logsumexp(
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
    known: tuple[Array, Array] | None = None,
    block: int | None = None,
) -> tuple[Array, Array]:
    """See `jgpt.kernels.attention`; `block` bounds the queries and keys of one block.

    Smaller blocks waste less along the diagonal, larger ones multiply faster: None takes 64 up to
    512 tokens, 128 up to 1024 and 256 above, best or close to it on CPU.
    """
    batch, queries, heads = q.shape[:3]
    keys, kv_heads = k.shape[1:3]
    dropout = dropout if dropout_key is not None else 0.0
    block = block or _default_block(max(queries, keys))
    schedule = make_schedule(
        mask, queries, keys, even_block(queries, block), even_block(keys, block)
    )
    padded_queries = len(schedule.rows) * schedule.query_block
    padded_keys = len(schedule.columns) * schedule.key_block
    group = heads // kv_heads

    def by_row(x):
        grouped = _pad(x.reshape(batch, queries, kv_heads, group, -1), padded_queries)
        rows = padded_queries * group
        return jnp.moveaxis(grouped, 2, 1).reshape(batch, kv_heads, rows, -1)

    smooth = Smooth(
        q=by_row(q),
        k=jnp.moveaxis(_pad(k, padded_keys), 2, 1),
        v=jnp.moveaxis(_pad(v, padded_keys), 2, 1),
        scale=jnp.asarray(scale, jnp.promote_types(q.dtype, jnp.float32)),
        bias=bias,
        sinks=sinks,
    )
    at = row_indices(mask, queries, keys)
    if mask.q_segment_ids is not None:
        mask = replace(
            mask,
            q_segment_ids=jnp.repeat(_pad(mask.q_segment_ids, padded_queries), group, axis=1),
            kv_segment_ids=_pad(mask.kv_segment_ids, padded_keys),
        )
    fixed = Fixed(
        mask=mask,
        at=Indices(
            query=jnp.repeat(_pad(at.query, padded_queries), group, axis=1),
            key=_pad(at.key, padded_keys),
        ),
        dropout_key=dropout_key if dropout else None,
    )
    if known is not None:
        known = by_row(known[0]), by_row(known[1])[..., 0]
    static = Static(schedule, keys, group, softcap, dropout)
    out, logsumexp = _attend(static, smooth, fixed, known)

    def by_token(x):
        x = x.reshape(batch, kv_heads, padded_queries, group, -1)
        return jnp.moveaxis(x, 1, 2)[:, :queries].reshape(batch, queries, heads, -1)

    return by_token(out), by_token(logsumexp)[..., 0]


def _default_block(length: int) -> int:
    return 64 if length <= 512 else 128 if length <= 1024 else 256


def _pad(x: Array, length: int) -> Array:
    """Zeros behind axis 1 up to `length`."""
    missing = length - x.shape[1]
    return jnp.pad(x, [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2)) if missing else x


def _for_each(
    lines: tuple[tuple[int, ...], ...], block: int, other: int, body: Callable, carry: Any
) -> tuple[Any, Any]:
    """`carry, out = body(carry, span, fold)` for each line; the outs joined along their axis 2.

    `span` is that of the line, of size `block`. `fold(step, state)` is the state after `state =
    step(state, span)` for each block in the line, of size `other`.
    """
    walk = _unrolled if sum(map(len, lines)) <= MAX_UNROLLED else _looped
    carry, outs = walk(lines, block, other, body, carry)
    return carry, jax.tree.map(_join, outs)


def _unrolled(
    lines: tuple[tuple[int, ...], ...], block: int, other: int, body: Callable, carry: Any
) -> tuple[Any, Any]:
    outs = []
    for i, line in enumerate(lines):

        def fold(step, state, line=line):
            for j in line:
                state = step(state, Span(j * other, other))
            return state

        carry, out = body(carry, Span(i * block, block), fold)
        outs.append(out)
    return carry, jax.tree.map(lambda *x: jnp.stack(x), *outs)


def _looped(
    lines: tuple[tuple[int, ...], ...], block: int, other: int, body: Callable, carry: Any
) -> tuple[Any, Any]:
    counts = np.array([len(line) for line in lines], np.int32)
    table = np.zeros((len(lines), max(1, counts.max())), np.int32)
    for row, line in zip(table, lines):
        row[: len(line)] = line

    def one_line(carry, at):
        i, blocks, count = at

        def fold(step, state):
            def one_block(n, state):
                return step(state, Span(blocks[n] * other, other))

            return lax.fori_loop(0, count, one_block, state)

        return body(carry, Span(i * block, block), fold)

    numbers = np.arange(len(lines), dtype=np.int32)
    return lax.scan(one_line, carry, (numbers, table, counts))


def _join(x: Array) -> Array:
    """[n, B, K, r, ...] to [B, K, n * r, ...]."""
    x = jnp.moveaxis(x, 0, 2)
    return x.reshape(*x.shape[:2], -1, *x.shape[4:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    static: Static, smooth: Smooth, fixed: Fixed, known: tuple[Array, Array] | None
) -> tuple[Array, Array]:
    return _forward(static, smooth, fixed, known)[0]


def _forward(
    static: Static, smooth: Smooth, fixed: Fixed, known: tuple[Array, Array] | None
) -> tuple[tuple[Array, Array], Any]:
    """The result [B, K, R, d] and log-sum-exp [B, K, R], and what the backward pass needs."""
    if known is not None:
        return known, (smooth, fixed, known[0], jnp.maximum(known[1], LOWEST))
    schedule = static.schedule
    dtype = jnp.promote_types(smooth.q.dtype, jnp.float32)
    batch, kv_heads = smooth.q.shape[:2]
    row_block = schedule.query_block * static.group
    shape = (batch, kv_heads, row_block)

    def one_row(carry, rows, fold):
        def one_block(state, columns):
            highest, total, out = state
            piece = Piece(rows, columns)
            scores = piece_scores(static, smooth, fixed, piece)
            new = jnp.maximum(highest, scores.max(-1))
            weights = jnp.exp(scores - new[..., None])
            shrink = jnp.exp(highest - new)
            total = total * shrink + weights.sum(-1)
            if static.dropout:
                weights *= dropout_factors(static, fixed, piece, weights.shape)
            mixed = dot(weights, columns.of(smooth.v, 2), (3, 2))
            return new, total, out * shrink[..., None] + mixed

        if smooth.sinks is None:
            highest, total = jnp.full(shape, LOWEST, dtype), jnp.zeros(shape, dtype)
        else:
            sinks = _sink_rows(static, smooth.sinks.astype(dtype), kv_heads, row_block)
            highest, total = jnp.broadcast_to(sinks, shape), jnp.ones(shape, dtype)
        out = jnp.zeros((*shape, smooth.v.shape[-1]), dtype)
        highest, total, out = fold(one_block, (highest, total, out))
        total = jnp.where(total == 0, 1, total)
        normalizer = highest + jnp.log(total)
        return carry, ((out / total[..., None]).astype(smooth.q.dtype), normalizer)

    _, (out, normalizer) = _for_each(schedule.rows, row_block, schedule.key_block, one_row, ())
    logsumexp = jnp.where(normalizer > LOWEST, normalizer, -jnp.inf)
    return (out, logsumexp), (smooth, fixed, out, normalizer)


def _backward(
    static: Static, saved: Any, cotangents: tuple[Array, Array]
) -> tuple[Smooth, None, None]:
    """Gradients, column by column; `ds` are those of scores, before and after softcap and bias."""
    smooth, fixed, out, normalizer = saved
    dout, dlogsumexp = cotangents
    schedule = static.schedule
    dtype = normalizer.dtype
    # A score's gradient is p * (dp - along) from the result and p * dlogsumexp from the other one.
    along = (dout.astype(dtype) * out.astype(dtype)).sum(-1) - dlogsumexp
    row_block = schedule.query_block * static.group
    k_transposed = row_major(smooth.k.swapaxes(2, 3))

    def one_column(carry, columns, fold):
        k, v = columns.of(smooth.k, 2), columns.of(smooth.v, 2)

        def one_block(state, rows):
            (dq, dbias), dk, dv = state
            piece = Piece(rows, columns)
            scores, slope = transposed_scores(static, smooth, fixed, piece)
            probabilities = jnp.exp(scores - rows.of(normalizer, 2)[:, :, None])
            do = rows.of(dout, 2)
            dp = dot(v, do, (3, 3))
            used = probabilities
            if static.dropout:
                shape = dp.swapaxes(2, 3).shape
                factors = dropout_factors(static, fixed, piece, shape).swapaxes(2, 3)
                used, dp = used * factors, dp * factors
            dv += dot(used, do, (3, 2))
            ds = probabilities * (dp - rows.of(along, 2)[:, :, None])
            if smooth.bias is not None:
                dbias = _add_bias_gradient(static, dbias, ds, smooth.bias, fixed, piece)
            if slope is not None:
                ds *= slope
            ds = ds.astype(k.dtype)
            part = rows.of(dq, 3) + dot(columns.of(k_transposed, 3), ds, (3, 2))
            dq = lax.dynamic_update_slice_in_dim(dq, part, rows.start, 3)
            dk += dot(ds, rows.of(smooth.q, 2), (3, 2))
            return (dq, dbias), dk, dv

        zero = jnp.zeros(k.shape, dtype), jnp.zeros(v.shape, dtype)
        carry, dk, dv = fold(one_block, (carry, *zero))
        return carry, ((dk * smooth.scale).astype(k.dtype), dv.astype(v.dtype))

    dq = jnp.zeros(smooth.q.swapaxes(2, 3).shape, dtype)
    dbias = jax.tree.map(lambda x: jnp.zeros(x.shape, dtype), smooth.bias)
    (dq, dbias), (dk, dv) = _for_each(
        schedule.columns, schedule.key_block, row_block, one_column, (dq, dbias)
    )
    # Of a single block, XLA would turn the transpose of the product into a product of other
    # operands, which its CPU backend cannot run in bfloat16.
    dq = lax.optimization_barrier(dq).swapaxes(2, 3)
    gradient = Smooth(
        q=(dq * smooth.scale).astype(smooth.q.dtype),
        k=dk,
        v=dv,
        scale=(dq * smooth.q).sum(),
        bias=jax.tree.map(lambda d, x: d.astype(x.dtype), dbias, smooth.bias),
        sinks=_sinks_gradient(static, smooth.sinks, normalizer, along),
    )
    return gradient, None, None


def _add_bias_gradient(
    static: Static, total: Bias, ds: Array, bias: Bias, fixed: Fixed, piece: Piece
) -> Bias:
    """`total` plus the gradient of `bias` where the scores [B, K, t, r] have gradient `ds`."""
    added, pull = jax.vjp(lambda b: piece_bias(static, b, fixed, piece, ds.shape[1]), bias)
    if added.shape[0] == 1:
        ds = ds.sum(0, keepdims=True)
    (gradient,) = pull(ds.swapaxes(2, 3).astype(added.dtype))
    return jax.tree.map(jnp.add, total, gradient)


def _sink_rows(static: Static, sinks: Array, kv_heads: int, rows: int) -> Array:
    """[H] sinks as [K, rows], each row that of its query head."""
    return jnp.tile(sinks.reshape(kv_heads, static.group), (1, rows // static.group))


def _sinks_gradient(
    static: Static, sinks: Array | None, normalizer: Array, along: Array
) -> Array | None:
    """A sink's probability takes from what the other probabilities mix."""
    if sinks is None:
        return None
    _, kv_heads, rows = along.shape
    logits = _sink_rows(static, sinks.astype(along.dtype), kv_heads, rows)
    taken = (jnp.exp(logits - normalizer) * along).sum(0)
    return -taken.reshape(kv_heads, -1, static.group).sum(1).reshape(-1).astype(sinks.dtype)


_attend.defvjp(_forward, _backward)
