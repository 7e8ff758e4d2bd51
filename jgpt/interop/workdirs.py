"""Between Hugging Face folders and the workdirs of runs.

A workdir that came from a folder keeps, in `huggingface/`, what only the other library needs: its
`config.json`, its generation settings and its tokenizer's files.
"""

import dataclasses
import functools
import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jgpt import tokenizers
from jgpt.config import (
    Config,
    ConfigError,
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    SampleConfig,
    TokenizerConfig,
    TrainConfig,
    from_config_dict,
)
from jgpt.interop.checkpoint import Leaf, read_array, write_checkpoint
from jgpt.interop.configs import differences, family_of, read_config
from jgpt.interop.description import Family, InteropError
from jgpt.interop.export import LARGEST_SHARD, TOKEN_IDS, complete_or_nothing, export
from jgpt.interop.folder import (
    CONFIG_FILE,
    GENERATION_FILE,
    TOKENIZER_FILES,
    Folder,
    open_folder,
    read_json,
)
from jgpt.interop.weights import SELECTION_BIAS, Stack, dtype_of, sources
from jgpt.models.layout import is_scanned, layout, moe_layers
from jgpt.tokenizers import Tokenizer
from jgpt.training.checkpoints import newest_intact
from jgpt.training.state_files import CheckpointError, saved_arrays
from jgpt.training.workdir import Workdir, write_json
from jgpt.trees import leaves_by_path

ORIGIN = "huggingface"
"""Folder in a workdir."""
PARAM_DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


def param_dtype(folder: Folder, wanted: str = "") -> str:
    """Name of the type that our parameters have: the files', if we have it, else float32.

    float16 and mixtures go to float32, which holds them exactly.
    """
    name = wanted or dtype_of(folder).name
    return name if name in PARAM_DTYPES else "float32"


def open_tokenizer(path: Path) -> Tokenizer | None:
    """The tokenizer of a folder; None where it has no tokenizer files.

    Raises:
        ConfigError: it has, and they cannot be used.
    """
    if not any((path / name).is_file() for name in TOKENIZER_FILES):
        return None
    return tokenizers.load(path)


def from_hf(path: Path, workdir: Path, dtype: str = "") -> tuple[ModelConfig, list[str]]:
    """Makes a workdir whose checkpoint of step 0 is the model in a folder.

    Args:
        path: of the folder.
        workdir: must not exist.
        dtype: of the weights; "" keeps that of the files.

    Returns:
        The model, and lines to show.

    Raises:
        InteropError, ConfigError: what is wrong with the folder; nothing is left behind.
    """
    folder = open_folder(path)
    name = param_dtype(folder, dtype)
    model = dataclasses.replace(folder.model, dtype=name, param_dtype=name)
    tokenizer = open_tokenizer(path)
    notes = _notes(folder, name, tokenizer)
    if tokenizer is not None and tokenizer.vocab_size > model.vocab_size:
        raise ConfigError(
            f"{path}: the tokenizer has {tokenizer.vocab_size} ids and the model "
            f"{model.vocab_size} rows; they do not belong together"
        )
    config = _config(path, model)
    with complete_or_nothing(workdir) as partial:
        tree = _leaves(folder, model)
        vocabulary = "" if tokenizer is None else tokenizer.fingerprint
        write_checkpoint(partial / "checkpoints" / "0", tree, config, vocabulary)
        if tokenizer is not None:
            files = Workdir(partial)
            tokenizer.save(files.tokenizer)
            write_json(files.tokenizer_settings, dataclasses.asdict(config.tokenizer))
        keep_origin(path, partial)
    return model, notes


def _notes(folder: Folder, name: str, tokenizer: Tokenizer | None) -> list[str]:
    notes = []
    if dtype_of(folder).name != name:
        notes.append(f"weights are stored as {name} (the files: {dtype_of(folder).name})")
    if tokenizer is None:
        notes.append(f"{folder.path} has no tokenizer: jgpt.generate needs one")
    return notes


