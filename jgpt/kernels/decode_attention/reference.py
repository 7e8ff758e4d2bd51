"""Decode attention as it is defined, of all slots at once. The specification of the rest."""

from dataclasses import replace

import jax.numpy as jnp

from jgpt.kernels.attention.mask import Indices, bias_scores, visible
from jgpt.kernels.attention.reference import masked_softmax
from jgpt.kernels.decode_attention.stored import Stored, contents
from jgpt.typing import Array, Bias, Mask


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
) -> tuple[Array, Array]:
    """See `jgpt.kernels.decode_attention.decode_attention`; always gives both results."""
    kept = contents(stored)
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    k, v = kept.k.astype(dtype), kept.v.astype(dtype)
    if kept.k_scales is not None:
        k, v = k * kept.k_scales[..., None], v * kept.v_scales[..., None]
    batch, queries, heads, width = q.shape
    kv_heads = k.shape[1]
    grouped = q.reshape(batch, queries, kv_heads, heads // kv_heads, width).astype(dtype)
    scores = jnp.einsum("bskgd,bktd->bkgst", grouped, k)
    scores = scores.reshape(batch, heads, queries, -1) * scale
    if softcap:
        scores = softcap * jnp.tanh(scores / softcap)
    at = Indices(query=mask.q_positions, key=kept.positions)
    if bias is not None:
        scores += bias_scores(bias, at)
    allowed = visible(replace(mask, kv_positions=kept.positions), at, None, None)
    allowed = (allowed & (at.query >= 0)[:, :, None])[:, None]
    probabilities = masked_softmax(scores, allowed, sinks)
    grouped = probabilities.reshape(batch, kv_heads, heads // kv_heads, queries, -1)
    out = jnp.einsum("bkgst,bktd->bskgd", grouped, v)
    out = out.reshape(batch, queries, heads, v.shape[-1]).astype(q.dtype)
    return out, _logsumexp(jnp.where(allowed, scores, -jnp.inf), sinks)


def _logsumexp(scores: Array, sinks: Array | None) -> Array:
    """[B, H, Q, T] to [B, Q, H]."""
    if sinks is not None:
        column = jnp.broadcast_to(sinks[:, None, None], (*scores.shape[:3], 1))
        scores = jnp.concatenate([scores, column.astype(scores.dtype)], axis=-1)
    highest = scores.max(-1)
    finite = jnp.where(jnp.isfinite(highest), highest, 0)
    return jnp.moveaxis(jnp.log(jnp.exp(scores - finite[..., None]).sum(-1)) + finite, 1, 2)
