"""Dense feed-forward layers."""

import flax.linen as nn
import jax
from jaxtyping import Float

from jgpt.config import ModelConfig
from jgpt.layers.initialization import hidden_std
from jgpt.layers.linear import Linear
from jgpt.typing import Array


class FFN(nn.Module):
    """`down(act(gate(x)) * up(x))`, or `down(gelu(up(x)))` of the classical MLP.

    swiglu and geglu: Shazeer 2020, "GLU Variants Improve Transformer". `gelu_approximate` chooses
    the tanh form of GELU in both. Parameters: `gate`, `up` [D, F] and `down` [F, D].
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        c = self.config

        def linear(name: str, features: int, axes: tuple[str, str], residual: bool = False):
            std = hidden_std(c, residual=residual)
            return Linear(features, axes, c.ffn_bias, std, c.dtype, c.param_dtype, name=name)

        up = linear("up", c.intermediate_size, ("embed", "mlp"))(x)
        if c.ffn == "gelu":
            h = jax.nn.gelu(up, approximate=c.gelu_approximate)
        else:
            gate = linear("gate", c.intermediate_size, ("embed", "mlp"))(x)
            if c.ffn == "swiglu":
                h = jax.nn.silu(gate) * up
            else:
                h = jax.nn.gelu(gate, approximate=c.gelu_approximate) * up
        return linear("down", c.hidden_size, ("mlp", "embed"), residual=True)(h)