def _config(path: Path, model: ModelConfig) -> Config:
    length = min(DataConfig().sequence_length, model.max_length)
    changes = {}
    if model.encoder_layers or model.attention == "bidirectional":  # continues no prompts
        objective = "span_corruption" if model.encoder_layers else "mlm"
        changes = {
            "objective": ObjectiveConfig(name=objective),
            "train": TrainConfig(sample_every=0),
            "sample": SampleConfig(final_samples=0),
        }
    return Config(
        name=path.resolve().name,
        model=model,
        tokenizer=TokenizerConfig(kind="huggingface", path=str(path.resolve())),
        data=DataConfig(sequence_length=length),
        **changes,
    )


def _leaves(folder: Folder, model: ModelConfig) -> dict[str, Any]:
    """Nested dicts of what a checkpoint of the model holds, layers unrolled."""
    found = sources(folder, model)
    dtype = PARAM_DTYPES[model.param_dtype]
    tree: dict[str, Any] = {}
    for path, source in found.items():
        if path.startswith(f"{SELECTION_BIAS}/"):
            continue
        *parents, last = ("params", *path.split("/"))
        functools.reduce(lambda node, key: node.setdefault(key, {}), parents, tree)[last] = Leaf(
            source, dtype
        )
    if model.moe.selection_bias:
        rows = tuple(found[f"{SELECTION_BIAS}/layers_{i}"] for i in moe_layers(model))
        tree[SELECTION_BIAS] = Leaf(Stack(rows), np.dtype(np.float32))
    return tree


def keep_origin(path: Path, workdir: Path) -> None:
    """Copies config, generation settings and tokenizer files into a workdir; the config last."""
    origin = workdir / ORIGIN
    if (origin / CONFIG_FILE).is_file():
        return
    origin.mkdir(parents=True, exist_ok=True)
    for name in (*TOKENIZER_FILES, GENERATION_FILE, CONFIG_FILE):
        if (path / name).is_file():
            shutil.copyfile(path / name, origin / name)


@dataclass(frozen=True)
class Saved:
    """The newest intact checkpoint of a run, read parameter by parameter.

    Attributes:
        directory: of the checkpoint.
        config: of the run.
        arrays: shapes and types of what is there, as nested dicts.
        weights: name of the parameters there: `params`, or `ema` where the run kept an average.
        notes: lines to show.
    """

    directory: Path
    config: Config
    arrays: Mapping[str, Any]
    weights: str
    notes: tuple[str, ...] = ()

    def read(self, path: str) -> np.ndarray:
        """One array by its path in the checkpoint."""
        return read_array(self.directory, path)


def open_saved(workdir: Path, use_ema: bool = True) -> Saved:
    """The newest intact checkpoint of a run.

    Raises:
        CheckpointError: there is none.
    """
    root = workdir.absolute() / "checkpoints"
    found = newest_intact(root)
    if found is None:
        raise CheckpointError(f"there is no checkpoint in {root}; train first, or mend --workdir")
    step, notes = found
    directory = root / str(step)
    config = from_config_dict(json.loads((directory / CONFIG_FILE).read_text("utf-8"))["config"])
    arrays = saved_arrays(directory)
    weights = "ema" if use_ema and arrays.get("ema") else "params"
    return Saved(directory, config, arrays, weights, tuple(notes))


