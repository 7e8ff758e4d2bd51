"""What a setting is: a dataclass field that knows its comment and its choices."""

import dataclasses
from typing import Any


class ConfigError(ValueError):
    """A setting cannot be used; the message names the field and what to write instead."""


def setting(default: Any, help: str, choices: tuple[str, ...] = ()) -> Any:
    """A dataclass field: its default, its comment in `configs/default.py`, its choices."""
    metadata = {"help": help, "choices": choices}
    if isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)
