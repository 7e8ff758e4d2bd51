"""Keys and values of past tokens: one ring of slots per layer.

A token at position p lives in slot `p % C`. A global layer has as many slots as the longest
sequence; a local one no more than its window, and a new token overwrites the one that has just left
the window.
"""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from jgpt.config import ConfigError, ModelConfig
from jgpt.typing import Array, static


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """One layer's cache; what latent attention puts in it is said there."""

    k: Float[Array, "B C K d"]
    v: Float[Array, "B C K d"]
    positions: Int[Array, "B C"]
    """int32; -1 marks an empty slot."""
    source: tuple[Float[Array, "B T K d"], Float[Array, "B T K d"]] | None = None
    """Keys and values of an encoder-decoder's source; made in the first call, read in the rest."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """All layers' caches, and how many tokens each row has."""

    layers: tuple[KVCache, ...]
    length: Int[Array, "B"]
    fresh: bool = static(default=False)
    """Known to be empty: the next call need not look into it (a prefill attends to itself)."""
    source_segment_ids: Int[Array, "B T"] | None = None
    """Of an encoder-decoder's source; 0 is padding, None before the first call."""


def init_cache(
    config: ModelConfig, batch_size: int, length: int, dtype: str | None = None
) -> Cache:
    """An empty cache for rows of up to `length` tokens.

    Args:
        dtype: of keys and values; None for `config.dtype`.

    Raises:
        ConfigError: the model looks at later tokens, or has no positions that far out.
    """
    if config.attention == "bidirectional":
        raise ConfigError(
            "model.attention='bidirectional' has no cache; decode with 'causal' or 'prefix'"
        )
    if config.position == "learned" and length > config.max_length:
        raise ConfigError(
            f"a cache of {length} tokens is longer than the learned position table; ask for at "
            f"most model.max_length ({config.max_length})"
        )

    def layer(index: int) -> KVCache:
        local = config.layer_kind(index)[0] == "local"
        slots = min(length, config.window) if local else length
        latent = config.latent
        widths = (config.size_of_head, config.size_of_head)
        heads = config.kv_heads
        if latent.kv_rank:
            heads, widths = 1, (latent.kv_rank, latent.rope_dim)
        k, v = (
            jnp.zeros((batch_size, slots, heads, width), dtype or config.dtype) for width in widths
        )
        return KVCache(k, v, jnp.full((batch_size, slots), -1, jnp.int32))

    layers = tuple(layer(i) for i in range(config.num_layers))
    return Cache(layers, jnp.zeros((batch_size,), jnp.int32), fresh=True)


def update(
    cache: KVCache,
    k: Float[Array, "B S K d"],
    v: Float[Array, "B S K d"],
    positions: Int[Array, "B S"],
) -> KVCache:
    """The cache with the new tokens in it; of more than C new ones in a row, the last C.

    Args:
        positions: of the tokens; -1 for padding, which is not stored.
    """
    slots = cache.positions.shape[1]
    newest = jnp.max(positions, axis=1, keepdims=True)
    keep = (positions >= 0) & (positions > newest - slots)
    index = jnp.where(keep, positions % slots, slots)
    rows = jnp.arange(positions.shape[0])[:, None]

    def put(old: Array, new: Array) -> Array:
        return old.at[rows, index].set(new.astype(old.dtype), mode="drop")

    return dataclasses.replace(
        cache, k=put(cache.k, k), v=put(cache.v, v), positions=put(cache.positions, positions)
    )


def valid_positions(
    positions: Int[Array, "B S"], token_mask: Bool[Array, "B S"] | None
) -> Int[Array, "B S"]:
    """Positions with -1 at padding."""
    return positions if token_mask is None else jnp.where(token_mask, positions, -1)