def unrolled_reader(saved: Saved) -> Callable[[str], np.ndarray]:
    """Path with layers unrolled to value, the last array read being kept.

    Where layers are scanned one array holds all of them, and this is what is in memory.
    """
    model = saved.config.model
    scanned = is_scanned(saved.arrays[saved.weights])
    layouts = {"": layout(model)}
    if model.encoder_layers:
        layouts["encoder/"] = layout(model.encoder)
    moe = moe_layers(model)

    @functools.lru_cache(maxsize=3)  # query, key and value may be one tensor of theirs
    def whole(path: str) -> np.ndarray:
        return saved.read(path)

    def read(path: str) -> np.ndarray:
        if path.startswith(SELECTION_BIAS):
            return whole(SELECTION_BIAS)[moe.index(int(path.rpartition("_")[2]))]
        layer = re.match(r"(encoder/)?layers_(\d+)/(.+)", path)
        if scanned and layer:
            stack, index, rest = layer[1] or "", int(layer[2]), layer[3]
            where = layouts[stack]
            if where.first <= index < where.stop:
                period, block = divmod(index - where.first, where.period)
                return whole(f"{saved.weights}/{stack}layers/block_{block}/{rest}")[period]
        return saved.read(f"{saved.weights}/{path}")

    return read


def to_hf(
    workdir: Path,
    target: Path,
    *,
    family: str = "",
    dtype: str = "",
    largest_shard: int = LARGEST_SHARD,
    use_ema: bool = True,
    reader: Callable[[Saved], Callable[[str], np.ndarray]] = unrolled_reader,
) -> tuple[Family, list[str]]:
    """Writes the model of a run's newest checkpoint as a Hugging Face folder.

    Args:
        workdir: of the run.
        target: the folder; must not exist.
        family: of the folder; "" for that which the run started from, or the first that fits.
        dtype: float32, float16 or bfloat16; "" keeps that of the checkpoint.
        largest_shard: bytes of one file.
        use_ema: the averaged weights, where the run kept them.
        reader: of the checkpoint's parameters; `adapted.reader` knows adapters.

    Returns:
        The family, and lines to show.

    Raises:
        InteropError, CheckpointError: nothing is left behind.
    """
    saved = open_saved(workdir, use_ema)
    origin = workdir / ORIGIN
    before = read_json(origin / CONFIG_FILE) if (origin / CONFIG_FILE).is_file() else {}
    generation = None
    if (origin / GENERATION_FILE).is_file():
        generation = read_json(origin / GENERATION_FILE)
    files, ids = _tokenizer_files(workdir)
    written = export(
        target,
        saved.config.model,
        reader(saved),
        dtype=_export_dtype(saved, dtype),
        family=family or _same_family(before, saved.config.model),
        extra=before or ids,
        generation=generation,
        files=files,
        largest_shard=largest_shard,
    )
    notes = list(saved.notes)
    if not {"tokenizer.json", "tokenizer_config.json"} & files.keys():
        notes.append(
            f"the run's tokenizer is none of transformers'; {target} has "
            f"{' and '.join(files) or 'no tokenizer files'}"
        )
    return written, notes


def _export_dtype(saved: Saved, wanted: str) -> np.dtype:
    if not wanted:
        if saved.config.peft.method != "none":  # the model is not in the checkpoint
            return PARAM_DTYPES[saved.config.model.param_dtype]
        leaves = leaves_by_path(saved.arrays[saved.weights])
        return np.dtype(next(iter(leaves.values())).dtype)
    known = PARAM_DTYPES | {"float16": np.dtype(np.float16)}
    if wanted not in known:
        raise InteropError(f"dtype {wanted!r} is not known; choose one of {', '.join(known)}")
    return known[wanted]


def _same_family(before: Mapping[str, Any], model: ModelConfig) -> str:
    """The family that the run started from, if the model still is of it."""
    if not before:
        return ""
    family = family_of(before)
    same = not differences(read_config(family, before), model)
    return family.name if same else ""


def _tokenizer_files(workdir: Path) -> tuple[dict[str, bytes], dict[str, int]]:
    """(tokenizer files as other libraries know them, ids of the special tokens)."""
    origin, saved = workdir / ORIGIN, Workdir(workdir).tokenizer
    for folder in (origin, saved):
        found = {n: (folder / n).read_bytes() for n in TOKENIZER_FILES if (folder / n).is_file()}
        if found:
            break
    if not saved.is_dir():
        return found, {}
    tokenizer = tokenizers.load(saved)
    ids = (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
    return found, dict(zip(TOKEN_IDS, ids))
