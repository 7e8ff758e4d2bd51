"""Starting a run from weights that are there: `init.hf_folder` and `init.workdir`.

`prepare` fills the config's model and tokenizer sections from them before the run is set up, and
gives a function that puts the weights on the run's mesh once it is.
"""

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import jax

from jgpt import models
from jgpt.config import Config, ConfigError, ModelConfig, TokenizerConfig
from jgpt.interop.configs import NOT_ARCHITECTURE, ROUTER_TRAINING, family_of, read_config
from jgpt.interop.fingerprint import checked
from jgpt.interop.folder import CONFIG_FILE, open_folder, read_json
from jgpt.interop.start_adapters import with_adapters
from jgpt.interop.weights import SELECTION_BIAS, load
from jgpt.interop.workdirs import ORIGIN, Saved, keep_origin, open_saved
from jgpt.models.layout import is_scanned
from jgpt.peft.adapters import nested
from jgpt.peft.quantization import Convert
from jgpt.training.assembly import Start, unchanged
from jgpt.training.state import joined
from jgpt.training.state_files import read_arrays
from jgpt.training.workdir import Workdir
from jgpt.trees import leaves_by_path, map_with_path
from jgpt.typing import PyTree

HEAD = ("pooling", "pooler", "num_labels", "label_level")
"""Settings of a task head."""


def prepare(config: Config, workdir: Path) -> tuple[Config, Start | None]:
    """(the config with model and tokenizer of what `init` names, how to load its weights).

    Settings of the model that say how it is computed (dtype, remat, dropout, dispatch, ...) are
    the config's own. A run that has begun needs its folder no more.

    Raises:
        ConfigError: the config asks for another architecture than the weights have, or what `init`
            names cannot be used.
    """
    if (workdir / "checkpoints" / "0").is_dir():  # a run saves none before its first step
        raise ConfigError(
            f"workdir {str(workdir)!r} holds a converted model and no run; begin one from it with "
            f"--config.init.workdir={workdir} and another --workdir"
        )
    return begin(config, workdir)


def begin(config: Config, workdir: Path) -> tuple[Config, Start | None]:
    """`prepare`, also for the folder of a run that was made and not trained."""
    source = config.init.hf_folder or config.init.workdir
    if not source:
        if config.peft.adapters:
            raise ConfigError(
                "peft.adapters needs the model that they belong to: set init.hf_folder or "
                "init.workdir"
            )
        return config, None
    if config.init.hf_folder:
        config, start = _from_folder(config, expand(source), workdir)
    else:
        config, start = _from_run(config, expand(source))
    if config.peft.method == "none" and not config.peft.adapters:
        return config, start
    start = checked(start, workdir, source)
    if config.peft.adapters:
        return with_adapters(config, start, expand(config.peft.adapters), expand(source))
    return config, start


def expand(path: str) -> Path:
    """A path with `~` and `$VARIABLES` filled in."""
    return Path(os.path.expandvars(os.path.expanduser(path)))


def _from_folder(config: Config, path: Path, workdir: Path) -> tuple[Config, Start]:
    kept = workdir / ORIGIN / CONFIG_FILE
    values = read_json(kept if kept.is_file() else path / CONFIG_FILE)
    found = read_config(family_of(values), values)
    filled = _filled(config, found, "init.hf_folder", path)

    def start(
        model: ModelConfig,
        shardings: PyTree,
        replicated: jax.sharding.Sharding,
        convert: Convert = unchanged,
    ) -> dict[str, PyTree]:
        variables = load(open_folder(path), model, shardings, replicated, convert)
        if jax.process_index() == 0:
            keep_origin(path, workdir)
        return variables

    return filled, _beside_new_head(start, found)


def _from_run(config: Config, path: Path) -> tuple[Config, Start]:
    saved = open_saved(path)
    if saved.config.peft.method != "none":
        raise ConfigError(
            f"init.workdir: {path} holds adapters on another model; put them into it first (python "
            f"-m jgpt.convert to_hf --workdir={path} --folder=MERGED) and begin with "
            "init.hf_folder, or go on with them by peft.adapters"
        )
    tokenizer = Workdir(path).tokenizer
    filled = _filled(config, saved.config.model, "init.workdir", tokenizer)

    def start(
        model: ModelConfig,
        shardings: PyTree,
        replicated: jax.sharding.Sharding,
        convert: Convert = unchanged,
    ) -> dict[str, PyTree]:
        return _restored(saved, model, shardings, replicated, convert)

    return filled, _beside_new_head(start, saved.config.model)


def _filled(config: Config, found: ModelConfig, name: str, tokenizer_path: Path) -> Config:
    model = own_computation(config.model, _with_head(config.model, found), name)
    tokenizer = config.tokenizer
    if not tokenizer.path:
        tokenizer = TokenizerConfig(kind="huggingface", path=str(tokenizer_path))
    return dataclasses.replace(config, model=model, tokenizer=tokenizer)


def _with_head(asked: ModelConfig, found: ModelConfig) -> ModelConfig:
    """`found`, with the task head that is asked for where it has none."""
    if found.num_labels or not asked.num_labels:
        return found
    return dataclasses.replace(found, **{name: getattr(asked, name) for name in HEAD})


