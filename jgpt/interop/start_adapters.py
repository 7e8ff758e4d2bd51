"""Going on with adapters from a folder: `peft.adapters`."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jgpt.config import Config, ConfigError, ModelConfig, PeftConfig
from jgpt.interop.folder import CONFIG_FILE
from jgpt.interop.peft_format_read import Read, build, open_adapters, read
from jgpt.interop.workdirs import ORIGIN
from jgpt.peft import CONSTANTS, TRAINED
from jgpt.peft.quantization import Convert
from jgpt.training.assembly import Start, unchanged
from jgpt.training.trainable import unrolled_paths
from jgpt.trees import map_with_path
from jgpt.typing import Array, PyTree

KEPT = ("dtype", "quantize", "double_quantize", "adapters", "rate_ratio")
"""Fields of the config's own that stay; the folder says the others."""
SAME = {"lora": ("rslora", "lora_plus"), "prompt_tuning": (), "p_tuning_v2": ()}
"""Method of a folder -> other names for it."""


def family_name(path: Path) -> str:
    """The family of a Hugging Face folder, or of the one that a run came from; "" for none."""
    for file in (path / CONFIG_FILE, path / ORIGIN / CONFIG_FILE):
        if file.is_file():
            return json.loads(file.read_text(encoding="utf-8")).get("model_type", "")
    return ""


def with_adapters(config: Config, start: Start, path: Path, base: Path) -> tuple[Config, Start]:
    """(the config with the folder's method, `start` that gives its adapters too).

    Args:
        config: with the model of the base.
        start: of the base.
        path: of the folder.
        base: where the base comes from.

    Raises:
        ConfigError: the folder cannot be used, or the config asks for another method.
    """
    found = read(open_adapters(path), config.model, family_name(base))
    settings = _settings(config.peft, found.settings)
    found = dataclasses.replace(found, settings=settings)

    def around(
        model: ModelConfig,
        shardings: PyTree,
        replicated: jax.sharding.Sharding,
        convert: Convert = unchanged,
    ) -> dict[str, PyTree]:
        variables = start(model, shardings, replicated, convert)
        _, adapters = build(found, model)
        own = map_with_path(lambda p, leaf: _put(found, p, leaf, model), variables["params"])
        given = {TRAINED: adapters.trained, CONSTANTS: adapters.constants}
        return {**variables, "params": own, **given}

    return dataclasses.replace(config, peft=settings), around


def _settings(asked: PeftConfig, found: PeftConfig) -> PeftConfig:
    """The folder's settings, with what the config says of how they are trained.

    Raises:
        ConfigError: the config asks for another method.
    """
    names = (found.method, *SAME.get(found.method, ()))
    if asked.method not in ("none", *names):
        raise ConfigError(
            f"peft.method is {asked.method!r}, but peft.adapters holds {found.method!r}; leave it "
            "to the folder"
        )
    own = {name: getattr(asked, name) for name in KEPT}
    method = asked.method if asked.method == "lora_plus" else found.method
    also = tuple(dict.fromkeys((*found.train_also, *asked.train_also)))
    dropout = asked.dropout or found.dropout
    return dataclasses.replace(found, **own, method=method, train_also=also, dropout=dropout)


def _put(found: Read, path: str, leaf: Any, model: ModelConfig) -> Any:
    """`leaf` with the folder's values, where it has some; their place does not change."""
    places = unrolled_paths(path, model)
    if not found.own.keys() & set(places):
        return leaf
    if places == [path]:
        value: Array | np.ndarray = found.own[path]
    else:
        value = np.array(leaf)
        for index, place in enumerate(places):
            if place in found.own:
                value[index] = found.own[place]
    return jax.device_put(np.asarray(value, leaf.dtype), leaf.sharding)
