"""Adapters wherever they are, and the model they belong to: folders of runs, folders of peft."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jgpt import models, peft, tokenizers
from jgpt.config import Config, InitConfig, ModelConfig
from jgpt.interop import adapted, peft_format, peft_format_read
from jgpt.interop.checkpoint import Leaf, write_checkpoint
from jgpt.interop.configs import family_of, read_config
from jgpt.interop.description import Family, InteropError
from jgpt.interop.export import complete_or_nothing, export
from jgpt.interop.folder import (
    CONFIG_FILE,
    GENERATION_FILE,
    TOKENIZER_FILES,
    open_folder,
    read_json,
)
from jgpt.interop.start import expand, prepare
from jgpt.interop.start_adapters import family_name
from jgpt.interop.weights import SELECTION_BIAS, Index, dtype_of, load
from jgpt.interop.workdirs import (
    PARAM_DTYPES,
    Saved,
    keep_origin,
    open_saved,
    open_tokenizer,
    param_dtype,
    to_hf,
)
from jgpt.models.layout import moe_layers
from jgpt.peft import compose
from jgpt.peft.adapters import flat
from jgpt.peft.starts import SPLITS
from jgpt.training.checkpoints import restore_params
from jgpt.training.trainable import unrolled_paths
from jgpt.training.workdir import Workdir, write_json
from jgpt.typing import PyTree

ADAPTERS, ORIGINAL, MODEL = "adapters", "original", "model"
"""What is needed: the adapters; also how they began, where they split the model; also the model."""


@dataclass(frozen=True)
class Source:
    """Adapters, and what is known of them; layers unrolled.

    Attributes:
        path: of the run or folder.
        peft: the method.
        adapters: its leaves.
        own: parameters of the model that were trained too, by path.
        began: the adapters before the first step; None where not needed.
        base: the Hugging Face folder of the model; "" where it is a run.
        family: of the model; "" where it is not known.
        variables: of the model without adapters (`own` in it); {} where not needed.
    """

    path: Path
    peft: peft.Peft
    adapters: peft.Adapters
    own: Mapping[str, Any] = field(default_factory=dict)
    began: peft.Adapters | None = None
    base: str = ""
    family: str = ""
    variables: Mapping[str, PyTree] = field(default_factory=dict)

    def on_original(self) -> compose.Pair:
        """The adapters as they are to be added to the original model."""
        pair = (self.peft, self.adapters)
        if self.began is None or self.peft.settings.init not in SPLITS:
            return pair
        return compose.combine([pair, (self.peft, self.began)], (1.0, -1.0))


def is_folder(path: Path) -> bool:
    """Whether peft wrote it."""
    return (path / peft_format.CONFIG_FILE).is_file()


def is_run(path: Path) -> bool:
    return (path / "checkpoints").is_dir()


def open_source(path: Path, base: str = "", need: str = ADAPTERS) -> Source:
    """The adapters at `path`.

    Args:
        path: of a run, or of a folder in peft's format.
        base: the model; "" for that which the adapters name.
        need: `adapters`, `original` or `model`.

    Raises:
        InteropError, ConfigError, CheckpointError: what is missing.
    """
    if is_folder(path):
        return _open_folder(path, base, need)
    if is_run(path):
        return _open_run(path, base, need)
    raise InteropError(
        f"--adapters: {path} is neither a run nor a folder with {peft_format.CONFIG_FILE}"
    )


def _open_folder(path: Path, base: str, need: str) -> Source:
    folder = peft_format_read.open_adapters(path)
    place, model = open_base(base or folder.config.get("base_model_name_or_path") or "", path)
    family = family_name(place)
    found = peft_format_read.read(folder, model, family)
    fitted, adapters = peft_format_read.build(found, model)
    variables = {}
    if need == MODEL:
        variables = load_base(place, model)
        variables["params"] = _with_own(variables["params"], found.own)
    hf = "" if is_run(place) else str(place)
    return Source(path, fitted, adapters, found.own, None, hf, family, variables)


def _open_run(path: Path, base: str, need: str) -> Source:
    restored = restore_params(path)
    config = restored.config
    if config.peft.method == "none":
        raise InteropError(f"--adapters: {path} is a run without adapters (peft.method is 'none')")
    family = family_name(expand(config.init.hf_folder or config.init.workdir or str(path)))
    named = base or config.init.hf_folder
    model = dataclasses.replace(config.model, scan_layers="off")
    fitted = peft.make_peft(config.peft, model)
    if need == MODEL or (need == ORIGINAL and fitted.settings.init in SPLITS):
        found = adapted.open_run(path)
        rest = {k: v for k, v in found.variables.items() if k not in (peft.TRAINED, peft.CONSTANTS)}
        return Source(
            path, found.peft, found.adapters, _own(restored.variables["params"], config.model),
            found.began, named, family, rest,
        )  # fmt: skip
    trees = (restored.variables[name] for name in (peft.TRAINED, peft.CONSTANTS))
    adapters = peft.Adapters(*(models.restack(tree, model, scan=False) for tree in trees))
    own = _own(restored.variables["params"], config.model)
    return Source(path, fitted, adapters, own, None, named, family)


def _own(params: PyTree, model: ModelConfig) -> dict[str, Any]:
    """Trained parameters by unrolled path; of a stack that was cut, the last layers."""
    found = {}
    for path, leaf in flat(params):
        places = unrolled_paths(path, model)
        if places == [path]:
            found[path] = leaf
        else:
            found |= dict(zip(places[-len(leaf) :], leaf, strict=True))
    return found


def _with_own(params: PyTree, own: Mapping[str, Any]) -> PyTree:
    values = dict(flat(params))
    changed = {path: np.asarray(v).astype(values[path].dtype) for path, v in own.items()}
    return peft.adapters.nested({**values, **changed})


# --- the model -----------------------------------------------------------------------------------


def open_base(name: str, of: Path) -> tuple[Path, ModelConfig]:
    """(place, architecture with layers unrolled) of a Hugging Face folder or a run.

    Raises:
        InteropError: it is not there.
    """
    place = expand(name)
    if name and is_run(place):
        model = open_saved(place).config.model
    elif name and (place / CONFIG_FILE).is_file():
        values = read_json(place / CONFIG_FILE)
        model = read_config(family_of(values), values)
    else:
        where = f"{name!r} is no folder of a model here" if name else "nothing says which that is"
        raise InteropError(f"{of} belongs to a model, and {where}; give it with --base=DIR")
    return place, dataclasses.replace(model, scan_layers="off")


def load_base(place: Path, model: ModelConfig) -> dict[str, PyTree]:
    """Variables of a model on the first device, layers unrolled."""
    if is_run(place):
        return adapted.open_run(place).merged()
    folder = open_folder(place)
    name = param_dtype(folder)
    model = dataclasses.replace(model, dtype=name, param_dtype=name)
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return load(folder, model, jax.tree.map(lambda _: here, models.abstract_params(model)), here)


def write_merged(
    found: Source, base: str, target: Path, family: str, dtype: str, *, inverse: bool = False
) -> Family:
    """A Hugging Face folder of the model with the adapters in its weights, or without them again.

    Args:
        found: opened with `need="model"`.
        base: the model's folder or run; "" for that which the adapters name.
        target: the folder; must not exist.
        family: "" for that of the model.
        dtype: "" for that of the model.
        inverse: takes the adapters out of a model that they are in.

    Raises:
        InteropError, ConfigError: what cannot be done; nothing is left behind.
    """
    if inverse and found.own:
        raise InteropError("peft.train_also: what was trained whole cannot be taken out again")
    change = peft.unmerge if inverse else peft.merge
    params = change(found.peft, found.variables["params"], found.adapters)
    values = dict(flat(jax.tree.map(np.asarray, params)))
    if SELECTION_BIAS in found.variables:
        rows = zip(moe_layers(found.peft.model), np.asarray(found.variables[SELECTION_BIAS]))
        values |= {f"{SELECTION_BIAS}/layers_{index}": row for index, row in rows}
    place = expand(base or found.base or str(found.path))
    if is_run(place):
        options = {"family": family or found.family, "dtype": dtype}
        return to_hf(place, target, **options, reader=functools.partial(_reader, values))[0]
    generation = place / GENERATION_FILE
    return export(
        target,
        found.peft.model,
        values.__getitem__,
        dtype=(PARAM_DTYPES | {"float16": np.dtype(np.float16)}).get(
            dtype, dtype_of(open_folder(place))
        ),
        family=family or found.family,
        extra=read_json(place / CONFIG_FILE),
        generation=read_json(generation) if generation.is_file() else None,
        files={n: (place / n).read_bytes() for n in TOKENIZER_FILES if (place / n).is_file()},
    )


def _reader(values: Mapping[str, np.ndarray], _: Saved) -> Callable[[str], np.ndarray]:
    return values.__getitem__


# --- import --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Array:
    """An array that is there, as a source to write a checkpoint from."""

    array: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def read(self, index: Index) -> np.ndarray:
        return self.array[index]


def import_folder(path: Path, base: str, workdir: Path) -> None:
    """Makes a run's folder with a checkpoint of these adapters, for `jgpt.generate`.

    Raises:
        InteropError, ConfigError: what cannot be used; nothing is left behind.
    """
    if not is_folder(path):
        raise InteropError(f"--adapters: {path} is no folder of adapters that peft wrote")
    found = open_source(path, base)
    named = base or peft_format_read.open_adapters(path).config["base_model_name_or_path"]
    place = expand(named).absolute()
    init = InitConfig(workdir=str(place)) if is_run(place) else InitConfig(hf_folder=str(place))
    asked = Config(name=path.resolve().name, init=init, peft=found.peft.settings)
    config, _ = prepare(asked, workdir)
    model = dataclasses.replace(found.peft.model, scan_layers="off")
    config = dataclasses.replace(config, model=model)
    own = {path: np.asarray(leaf, np.float32) for path, leaf in found.own.items()}
    tree = {
        "params": {peft.TRAINED: found.adapters.trained, **peft.adapters.nested(own)},
        peft.CONSTANTS: found.adapters.constants,
    }
    leaves = {
        name: Leaf(_Array(np.asarray(leaf)), np.dtype(leaf.dtype)) for name, leaf in flat(tree)
    }
    tokenizer = (
        tokenizers.load(Workdir(place).tokenizer) if is_run(place) else open_tokenizer(place)
    )
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    with complete_or_nothing(workdir) as partial:
        _, start = prepare(asked, partial)  # which notes the fingerprint of the base there
        start(model, jax.tree.map(lambda _: here, models.abstract_params(model)), here)
        fingerprint = "" if tokenizer is None else tokenizer.fingerprint
        nested = peft.adapters.nested(leaves)
        write_checkpoint(partial / "checkpoints" / "0", nested, config, fingerprint)
        if tokenizer is not None:
            tokenizer.save(Workdir(partial).tokenizer)
            settings = dataclasses.asdict(config.tokenizer)
            write_json(Workdir(partial).tokenizer_settings, settings)
        if not is_run(place):
            keep_origin(place, partial)
