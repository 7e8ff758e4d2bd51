"""Token embedding, and the head that turns hidden states into logits."""

import math

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float, Int

from jgpt.config import ModelConfig
from jgpt.layers.initialization import normal, zeros
from jgpt.typing import Array


class Embed(nn.Module):
    """Rows of `table` [V, D] by token id; one of the sites that adapters attach to."""

    config: ModelConfig

    def setup(self):
        c = self.config
        shape = (c.vocab_size, c.hidden_size)
        self.table = self.param("table", normal(c.init_std, "vocab", "embed"), shape, c.param_dtype)

    def __call__(self, tokens: Int[Array, "B S"]) -> Float[Array, "B S D"]:
        return jnp.take(self.table, tokens, axis=0, mode="clip").astype(self.config.dtype)


def scale_embeddings(config: ModelConfig, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
    """Times sqrt(hidden_size) where the config asks for it (Vaswani et al. 2017; Gemma)."""
    if not config.embedding_scale:
        return x
    return x * jnp.asarray(math.sqrt(config.hidden_size), x.dtype)


class TokenTypes(nn.Module):
    """Rows of `table` [token types, D] by what kind of token it is (Devlin et al. 2019)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, types: Int[Array, "B S"]) -> Float[Array, "B S D"]:
        c = self.config
        shape = (c.token_types, c.hidden_size)
        table = self.param(
            "table", normal(c.init_std, "token_types", "embed"), shape, c.param_dtype
        )
        return jnp.take(table, types, axis=0, mode="clip").astype(c.dtype)


class Head(nn.Module):
    """The output matrix and bias of an untied head; the product is left to the kernels.

    Parameters: `kernel` [D, V] unless tied; `bias` [V] where `head_bias` is set.
    """

    config: ModelConfig

    @nn.compact
    def __call__(
        self, table: Float[Array, "V D"]
    ) -> tuple[Float[Array, "D V"], Float[Array, "V"] | None]:
        """The kernel in `config.param_dtype`, and the bias in float32 or None.

        Args:
            table: the embedding table, which a tied head uses transposed.
        """
        c = self.config
        if c.tied_embeddings:
            kernel = table.T
        else:
            shape = (c.hidden_size, c.vocab_size)
            kernel = self.param(
                "kernel", normal(c.init_std, "embed", "vocab"), shape, c.param_dtype
            )
        bias = None
        if c.head_bias:
            bias = self.param("bias", zeros("vocab"), (c.vocab_size,), c.param_dtype)
            bias = bias.astype(jnp.float32)
        return kernel, bias
