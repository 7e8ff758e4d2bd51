"""Multi-head latent attention (DeepSeek-V2, DeepSeek-AI 2024, section 2.1).

Keys and values of all heads are made of one short vector per token, and that vector is what the
cache holds. Rotary positions do not go through such a map, so every head's query and key have
a second part that is rotated; the key's is shared by all heads and cached beside the vector.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from jgpt.config import ModelConfig
from jgpt.layers.attention import (
    Context,
    attention_scale,
    output_projection,
    through_cache,
)
from jgpt.layers.cache import KVCache
from jgpt.layers.initialization import hidden_std
from jgpt.layers.key_value import KeysAndValues, KeyValue, attend
from jgpt.layers.linear import Linear
from jgpt.layers.norm import Norm
from jgpt.layers.positions import rotate
from jgpt.typing import Array

NORM_EPSILON = 1e-6
"""Of the norms of compressed vectors, whatever the model's own is (as in DeepSeek's release)."""


class LatentAttention(nn.Module):
    """Latent attention of one layer; `config.latent` gives the widths.

    With n = nope_dim, p = rope_dim, u = value_dim, r = kv_rank, c = query_rank and H heads the
    parameters are `query` [D, H (n + p)], or with a compressed query `query_down` [D, c],
    `query_norm` [c] and `query_up` [c, H (n + p)]; `key_value_down` [D, r + p], `key_value_norm`
    [r], `key_value_up` [r, H (n + u)] and `output` [H u, D].

    Attributes:
        kind: `global` or `local`.
    """

    config: ModelConfig
    kind: str

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B S D"],
        context: Context,
        cache: KVCache | None = None,
        dropout_key: Array | None = None,
    ) -> tuple[Float[Array, "B S D"], KVCache | None]:
        """As `jgpt.layers.attention.Attention`; the cache's k is the compressed vector [B,1,C,r],
        its v the shared rotated key [B,1,C,p]."""
        c = self.config
        q = self._query(x, context)
        latent, shared_key = self._compressed(x, context)
        mask = context.masks[self.kind]
        if cache is not None:
            latent, shared_key, mask, cache = through_cache(
                cache, latent, shared_key, mask, context
            )
        y = attend(
            q,
            self._expanded(latent, shared_key),
            mask,
            scale=attention_scale(c),
            softcap=c.attention_softcap,
            dropout=0.0 if dropout_key is None else c.attention_dropout,
            dropout_key=dropout_key,
            backend=c.attention_backend,
        )
        return output_projection(c, name="output")(y.reshape(*x.shape[:-1], -1)), cache

    def _query(self, x: Float[Array, "B S D"], context: Context) -> Float[Array, "B S H d"]:
        c = self.config
        width = c.num_heads * c.size_of_head
        if c.latent.query_rank:
            down = self._linear(
                "query_down", c.latent.query_rank, ("embed", "latent"), c.attention_bias
            )
            x = self._norm("query_norm")(down(x))
            q = self._linear("query_up", width, ("latent", "heads"))(x)
        else:
            q = self._linear("query", width, ("embed", "heads"))(x)
        q = q.reshape(*x.shape[:-1], c.num_heads, c.size_of_head)
        plain, rotated = jnp.split(q, [c.latent.nope_dim], axis=-1)
        return jnp.concatenate([plain, rotate(rotated, context.rotary[self.kind])], axis=-1)

    def _compressed(
        self, x: Float[Array, "B S D"], context: Context
    ) -> tuple[Float[Array, "B S 1 r"], Float[Array, "B S 1 p"]]:
        """What is cached of each token."""
        c = self.config
        width = c.latent.kv_rank + c.latent.rope_dim
        down = self._linear("key_value_down", width, ("embed", "latent"), c.attention_bias)
        latent, key = jnp.split(down(x)[:, :, None], [c.latent.kv_rank], axis=-1)
        return self._norm("key_value_norm")(latent), rotate(key, context.rotary[self.kind])

    def _expanded(
        self, latent: Float[Array, "B T 1 r"], shared_key: Float[Array, "B T 1 p"]
    ) -> KeysAndValues:
        c = self.config
        width = c.latent.nope_dim + c.latent.value_dim
        up = self._linear("key_value_up", c.num_heads * width, ("latent", "heads"))
        heads = up(latent[:, :, 0]).reshape(*latent.shape[:2], c.num_heads, width)
        plain, v = jnp.split(heads, [c.latent.nope_dim], axis=-1)
        shared = jnp.broadcast_to(shared_key, (*plain.shape[:3], c.latent.rope_dim))
        k = jnp.concatenate([plain, shared.astype(plain.dtype)], axis=-1)
        return KeyValue(name="key_value")(k, v)

    def _linear(
        self, name: str, features: int, axes: tuple[str, str], use_bias: bool = False
    ) -> Linear:
        c = self.config
        return Linear(features, axes, use_bias, hidden_std(c), c.dtype, c.param_dtype, name=name)

    def _norm(self, name: str) -> Norm:
        changes = {"norm": "rmsnorm", "norm_epsilon": NORM_EPSILON, "norm_unit_offset": False}
        return Norm(dataclasses.replace(self.config, **changes), name=name)
