"""Writing with an encoder-decoder: sources in, targets out, by the same loop as any decoder."""

import dataclasses
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

from jgpt.config import ModelConfig, SampleConfig
from jgpt.inference.generate import Generator, until
from jgpt.models import apply, init_cache
from jgpt.models.source import attach, detach, read_source
from jgpt.typing import Array, PyTree


class SourceGenerator:
    """Writes the target of each source. The encoder runs once; its keys and values are kept."""

    def __init__(
        self,
        model: ModelConfig,
        sample: SampleConfig,
        *,
        eos_id: int,
        forbidden: tuple[int, ...] = (),
        chunk: int = 32,
    ):
        """
        Args:
            model: an encoder-decoder.
            sample: how tokens are drawn (temperature 0 is greedy), and how many at most.
            eos_id: ends a target.
            forbidden: ids that are never drawn.
            chunk: tokens drawn per call to the device.
        """
        self._model = model
        self._eos_id = eos_id
        self._read = jax.jit(partial(read_source, model))
        self._generator = Generator(
            partial(_apply_with_memory, model),
            partial(init_cache, model, cache=sample.cache),
            sample,
            vocab_size=model.vocab_size,
            max_length=model.max_length,
            eos_id=eos_id,
            forbidden=forbidden,
            chunk=chunk,
        )

    def stream(
        self,
        variables: Mapping[str, Any],
        sources: np.ndarray,
        lengths: np.ndarray,
        key: Array,
    ) -> Iterator[np.ndarray]:
        """Chunks [B, at most `chunk`] int32 of target tokens; see `Generator.stream`.

        Args:
            variables: of the model.
            sources: [B, T] int32, padded on the right with anything.
            lengths: [B], from 1 to T.
            key: of sampling.
        """
        sources, lengths = np.asarray(sources, np.int32), np.asarray(lengths, np.int32)
        real = np.arange(sources.shape[1]) < lengths[:, None]
        batch = {"encoder_inputs": sources, "encoder_segment_ids": real.astype(np.int32)}
        memory = self._read(variables, batch)
        start = np.full((len(sources), 1), self._model.decoder_start_id, np.int32)
        ones = np.ones(len(sources), np.int32)
        yield from self._generator.stream({**variables, "memory": memory}, start, ones, key)

    def __call__(
        self,
        variables: Mapping[str, Any],
        sources: np.ndarray,
        lengths: np.ndarray,
        key: Array,
    ) -> list[list[int]]:
        """Target tokens of every row, without the `eos_id` that ended it. Else as `stream`."""
        rows = np.concatenate(list(self.stream(variables, sources, lengths, key)), axis=1)
        return [until(row.tolist(), self._eos_id) for row in rows]


def _apply_with_memory(
    model: ModelConfig, variables: PyTree, batch: dict[str, Array], *, output: str, cache: Any
) -> tuple[Array, Any]:
    """`models.apply` as `Generator` calls it; the memory travels with the variables.

    So the loop's state holds what changes and nothing else.
    """
    weights = {name: tree for name, tree in variables.items() if name != "memory"}
    out, aux = apply(model, weights, batch, output=output, cache=attach(cache, variables["memory"]))
    return out, dataclasses.replace(aux, cache=detach(aux.cache))
