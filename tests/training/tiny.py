"""The smallest run that has all parts of a real one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

OVERRIDES: dict[str, Any] = {
    "name": "tiny",
    "model.num_layers": 2,
    "model.hidden_size": 32,
    "model.num_heads": 2,
    "model.intermediate_size": 48,
    "model.max_length": 128,
    "tokenizer.kind": "byte",
    "data.microworld_documents": 400,
    "data.validation_fraction": 0.05,
    "data.validation_documents": 8,
    "data.sequence_length": 64,
    "data.batch_size": 8,
    "data.virtual_shards": 8,
    "optimizer.warmup_steps": 5,
    "train.steps": 12,
    "train.log_every": 2,
    "train.eval_every": 6,
    "train.sample_every": 6,
    "train.keep_malloc": False,
    "checkpoint.every": 4,
    "sample.num_samples": 1,
    "sample.final_samples": 3,
    "sample.max_new_tokens": 12,
}


def nested(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """{"a.b": 1} as {"a": {"b": 1}}."""
    tree: dict[str, Any] = {}
    for name, value in overrides.items():
        *sections, field = name.split(".")
        section = tree
        for part in sections:
            section = section.setdefault(part, {})
        section[field] = value
    return tree


def settings(cache: Path, **changes: Any) -> dict[str, Any]:
    """Settings for `from_config_dict`; `train__steps=3` changes train.steps."""
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    return nested({**OVERRIDES, "data.cache": str(cache), **changes})


def command_line(cache: Path, **changes: Any) -> list[str]:
    """The same as overrides of `jgpt.main`."""
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    values = {**OVERRIDES, "data.cache": str(cache), **changes}
    return [f"--config.{name}={value}" for name, value in values.items()]
