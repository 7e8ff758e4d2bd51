"""RMSNorm and LayerNorm over the last axis; statistics in float32."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from jgpt.config import ModelConfig
from jgpt.layers.initialization import ones, zeros
from jgpt.typing import Array


def rms_norm(
    x: Float[Array, "... D"], scale: Float[Array, "D"], epsilon: float
) -> Float[Array, "... D"]:
    """`x / sqrt(mean(x**2) + epsilon) * scale` in float32 (Zhang and Sennrich 2019)."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + epsilon) * scale


def layer_norm(
    x: Float[Array, "... D"],
    scale: Float[Array, "D"],
    bias: Float[Array, "D"] | float,
    epsilon: float,
) -> Float[Array, "... D"]:
    """`(x - mean) / sqrt(variance + epsilon) * scale + bias` in float32 (Ba et al. 2016)."""
    x = x.astype(jnp.float32)
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + epsilon) * scale + bias


class Norm(nn.Module):
    """The norm that `config.norm` names; the result has `config.dtype`.

    Parameters: `scale` [D], and `bias` [D] of a LayerNorm with `norm_bias`. With `norm_unit_offset`
    the scale is stored minus one (Gemma), so that it starts at 0 and weight decay pulls it to the
    identity.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        c = self.config
        start = zeros("norm") if c.norm_unit_offset else ones("norm")
        scale = self.param("scale", start, x.shape[-1:], c.param_dtype).astype(jnp.float32)
        if c.norm_unit_offset:
            scale = scale + 1.0
        if c.norm == "rmsnorm":
            y = rms_norm(x, scale, c.norm_epsilon)
        else:
            bias = 0.0
            if c.norm_bias:
                bias = self.param("bias", zeros("norm"), x.shape[-1:], c.param_dtype)
                bias = bias.astype(jnp.float32)
            y = layer_norm(x, scale, bias, c.norm_epsilon)
        return y.astype(c.dtype)
