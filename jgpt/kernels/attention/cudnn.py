"""cuDNN's flash attention through `jax.nn.dot_product_attention`, on NVIDIA GPUs that have it.

It stands before our own GPU kernels: NVIDIA writes it for each generation with the copy engines and
warp roles that a Triton program does not reach, and publishes higher rates on Hopper. It knows
causal and bidirectional masks, and a window over a causal one; whatever else is asked for is ours
to do. Its backward pass sums dq with atomics: two runs may differ in the last bits.
"""

import jax
import jax.numpy as jnp

from jgpt.kernels.device import device_kind
from jgpt.kernels.nvidia import PREFIX
from jgpt.typing import Array, Bias, Mask


def supports(
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
    **_,
) -> str:
    """Why not, or ''. Types, widths and versions are for the library itself to judge."""
    if not device_kind().startswith(PREFIX):
        return "cuDNN runs on NVIDIA GPUs"
    for name, used in (
        ("softcap", bool(softcap)),
        ("bias like ours", bias is not None),
        ("sinks", sinks is not None),
        ("dropout like ours", bool(dropout)),
        ("window without a causal mask", bool(mask.window) and not mask.causal),
        ("block-sparse pattern", bool(mask.block_size)),
        ("prefix lengths", mask.prefix_lengths is not None),
        ("segment ids", mask.q_segment_ids is not None),
        ("explicit positions", mask.q_positions is not None or mask.kv_positions is not None),
        ("values of another width than the keys", v.shape[-1] != k.shape[-1]),
        ("causal mask over unequal lengths like ours", mask.causal and q.shape[1] != k.shape[1]),
    ):
        if used:
            return f"cuDNN's attention has no {name}"
    try:
        jax.eval_shape(lambda q, k, v: attention(q, k, v, mask, scale=1.0), q, k, v)
    except (NotImplementedError, RuntimeError, ValueError) as error:
        return f"cuDNN's attention: {error}"
    return ""


def attention(q: Array, k: Array, v: Array, mask: Mask, *, scale: float | Array, **_) -> Array:
    """See `jgpt.kernels.attention.attention`."""
    # Its own scale is a Python float; ours may be an array with a gradient.
    if not isinstance(scale, float | int):
        q, scale = q * jnp.asarray(scale, q.dtype), 1.0
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        scale=float(scale),
        is_causal=mask.causal,
        local_window_size=(mask.window - 1, 0) if mask.window else None,
        implementation="cudnn",
    )
