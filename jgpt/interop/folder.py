"""A Hugging Face model folder, opened and checked: config, safetensors files, their index."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jgpt.config import ModelConfig
from jgpt.interop.configs import family_of, read_config
from jgpt.interop.description import Family, InteropError
from jgpt.interop.tensor_files import Entry, TensorFile
from jgpt.training.manifest import sha256

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
HASHES = ("*.sha256", "sha256sum*", "SHA256SUM*")
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "spiece.model", "spm.model", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
    "chat_template.jinja", "chat_template.json", "tekken.json",
)  # fmt: skip


@dataclass(frozen=True)
class Folder:
    """A folder whose files are all there."""

    path: Path
    config: Mapping[str, Any]
    """the content of `config.json`"""
    files: Mapping[str, TensorFile]
    """tensor name to the file that has it"""

    def entry(self, name: str) -> Entry:
        return self.files[name].entries[name]

    def view(self, name: str) -> np.ndarray:
        """A tensor as a view of its memory-mapped file."""
        return self.files[name].view(name)

    def release(self, name: str) -> None:
        """Lets go of a tensor's pages."""
        self.files[name].release(name)

    @property
    def family(self) -> Family:
        """Raises `InteropError` where it is not known."""
        return family_of(self.config)

    @property
    def model(self) -> ModelConfig:
        """The architecture. Raises `InteropError` where our models do not have it."""
        return read_config(self.family, self.config)


def open_folder(path: str | Path) -> Folder:
    """Opens a folder and checks that it is whole. No tensor is read, unless there are hashes.

    Files `*.sha256` and `SHA256SUMS` with lines of `sha256sum` are believed: what they name must
    be there and have that hash.

    Raises:
        InteropError: what is missing or damaged, in one line.
    """
    path = Path(path)
    if not path.is_dir():
        raise InteropError(f"there is no folder {str(path)!r}; give that of a model")
    config = read_json(path / CONFIG_FILE)
    names = _shard_names(path)
    check_hashes(path)
    opened = {name: TensorFile(path / name) for name in names}
    files: dict[str, TensorFile] = {}
    for name, file in opened.items():
        for tensor in file.entries:
            if tensor in files:
                raise InteropError(f"{path}: {tensor} is in {files[tensor].path.name} and {name}")
            files[tensor] = file
    _check_index(path, files)
    return Folder(path, config, files)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        InteropError: it is not there, or broken.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InteropError(f"{path.parent} has no {path.name}; it is no model folder") from error
    except (OSError, ValueError) as error:
        raise InteropError(f"{path} cannot be read ({error}); fetch it again") from error
    if not isinstance(values, dict):
        raise InteropError(f"{path} is not a JSON object; fetch it again")
    return values


def _shard_names(path: Path) -> list[str]:
    """Names of the safetensors files.

    Raises:
        InteropError: there are none, or one of the index is missing.
    """
    if (path / INDEX_FILE).is_file():
        names = sorted(set(_weight_map(path).values()))
        missing = [name for name in names if not (path / name).is_file()]
        if missing:
            raise InteropError(
                f"{path}: {len(missing)} of {len(names)} shards are missing "
                f"({', '.join(missing[:4])}); fetch them"
            )
        return names
    if (path / SINGLE_FILE).is_file():
        return [SINGLE_FILE]
    if any(file for pattern in PICKLES for file in path.glob(pattern)):
        raise InteropError(
            f"{path} has its weights as pickles only, which can run any code when they are read; "
            "save the model again with safetensors"
        )
    raise InteropError(f"{path} has neither {SINGLE_FILE} nor {INDEX_FILE}; fetch the weights")


def _weight_map(path: Path) -> dict[str, str]:
    weights = read_json(path / INDEX_FILE).get("weight_map")
    if not isinstance(weights, dict) or not weights:
        raise InteropError(f"{path / INDEX_FILE} has no weight_map; fetch it again")
    inside = all(isinstance(n, str) and Path(n).name == n for n in weights.values())
    if not inside:
        raise InteropError(f"{path / INDEX_FILE} names files outside the folder")
    return weights


def _check_index(path: Path, files: Mapping[str, TensorFile]) -> None:
    if not (path / INDEX_FILE).is_file():
        return
    for tensor, name in _weight_map(path).items():
        if tensor not in files or files[tensor].path.name != name:
            raise InteropError(f"{path}: the index has {tensor} in {name}, where it is not")


def check_hashes(path: Path) -> int:
    """Compares files with the hashes that lie beside them; how many were compared.

    Raises:
        InteropError: a file is missing or another one.
    """
    wanted: dict[str, str] = {}
    for pattern in HASHES:
        for file in path.glob(pattern):
            for line in file.read_text(encoding="utf-8").splitlines():
                digest, _, name = line.strip().partition(" ")
                if digest:
                    name = name.strip().removeprefix("*") or file.name.removesuffix(".sha256")
                    wanted[name] = digest.lower()
    for name, digest in wanted.items():
        if not (path / name).is_file():
            raise InteropError(f"{path}: {name} has a hash and is missing; fetch it")
        if sha256(path / name) != digest:
            raise InteropError(f"{path / name} has another sha256 than expected; fetch it again")
    return len(wanted)
