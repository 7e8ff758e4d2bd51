"""`jax.nn.dot_product_attention`: XLA's own form, cuDNN's on a GPU that has it."""

import jax
import jax.numpy as jnp

from jgpt.typing import Array, Bias, Mask


def supports(
    q: Array,
    k: Array,
    v: Array,
    mask: Mask,
    *,
    softcap: float = 0.0,
    bias: Bias | None = None,
    sinks: Array | None = None,
    dropout: float = 0.0,
    **_,
) -> str:
    """Causal and bidirectional attention without anything else."""
    for name, used in (
        ("a softcap", bool(softcap)),
        ("a bias", bias is not None),
        ("sinks", sinks is not None),
        ("dropout", bool(dropout)),
        ("a window", bool(mask.window)),
        ("a block-sparse pattern", bool(mask.block_size)),
        ("prefix lengths", mask.prefix_lengths is not None),
        ("segment ids", mask.q_segment_ids is not None),
        ("explicit positions", mask.q_positions is not None or mask.kv_positions is not None),
        ("values of another width than the keys", v.shape[-1] != k.shape[-1]),
        ("a causal mask over unequal lengths", mask.causal and q.shape[1] != k.shape[1]),
    ):
        if used:
            return f"jax.nn.dot_product_attention has no {name.removeprefix('a ')} like ours"
    return ""


def attention(q: Array, k: Array, v: Array, mask: Mask, *, scale: float | Array, **_) -> Array:
    """See `jgpt.kernels.attention.attention`."""
    # jax.nn's own scale is a Python float; ours may be an array with a gradient.
    scaled = q * jnp.asarray(scale, q.dtype)
    return jax.nn.dot_product_attention(scaled, k, v, scale=1.0, is_causal=mask.causal)
