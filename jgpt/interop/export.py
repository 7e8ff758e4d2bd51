"""A model as a Hugging Face folder: config, safetensors in shards with their index, tokenizer.

Tensors are made and written one after the other. The folder gets its name when it is complete.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jgpt.config import ModelConfig
from jgpt.interop.configs import write_config
from jgpt.interop.description import Family, InteropError
from jgpt.interop.folder import CONFIG_FILE, GENERATION_FILE, INDEX_FILE, SINGLE_FILE
from jgpt.interop.tensor_files import Shape, shards, write_file
from jgpt.interop.weights import Use, plan

LARGEST_SHARD = 5_000_000_000
"""Bytes of one file, unless told otherwise."""
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def export(
    target: Path,
    model: ModelConfig,
    parameter: Callable[[str], np.ndarray],
    *,
    dtype: np.dtype,
    family: str = "",
    extra: Mapping[str, Any] | None = None,
    generation: Mapping[str, Any] | None = None,
    files: Mapping[str, bytes] | None = None,
    largest_shard: int = LARGEST_SHARD,
) -> Family:
    """Writes a folder that `transformers` of version 4 and 5 load.

    Args:
        target: the folder; it must not exist.
        model: its architecture.
        parameter: path (layers unrolled, see `weights.unrolled_shapes`) to value. It is called for
            all layers of one kind of parameter in turn.
        dtype: of the tensors in the files.
        family: name of the family; "" for the first that has such models.
        extra: fields of `config.json` beside the architecture's (token ids).
        generation: content of `generation_config.json`; None for the token ids of `extra`.
        files: further files by name (tokenizer).
        largest_shard: bytes; more make several files and an index.

    Returns:
        The family that was written.

    Raises:
        InteropError: no family has such models, or `target` exists.
    """
    chosen, config = write_config(model, family)
    name = np.dtype(dtype).name
    extra = dict(extra or {})
    config = extra | config | {"dtype": name, "torch_dtype": name}
    uses = sorted(plan(chosen, model), key=lambda use: chosen.tensors.index(use.row))
    values = _Values(parameter, uses, model, np.dtype(dtype))
    ids = {key: extra[key] for key in TOKEN_IDS if extra.get(key) is not None}
    with complete_or_nothing(target) as partial:
        write_json(partial / CONFIG_FILE, config)
        write_json(partial / GENERATION_FILE, generation if generation is not None else ids)
        for file, content in (files or {}).items():
            (partial / file).write_bytes(content)
        _write_tensors(partial, values, largest_shard)
    return chosen


@contextmanager
def complete_or_nothing(target: Path) -> Iterator[Path]:
    """A folder beside `target` that gets its name at the end, and vanishes after an error.

    Raises:
        InteropError: `target` exists, or its parent cannot be written.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InteropError(f"{target} exists; remove it or choose another folder")
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise InteropError(f"{target} cannot be written ({error.strerror})") from error
    try:
        yield partial
        partial.replace(target)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            raise InteropError(f"{target} cannot be written ({error.strerror})") from error
        raise


def write_json(path: Path, values: Any) -> None:
    """As other libraries format their JSON files."""
    text = json.dumps(values, ensure_ascii=False, indent=2, sort_keys=True)
    path.write_text(text + "\n", encoding="utf-8")


@dataclass
class _Values:
    """Their tensors, by name, made of ours when they are asked for."""

    parameter: Callable[[str], np.ndarray]
    uses: list[Use]
    model: ModelConfig
    dtype: np.dtype
    _parts: tuple[Use, list[np.ndarray]] | None = field(default=None, init=False)

    def __post_init__(self):
        self._where = {name: (use, e) for use in self.uses for e, name in enumerate(use.names)}

    def shapes(self) -> dict[str, Shape]:
        return {
            name: Shape(tuple(use.row.transform.shape(use.shapes, self.model)), self.dtype)
            for name, (use, _) in self._where.items()
        }

    def __call__(self, name: str) -> np.ndarray:
        use, expert = self._where[name]
        if self._parts is None or self._parts[0] is not use:
            self._parts = None  # before the next are read
            self._parts = (use, [self.parameter(path) for path in use.parts])
        parts = self._parts[1]
        if use.stacked:
            parts = [part[expert] for part in parts]
        return use.row.transform.write(parts, self.model)


def _write_tensors(folder: Path, values: _Values, largest_shard: int) -> None:
    shapes = values.shapes()
    groups = shards(shapes, largest_shard)
    metadata = {"format": "pt"}
    if len(groups) == 1:
        write_file(folder / SINGLE_FILE, shapes, values, metadata)
        return
    places = {}
    for number, group in enumerate(groups, start=1):
        name = f"model-{number:05}-of-{len(groups):05}.safetensors"
        write_file(folder / name, group, values, metadata)
        places |= dict.fromkeys(group, name)
    total = sum(shape.size for shape in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    write_json(folder / INDEX_FILE, index)
