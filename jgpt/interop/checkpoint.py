"""A folder's model as a checkpoint that `jgpt.generate` and `jgpt.main` start from.

The weights go from the files into the checkpoint chunk by chunk: neither the model nor, as a rule,
one whole parameter is ever in memory.
"""

import asyncio
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from jgpt.config import Config, to_dict
from jgpt.interop.weights import Index, Source
from jgpt.training import manifest

CHUNK_BYTES = 64 << 20
"""At most so much of a parameter is read and written at a time."""


@dataclass(frozen=True)
class Leaf:
    """A parameter to be written: an array for Orbax, read when its turn comes."""

    source: Source
    dtype: np.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.source.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize


class LeafHandler(ocp.type_handlers.NumpyHandler):
    """Writes `Leaf`s one after the other, chunk by chunk, where Orbax would write whole arrays.

    `_open_and_write` is Orbax's own step of writing one array to its place, overridden because no
    public one is called when the array's turn comes.
    """

    def __init__(self):
        super().__init__(deepcopy_host_arrays=False)
        self._one_at_a_time = asyncio.Semaphore(1)

    async def serialize(
        self,
        values: Sequence[Leaf],
        infos: Sequence[ocp.type_handlers.ParamInfo],
        args: Sequence[ocp.SaveArgs] | None = None,
    ) -> Any:
        """As Orbax's, with chunks of at most `CHUNK_BYTES`."""
        return await super().serialize(values, infos, [_CHUNKED] * len(values))

    async def _open_and_write(
        self, value: Leaf, tspec: dict[str, Any], ts_context: ts.Context
    ) -> None:
        async with self._one_at_a_time:
            spec = ts.Spec(tspec)
            store = await ts.open(spec, create=True, open=True, context=ts_context)
            for index in chunks(value.shape, store.chunk_layout.write_chunk.shape):
                array = value.source.read(index).astype(value.dtype, copy=False)
                await store[index].write(array)


_CHUNKED = ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES)


def chunks(shape: Sequence[int], size: Sequence[int]) -> Iterator[Index]:
    """The slices of a grid over an array."""
    starts = [range(0, length, step) for length, step in zip(shape, size)]
    for corner in itertools.product(*starts):
        yield tuple(slice(s, min(s + n, end)) for s, n, end in zip(corner, size, shape))


def read_array(directory: Path, path: str) -> np.ndarray:
    """One array of a checkpoint's Orbax files, read chunk by chunk.

    Args:
        directory: of the checkpoint.
        path: of the array, such as `params/embedding/table`.
    """
    files = {
        "driver": "ocdbt",
        "base": f"file://{directory.absolute()}/state",
        "path": f"{path.replace('/', '.')}/",
    }
    store = ts.open({"driver": "zarr", "kvstore": files}, open=True, read=True).result()
    found = np.empty(store.shape, store.dtype.numpy_dtype)
    for index in chunks(store.shape, store.chunk_layout.read_chunk.shape):
        found[index] = store[index].read().result()
    return found


def write_state(directory: Path, tree: Mapping[str, Any]) -> None:
    """Writes nested dicts of `Leaf`s as Orbax files."""
    registry = ocp.type_handlers.create_type_handler_registry((Leaf, LeafHandler()))
    handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
    with ocp.Checkpointer(handler) as writer:
        writer.save(directory, args=ocp.args.PyTreeSave(tree))


def write_checkpoint(
    directory: Path, tree: Mapping[str, Any], config: Config, vocabulary: str
) -> None:
    """A checkpoint of step 0 that holds a model and nothing of an optimizer.

    Args:
        directory: of the checkpoint, `WORKDIR/checkpoints/0`; must not exist.
        tree: `params`, and `selection_bias` where the model has one, as nested dicts of `Leaf`s.
        config: with the model.
        vocabulary: fingerprint of the tokenizer.
    """
    directory.mkdir(parents=True)
    write_state(directory.absolute() / "state", tree)
    files = {
        "config.json": {"config": to_dict(config), "vocabulary": vocabulary},
        "metrics.json": {},
        "data-0.json": {},
    }
    for name, values in files.items():
        text = json.dumps(values, ensure_ascii=False, indent=1) + "\n"
        (directory / name).write_text(text, encoding="utf-8")
    manifest.write(directory)