def _beside_new_head(start: Start, found: ModelConfig) -> Start:
    """`start`, which knows nothing of a task head, and random weights where the model has one."""

    def around(
        model: ModelConfig,
        shardings: PyTree,
        replicated: jax.sharding.Sharding,
        convert: Convert = unchanged,
    ) -> dict[str, PyTree]:
        if found.num_labels == model.num_labels:
            return start(model, shardings, replicated, convert)
        plain = dataclasses.replace(model, **{name: getattr(found, name) for name in HEAD})
        new = shardings.keys() - models.abstract_params(plain).keys()

        def head(key: jax.Array) -> PyTree:
            params = models.init(model, key)
            return {name: params[name] for name in new}

        known = {name: value for name, value in shardings.items() if name not in new}
        variables = start(plain, known, replicated, convert)
        places = {name: shardings[name] for name in new}
        made = map_with_path(convert, jax.jit(head, out_shardings=places)(jax.random.key(0)))
        return {**variables, "params": {**variables["params"], **made}}

    return around


def own_computation(asked: ModelConfig, found: ModelConfig, name: str) -> ModelConfig:
    """The architecture `found`, computed as `asked` says.

    Args:
        asked: the config's model section; what is at its default there is not asked for.
        found: of the weights.
        name: the setting that names the weights, for the message.

    Raises:
        ConfigError: something else of the architecture is asked for.
    """
    default = ModelConfig()
    moe = _computation(asked.moe, default.moe, found.moe, ROUTER_TRAINING, f"{name}|model.moe")
    changes = {f: getattr(asked, f) for f in NOT_ARCHITECTURE} | {"moe": moe}
    if found.position != "learned" and asked.max_length != default.max_length:
        changes["max_length"] = asked.max_length
    result = dataclasses.replace(found, **changes)
    for field in dataclasses.fields(asked):
        value = getattr(asked, field.name)
        if field.name != "moe" and value not in (
            getattr(default, field.name),
            getattr(result, field.name),
        ):
            raise _conflict(name, f"model.{field.name}", value, getattr(result, field.name))
    return result


def _computation(asked: Any, default: Any, found: Any, free: tuple[str, ...], where: str) -> Any:
    name, section = where.split("|")
    for field in dataclasses.fields(asked):
        value, there = getattr(asked, field.name), getattr(found, field.name)
        if field.name not in free and value not in (getattr(default, field.name), there):
            raise _conflict(name, f"{section}.{field.name}", value, there)
    return dataclasses.replace(found, **{field: getattr(asked, field) for field in free})


def _conflict(name: str, field: str, value: Any, there: Any) -> ConfigError:
    return ConfigError(
        f"{field} is {value!r}, but the model of {name} has {there!r}; leave the model section to "
        f"{name}"
    )


def _restored(
    saved: Saved,
    model: ModelConfig,
    shardings: PyTree,
    replicated: jax.sharding.Sharding,
    convert: Convert,
) -> dict[str, PyTree]:
    """A checkpoint's weights, in the form (scanned or unrolled) of `shardings`.

    Those of one place in all layers are read together; the others after they are converted.
    """
    trees = {name: saved.arrays.get(name) or {} for name in (saved.weights, "frozen")}
    whole = joined(*trees.values()) if trees["frozen"] else trees[saved.weights]
    scanned = is_scanned(shardings)
    same_form = is_scanned(whole) == scanned and not trees["frozen"]

    def form(params: PyTree) -> PyTree:
        params = models.restack(params, model, scanned)
        return jax.tree.map(lambda leaf: leaf.astype(model.param_dtype), params)

    params: dict[str, Any] = {}
    wanted_places = leaves_by_path(shardings)
    for paths in _together(whole).values():
        wanted = {
            name: nested(
                {
                    path: _abstract(leaf, wanted_places[path] if same_form else replicated)
                    for path, leaf in leaves_by_path(tree).items()
                    if path in paths
                }
            )
            for name, tree in trees.items()
        }
        arrays = read_arrays(saved.directory, {k: tree for k, tree in wanted.items() if tree})
        read = [arrays[name] for name in trees if name in arrays]
        read = joined(*read) if len(read) > 1 else read[0]
        places = {path: wanted_places[path] for path in leaves_by_path(jax.eval_shape(form, read))}
        made = jax.jit(form, out_shardings=nested(places))(read)
        params |= {path: convert(path, leaf) for path, leaf in leaves_by_path(made).items()}
        jax.block_until_ready(params)
    variables = {"params": nested(params)}
    if model.moe.selection_bias and SELECTION_BIAS in saved.arrays:
        bias = {SELECTION_BIAS: _abstract(saved.arrays[SELECTION_BIAS], replicated)}
        variables |= read_arrays(saved.directory, bias)
    return variables


def _together(params: PyTree) -> dict[str, set[str]]:
    """Paths of arrays of one place in all layers, which a stack makes one array of."""
    groups: dict[str, set[str]] = {}
    for path in leaves_by_path(params):
        groups.setdefault(re.sub(r"layers(_\d+|/block_\d+)/", "layers/", path), set()).add(path)
    return groups


def _abstract(leaf: Any, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
