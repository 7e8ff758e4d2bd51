"""Decode attention in plain JAX, for any device: a loop over blocks of slots that are in use.

A short cache is one block, straight-line code. A longer one is walked block by block with the
online softmax, from the first block that some query of the batch can see to the last, so the work
follows the longest row and the window and not the size of the cache.
"""

from dataclasses import replace

import jax.numpy as jnp
from jax import lax

from jgpt.kernels.attention.mask import Indices, bias_scores, visible
from jgpt.kernels.decode_attention.stored import Contents, Slots, Stored, contents, num_slots
from jgpt.kernels.device import device_platform
from jgpt.typing import Array, Bias, Mask

BLOCK = 1024
"""Slots in a block, about."""
FEW = 4
"""Up to so many query rows per key/value head, each is multiplied alone on CPU: XLA turns the
keys over for a product of several rows, which costs more than the product."""


def supports(*arguments, **options) -> str:
    """It can do everything."""
    return ""


def decode_attention(
    q: Array,
    stored: Stored,
    mask: Mask,
    *,
    scale: float | Array,
    softcap: float = 0.0,
    bias: Bias | None = None,
    sinks: Array | None = None,
    block: int = BLOCK,
) -> tuple[Array, Array]:
    """See `jgpt.kernels.decode_attention.decode_attention`; always gives both results.

    Args:
        q: see there.
        stored: see there.
        mask: see there.
        scale: see there.
        softcap: see there.
        bias: see there.
        sinks: see there.
        block: slots in a block; of pages, rounded down to whole ones (but one at least).
    """
    batch, queries, heads, width = q.shape
    kv_heads = stored.k.shape[1]
    group = heads // kv_heads
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    rows = jnp.moveaxis(q.reshape(batch, queries, kv_heads, group, width), 1, 3)
    rows = rows.reshape(batch, kv_heads, group * queries, width)

    def logits(kept: Contents) -> Array:
        """[B, K, G Q, n], -inf where a query does not see a slot."""
        s = _scores(rows, kept.k, dtype) * scale
        if kept.k_scales is not None:
            s *= kept.k_scales[:, :, None]
        if softcap:
            s = softcap * jnp.tanh(s / softcap)
        s = s.reshape(batch, heads, queries, -1)
        at = Indices(query=mask.q_positions, key=kept.positions)
        if bias is not None:
            s += bias_scores(bias, at)
        allowed = visible(replace(mask, kv_positions=kept.positions), at, None, None)
        s = jnp.where((allowed & (at.query >= 0)[:, :, None])[:, None], s, -jnp.inf)
        return s.reshape(batch, kv_heads, group * queries, -1)

    def step(carry: tuple[Array, Array, Array], kept: Contents) -> tuple[Array, Array, Array]:
        highest, total, mixed = carry
        s = logits(kept)
        new = jnp.maximum(highest, s.max(-1, keepdims=True))
        base = jnp.where(jnp.isfinite(new), new, 0)
        weights, fade = jnp.exp(s - base), jnp.exp(highest - base)
        total = total * fade + weights.sum(-1, keepdims=True)
        if kept.v_scales is not None:
            weights *= kept.v_scales[:, :, None]
        return (
            new,
            total,
            mixed * fade + _dot(weights.astype(_operand(q, kept.v)), kept.v, 2, dtype),
        )

    start = jnp.full((batch, kv_heads, group * queries, 1), -jnp.inf, dtype)
    if sinks is not None:
        by_row = jnp.repeat(sinks.reshape(kv_heads, group), queries, axis=1)
        start = jnp.broadcast_to(by_row[None, :, :, None], start.shape).astype(dtype)
    mixed = jnp.zeros((batch, kv_heads, group * queries, stored.v.shape[-1]), dtype)
    carry = start, jnp.where(jnp.isfinite(start), 1, 0).astype(dtype), mixed
    slots, size = num_slots(stored), _block(stored, block)
    if slots <= size:
        carry = step(carry, contents(stored))
    else:
        first, stop = _blocks_in_use(stored, mask, slots, size)
        carry = lax.fori_loop(
            first, stop, lambda i, carry: step(carry, _block_contents(stored, i, size)), carry
        )
    highest, total, mixed = carry
    out = mixed / jnp.where(total == 0, 1, total)
    logsumexp = (jnp.where(jnp.isfinite(highest), highest, 0) + jnp.log(total))[..., 0]
    return _ungrouped(out, queries).astype(q.dtype), _ungrouped(logsumexp, queries)


def _ungrouped(x: Array, queries: int) -> Array:
    """[B, K, G Q, ...] to [B, Q, K G, ...]."""
    batch, kv_heads, rows = x.shape[:3]
    x = jnp.moveaxis(x.reshape(batch, kv_heads, rows // queries, queries, *x.shape[3:]), 3, 1)
    return x.reshape(batch, queries, kv_heads * (rows // queries), *x.shape[4:])


def _operand(q: Array, x: Array) -> jnp.dtype:
    """Of the multiplications: integers are exact in any of our float types."""
    return q.dtype if x.dtype == jnp.int8 else jnp.promote_types(q.dtype, x.dtype)


def _scores(rows: Array, k: Array, dtype: jnp.dtype) -> Array:
    """[B, K, R, n] of rows [B, K, R, d] and keys [B, K, n, d]."""
    if rows.shape[2] > FEW or device_platform() != "cpu":
        return _dot(rows, k, 3, dtype)
    alone = jnp.split(rows, rows.shape[2], axis=2)
    return jnp.concatenate([_dot(row, k, 3, dtype) for row in alone], axis=2)


def _dot(rows: Array, x: Array, axis: int, dtype: jnp.dtype) -> Array:
    """rows [B, K, R, m] with x [B, K, ., .] summed over `axis` of x; the cache stays as it lies."""
    operand = _operand(rows, x)
    dimensions = (((3,), (axis,)), ((0, 1), (0, 1)))
    return lax.dot_general(
        rows.astype(operand), x.astype(operand), dimensions, preferred_element_type=dtype
    )


def _block(stored: Stored, block: int) -> int:
    if isinstance(stored, Slots):
        return block
    return max(block // stored.page_size, 1) * stored.page_size


def _block_contents(stored: Stored, i: Array, size: int) -> Contents:
    """Block i; the last one reaches back over its predecessor, whose slots are then left out."""
    start = jnp.minimum(i * size, num_slots(stored) - size)
    kept = contents(stored, start, size)
    again = start + jnp.arange(size) < i * size
    return kept._replace(positions=jnp.where(again, -1, kept.positions))


def _blocks_in_use(stored: Stored, mask: Mask, slots: int, size: int) -> tuple[Array, Array]:
    """The first block in which some query may see something, and the one behind the last."""
    query = mask.q_positions
    if isinstance(stored, Slots):
        key = stored.positions
        used = key >= 0
        if mask.window:
            used &= key > jnp.min(jnp.where(query < 0, slots, query), 1)[:, None] - mask.window
        used = used.any(0)
        first, stop = jnp.argmax(used), slots - jnp.argmax(used[::-1])
        stop = jnp.where(used.any(), stop, 0)
    else:
        first = jnp.zeros((), jnp.int32)
        stop = jnp.max(jnp.where(query.max(1) < 0, 0, stored.lengths))
        if mask.window:
            oldest = jnp.min(jnp.where(query < 0, slots, query))
            first = jnp.clip(oldest - mask.window + 1, 0, slots)
    return (first // size).astype(jnp.int32), (-(-stop // size)).astype(jnp.int32)
