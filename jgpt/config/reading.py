"""`ConfigDict`s and plain mappings to sections, refusing what does not fit, and back."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from jgpt.config.model import ModelConfig
from jgpt.config.run import Config
from jgpt.config.setting import ConfigError


def _unwrap_optional(kind: Any) -> tuple[Any, bool]:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        inner = [k for k in typing.get_args(kind) if k is not type(None)]
        return inner[0], True
    return kind, False


def _convert(kind: Any, value: Any, path: str) -> Any:
    kind, optional = _unwrap_optional(kind)
    if value is None and optional:
        return None
    if dataclasses.is_dataclass(kind):
        return _build(kind, value, path)
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        if isinstance(value, str) or not isinstance(value, list | tuple):
            raise ConfigError(f"{path} is {value!r}; write a tuple such as ({item()!r},)")
        return tuple(_convert(item, v, f"{path}[{i}]") for i, v in enumerate(value))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"{path} is {value!r}; write {kind.__name__} here")
    if kind is float and not math.isfinite(value):
        raise ConfigError(f"{path} is {value}; write a finite number")
    return value


def _build(kind: type, values: Any, path: str) -> Any:
    if dataclasses.is_dataclass(values):
        return values
    if not isinstance(values, Mapping) and not hasattr(values, "items"):
        raise ConfigError(f"{path or 'the config'} is {values!r}; it is a section of settings")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    arguments = {}
    for name, value in values.items():
        here = f"{path}.{name}" if path else str(name)
        if name not in fields:
            close = difflib.get_close_matches(str(name), fields, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(fields)}"
            raise ConfigError(f"unknown config field {here!r}; {hint}")
        arguments[name] = _convert(hints[name], value, here)
        choices = fields[name].metadata["choices"]
        if choices and arguments[name] not in choices:
            raise ConfigError(f"{here} is {value!r}; choose one of {', '.join(choices)}")
    return kind(**arguments)


def from_config_dict(values: Any) -> Config:
    """A `Config` from a `ConfigDict` or nested mapping; fields left out keep their defaults.

    Raises:
        ConfigError: an unknown field, a wrong type, or values that cannot go together.
    """
    return _build(Config, values, "")


def model_from_dict(values: Any) -> ModelConfig:
    """A `ModelConfig` from a nested mapping, checked as `from_config_dict` checks its section."""
    return _build(ModelConfig, values, "model")


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain dict of any section; `from_config_dict(to_dict(c)) == c`."""
    return dataclasses.asdict(config)
