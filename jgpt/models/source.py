"""An encoder-decoder's source, read once and kept for all that is written of it."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Int

from jgpt.config import ModelConfig
from jgpt.layers.cache import Cache, init_cache
from jgpt.layers.key_value import KeysAndValues
from jgpt.models.forward import apply
from jgpt.typing import Array, Batch


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Memory:
    """What every layer of the decoder attends to."""

    layers: tuple[KeysAndValues, ...]
    segment_ids: Int[Array, "B T"] | None
    """of the source; 0 is padding"""


def read_source(
    config: ModelConfig, variables: Mapping[str, Any], batch: Batch, **options: Any
) -> Memory:
    """Runs the encoder, and makes every decoder layer's keys and values of its output.

    Args:
        batch: `encoder_inputs` [B, T], optional `encoder_segment_ids` and `encoder_positions`.
        options: `apply`'s, such as adapters ask for (`peft.bind` takes this function too).
    """
    nothing = jnp.zeros((batch["encoder_inputs"].shape[0], 1), jnp.int32)
    source = {name: value for name, value in batch.items() if name.startswith("encoder_")}
    # The decoder is given one padding token, which leaves no trace, to make them on its way.
    _, aux = apply(
        config,
        variables,
        {**source, "inputs": nothing, "segment_ids": nothing},
        output="hidden",
        cache=init_cache(config, nothing.shape[0], 1),
        **options,
    )
    layers = tuple(layer.source for layer in aux.cache.layers)
    return Memory(layers, aux.cache.source_segment_ids)


def attach(cache: Cache, memory: Memory) -> Cache:
    """`cache` with a source to attend to."""
    layers = tuple(
        dataclasses.replace(layer, source=source)
        for layer, source in zip(cache.layers, memory.layers, strict=True)
    )
    return dataclasses.replace(cache, layers=layers, source_segment_ids=memory.segment_ids)


def detach(cache: Cache) -> Cache:
    """`cache` with the target's own keys and values alone."""
    layers = tuple(dataclasses.replace(layer, source=None) for layer in cache.layers)
    return dataclasses.replace(cache, layers=layers, source_segment_ids=None)
