"""Self-attention with everything around the kernel: projections, positions, norms, cache."""

import dataclasses
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from jgpt.config import ModelConfig
from jgpt.kernels.decode_attention import Pages, decode_attention
from jgpt.layers.cache import KVCache, past, update, valid_positions
from jgpt.layers.initialization import Constant, hidden_std, parameter, zeros
from jgpt.layers.key_value import KeysAndValues, KeyValue, attend, with_prefix
from jgpt.layers.linear import Linear
from jgpt.layers.norm import Norm
from jgpt.layers.positions import Rotary, rotate
from jgpt.typing import Array, Bias, Mask, static


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Relative:
    """Distances between tokens as vectors, shared by all layers (DeBERTa)."""

    embeddings: Float[Array, "buckets D"]
    buckets: Int[Array, "B S S"]
    """Row of `embeddings` for query index and key index; B may be 1."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Context:
    """What all layers of one forward pass share; computed once."""

    masks: dict[str, Mask]
    """Per kind of attention layer, over the tokens of this call (indices are `arange`)."""
    rotary: dict[str, Rotary]
    """Per kind; empty without rotary positions."""
    bias: Bias | None
    positions: Int[Array, "B S"]
    token_mask: Bool[Array, "B S"] | None
    """False at padding; None when there is none."""
    fresh: bool = static(default=False)
    """The cache, if there is one, is empty."""
    source: Float[Array, "B T D"] | None = None
    """What a decoder attends to; None in other models, and where the cache has its keys."""
    cross_mask: Mask | None = None
    """Which source tokens each token sees."""
    relative: Relative | None = None
    """Embeddings of distances, of disentangled attention."""


def attention_scale(config: ModelConfig) -> float:
    """What scores are multiplied by: `attention_scale / sqrt(d)`; with muP, over d instead."""
    d = config.size_of_head
    return config.attention_scale / (d if config.mup_base_width else d**0.5)


def head_projection(config: ModelConfig, count: int, axis: str, name: str | None = None) -> Linear:
    """From the stream to `count` heads side by side, their logical axis being `axis`."""
    return Linear(
        count * config.size_of_head,
        ("embed", axis),
        config.attention_bias,
        hidden_std(config),
        config.dtype,
        config.param_dtype,
        name=name,
    )


def output_projection(config: ModelConfig, name: str | None = None) -> Linear:
    """From all heads side by side back to the stream."""
    return Linear(
        config.hidden_size,
        ("heads", "embed"),
        config.attention_output_bias,
        hidden_std(config, residual=True),
        config.dtype,
        config.param_dtype,
        name=name,
    )


class Attention(nn.Module):
    """Multi-head, grouped-query or multi-query self-attention of one layer.

    Parameters: `query` [D, H d], `key`, `value` [D, K d], `output` [H d, D]; where configured their
    biases, `query_norm`, `key_norm` (over d), `sinks` [H] and `scale` [].

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
        """The layer's output and its updated cache.

        Args:
            dropout_key: given in training where probabilities are dropped.
        """
        c = self.config
        q, kv = self._project(x, context)
        scale, sinks = attention_scale(c), None
        if c.learned_attention_scale:
            scale = self.param("scale", parameter(Constant(scale)), (), c.param_dtype)
        if c.attention_sinks:
            sinks = self.param("sinks", zeros("head_count"), (c.num_heads,), c.param_dtype)
        mask = context.masks[self.kind]
        scores = {
            "scale": scale,
            "softcap": c.attention_softcap,
            "bias": context.bias,
        }
        if cache is not None and finds_itself(cache, mask, context):
            mask = cached_mask(mask, context)
            cache = update(cache, kv.k, kv.v, mask.q_positions)
            backend = "reference" if c.attention_backend == "reference" else "auto"
            y, logsumexp = decode_attention(
                q, cache.stored, mask, sinks=sinks, with_logsumexp=True, backend=backend, **scores
            )
            if kv.prefix is not None:
                y = with_prefix(y, logsumexp, q, kv.prefix, positions=context.positions, **scores)
        else:
            if cache is not None:
                k, v, mask, cache = through_cache(cache, kv.k, kv.v, mask, context)
                kv = KeysAndValues(k, v, kv.prefix)
            y = attend(
                q,
                kv,
                mask,
                positions=context.positions,
                sinks=sinks,
                dropout=0.0 if dropout_key is None else c.attention_dropout,
                dropout_key=dropout_key,
                backend=c.attention_backend,
                **scores,
            )
        output = output_projection(c, name="output")
        return output(y.reshape(*x.shape[:-1], -1)), cache

    def _project(self, x: Float[Array, "B S D"], context: Context) -> tuple[Array, KeysAndValues]:
        """q [B,S,H,d], k and v [B,S,K,d], normalised and rotated, with the prefix."""
        c = self.config

        def heads(name: str, count: int, axis: str) -> Array:
            linear = head_projection(c, count, axis, name=name)
            return linear(x).reshape(*x.shape[:-1], count, c.size_of_head)

        q = heads("query", c.num_heads, "heads")
        k = heads("key", c.kv_heads, "kv_heads")
        v = heads("value", c.kv_heads, "kv_heads")
        if c.qk_norm:
            q, k = Norm(c, name="query_norm")(q), Norm(c, name="key_norm")(k)
        if c.position == "rope":
            rotary = context.rotary[self.kind]
            q, k = rotate(q, rotary), rotate(k, rotary)
        return q, KeyValue(name="key_value")(k, v)


def finds_itself(cache: KVCache, mask: Mask, context: Context) -> bool:
    """Whether new tokens can be stored first and then find all they see in the cache.

    Not in an empty cache, where reading is more work than attending to themselves, and not where
    several may push each other out of a window's ring.
    """
    if context.fresh or mask.prefix_lengths is not None:
        return False
    alone = context.positions.shape[1] == 1
    return alone or not mask.window or isinstance(cache.stored, Pages)


def cached_mask(mask: Mask, context: Context) -> Mask:
    """`mask` for queries at their positions in a row that is one text; padding sees nothing."""
    positions = valid_positions(context.positions, context.token_mask)
    return dataclasses.replace(mask, q_segment_ids=None, kv_segment_ids=None, q_positions=positions)


def through_cache(
    cache: KVCache, k: Array, v: Array, mask: Mask, context: Context
) -> tuple[Array, Array, Mask, KVCache]:
    """Keys, values and mask to attend with, and the cache with the new tokens in it.

    Or what keys and values are made of, where the cache holds that.

    An empty cache has nothing to add. One new token is stored first and finds itself there. Several
    may push each other out of a window's ring, so they attend to the old slots and to themselves.
    """
    positions = valid_positions(context.positions, context.token_mask)
    new = update(cache, k, v, positions)
    if context.fresh:
        return k, v, mask, new
    if k.shape[1] == 1:
        k, v, kv_positions = past(new, k.dtype)
    else:
        keys, values, kv_positions = past(cache, k.dtype)
        k, v = jnp.concatenate([keys, k], axis=1), jnp.concatenate([values, v], axis=1)
        kv_positions = jnp.concatenate([kv_positions, positions], axis=1)
    mask = dataclasses.replace(cached_mask(mask, context), kv_positions=kv_positions)
    return k, v, mask, new
