"""Attention as it is defined: scores of all pairs, softmax, sum. The specification of the rest."""

from typing import Any

import jax
import jax.numpy as jnp

from jgpt.kernels.attention.mask import bias_scores, row_indices, visible
from jgpt.typing import Array, Bias, Mask


def supports(*arguments, **options) -> str:
    """It can do everything."""
    return ""


def attention(q: Array, k: Array, v: Array, mask: Mask, **options: Any) -> Array:
    """See `jgpt.kernels.attention.attention`."""
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
) -> tuple[Array, Array]:
    """See `jgpt.kernels.attention`; scores [B, H, S, T] are held in float32."""
    batch, queries, heads, width = q.shape
    keys, kv_heads = k.shape[1:3]
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    grouped = q.reshape(batch, queries, kv_heads, heads // kv_heads, width)
    scores = jnp.einsum("bskgd,btkd->bkgst", grouped, k, preferred_element_type=dtype)
    scores = scores.reshape(batch, heads, queries, keys) * scale
    if softcap:
        scores = softcap * jnp.tanh(scores / softcap)
    at = row_indices(mask, queries, keys)
    if bias is not None:
        scores += bias_scores(bias, at)
    allowed = visible(mask, at, mask.q_segment_ids, mask.kv_segment_ids)
    allowed = None if allowed is None else allowed[:, None]
    probabilities, logsumexp = _softmax(scores, allowed, sinks)
    if dropout and dropout_key is not None:
        keep = jax.random.bernoulli(dropout_key, 1 - dropout, probabilities.shape)
        probabilities = jnp.where(keep, probabilities / (1 - dropout), 0)
    probabilities = probabilities.reshape(batch, kv_heads, heads // kv_heads, queries, keys)
    out = jnp.einsum("bkgst,btkd->bskgd", probabilities, v.astype(dtype))
    out = out.reshape(batch, queries, heads, v.shape[-1]).astype(q.dtype)
    return out, logsumexp.swapaxes(1, 2)


def masked_softmax(scores: Array, allowed: Array | None, sinks: Array | None = None) -> Array:
    """Softmax over the last axis with 0 for what is not allowed, and for rows without a key."""
    return _softmax(scores, allowed, sinks)[0]


def _softmax(scores: Array, allowed: Array | None, sinks: Array | None) -> tuple[Array, Array]:
    """`masked_softmax`, and the logarithm of what it divides by; -inf where there is nothing."""
    if allowed is not None:
        scores = jnp.where(allowed, scores, -jnp.inf)
    highest = scores.max(-1, keepdims=True)
    if sinks is not None:
        highest = jnp.maximum(highest, sinks[:, None, None])
    highest = jax.lax.stop_gradient(jnp.where(jnp.isfinite(highest), highest, 0))
    weights = jnp.exp(scores - highest)
    total = weights.sum(-1, keepdims=True)
    if sinks is not None:
        total += jnp.exp(sinks[:, None, None] - highest)
    empty = total == 0
    total = jnp.where(empty, 1, total)
    return weights / total, jnp.where(empty, -jnp.inf, highest + jnp.log(total))[..., 0]
