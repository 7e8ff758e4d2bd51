"""Keys and values of past tokens, layer by layer, as decoding carries them along.

How they lie in memory is `jgpt.kernels.decode_attention.stored`'s matter: `Slots`, a ring of slots
for each row, where a global layer has as many as the longest sequence, a local one no more than its
window, and a new token overwrites the one that has just left the window; or `Pages` of a pool that
all rows share.
"""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from jgpt.config import CacheConfig, ConfigError, ModelConfig
from jgpt.kernels.decode_attention import Pages, Slots, Stored, contents, write
from jgpt.layers.key_value import KeysAndValues
from jgpt.typing import Array, static


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """One layer's cache; what latent attention puts in it is said there."""

    stored: Stored
    source: KeysAndValues | None = None
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
    config: ModelConfig,
    batch_size: int,
    length: int,
    cache: CacheConfig | None = None,
    num_pages: int | None = None,
) -> Cache:
    """An empty cache for rows of up to `length` tokens.

    Args:
        config: of the model.
        batch_size: rows.
        length: tokens of a row, at most.
        cache: in which form, of which dtype; None for the defaults.
        num_pages: size of the pool of pages, of which no row has any (see `allot`); None for as
            many as all rows can fill, each row with its own.

    Raises:
        ConfigError: the model looks at later tokens, has no positions that far out, or its kind of
            attention is not stored in that form.
    """
    cache = cache or CacheConfig()
    if config.attention == "bidirectional":
        raise ConfigError(
            "model.attention='bidirectional' has no cache; decode with 'causal' or 'prefix'"
        )
    if config.position == "learned" and length > config.max_length:
        raise ConfigError(
            f"a cache of {length} tokens is longer than the learned position table; ask for at "
            f"most model.max_length ({config.max_length})"
        )
    if config.latent.kv_rank and (cache.kind == "pages" or cache.dtype == "int8"):
        raise ConfigError(
            f"cache.kind={cache.kind!r} with cache.dtype={cache.dtype!r} cannot be had with latent "
            "attention (model.latent), which is stored compressed; use 'slots' and 'model'"
        )
    layers = tuple(
        KVCache(
            _slots(config, index, batch_size, length, cache)
            if cache.kind == "slots"
            else _pages(config, batch_size, length, cache, num_pages)
        )
        for index in range(config.num_layers)
    )
    return Cache(layers, jnp.zeros((batch_size,), jnp.int32), fresh=True)


def _slots(
    config: ModelConfig, index: int, batch_size: int, length: int, cache: CacheConfig
) -> Slots:
    local = config.layer_kind(index)[0] == "local"
    slots = min(length, config.window) if local else length
    widths = (config.size_of_head, config.size_of_head)
    heads = config.kv_heads
    if config.latent.kv_rank:
        heads, widths = 1, (config.latent.kv_rank, config.latent.rope_dim)
    arrays = _empty(config, cache, (batch_size, heads, slots), widths)
    return Slots(positions=jnp.full((batch_size, slots), -1, jnp.int32), **arrays)


def _pages(
    config: ModelConfig, batch_size: int, length: int, cache: CacheConfig, num_pages: int | None
) -> Pages:
    columns = -(-length // cache.page_size)
    if num_pages is None:
        num_pages = batch_size * columns
        table = jnp.arange(num_pages, dtype=jnp.int32).reshape(batch_size, columns)
    else:
        table = jnp.full((batch_size, columns), -1, jnp.int32)
    shape = (num_pages, config.kv_heads, cache.page_size)
    arrays = _empty(config, cache, shape, (config.size_of_head,) * 2)
    return Pages(table=table, lengths=jnp.zeros((batch_size,), jnp.int32), **arrays)


def _empty(
    config: ModelConfig, cache: CacheConfig, shape: tuple[int, ...], widths: tuple[int, int]
) -> dict[str, Array]:
    dtype = config.dtype if cache.dtype == "model" else cache.dtype
    arrays = {name: jnp.zeros((*shape, width), dtype) for name, width in zip("kv", widths)}
    if dtype == "int8":
        arrays |= {f"{name}_scales": jnp.zeros(shape, jnp.float32) for name in "kv"}
    return arrays


def allot(cache: Cache, table: Int[Array, "B M"], length: Int[Array, "B"]) -> Cache:
    """A paged cache whose rows have other pages (-1 for none) and hold so many tokens of them.

    Args:
        cache: made with pages.
        table: one for all layers, which use the same page numbers in pools of their own.
        length: tokens that each row's pages hold already; 0 for a row that begins.
    """
    layers = tuple(
        dataclasses.replace(
            layer, stored=dataclasses.replace(layer.stored, table=table, lengths=length)
        )
        for layer in cache.layers
    )
    return dataclasses.replace(cache, layers=layers, length=length, fresh=False)


def update(
    cache: KVCache,
    k: Float[Array, "B S K d"],
    v: Float[Array, "B S K d"],
    positions: Int[Array, "B S"],
) -> KVCache:
    """The cache with the new tokens in it; of more than C new ones in a ring, the last C.

    Args:
        positions: of the tokens; -1 for padding, which is not stored.
    """
    return dataclasses.replace(cache, stored=write(cache.stored, k, v, positions))


def past(
    cache: KVCache, dtype: jnp.dtype
) -> tuple[Float[Array, "B T K d"], Float[Array, "B T K d"], Int[Array, "B T"]]:
    """All that is stored, as `attention` takes it, and its positions (-1: nothing)."""
    kept = contents(cache.stored)

    def whole(x: Array, scales: Array | None) -> Array:
        if scales is not None:
            x = x.astype(jnp.float32) * scales[..., None]
        return jnp.moveaxis(x, 1, 2).astype(dtype)

    return whole(kept.k, kept.k_scales), whole(kept.v, kept.v_scales), kept.positions


def valid_positions(
    positions: Int[Array, "B S"], token_mask: Bool[Array, "B S"] | None
) -> Int[Array, "B S"]:
    """Positions with -1 at padding."""
    return positions if token_mask is None else jnp.where(token_mask, positions, -1)
