"""The text of `configs/default.py`: every setting, its default and its comment."""

import dataclasses
import json
from typing import Any

from jgpt.config.run import Config

_DEFAULT_HEAD = '''"""Every setting with its default and meaning; other configs change a few lines.

Generated from `jgpt/config/`: `python -m jgpt.config > configs/default.py`.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
'''


def _literal(value: Any) -> str:
    """Python source of a setting, strings in double quotes."""
    if isinstance(value, tuple):
        return "(" + "".join(f"{_literal(v)}, " for v in value) + ")"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _default_lines(section: Any, path: str) -> list[str]:
    lines = []
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            lines.append(f"\n    # {field.metadata['help']}")
            lines.append(f"    {path}.{field.name} = ml_collections.ConfigDict()")
            lines.extend(_default_lines(value, f"{path}.{field.name}"))
        else:
            lines.append(f"    # {field.metadata['help']}")
            if value is None:
                line = f"{path}.{field.name} = ml_collections.config_dict.placeholder(float)"
            else:
                line = f"{path}.{field.name} = {_literal(value)}"
            lines.append(f"    {line}")
    return lines


def default_config_source() -> str:
    """Text of `configs/default.py`, generated from the dataclasses."""
    body = "\n".join(_default_lines(Config(), "c"))
    return f"{_DEFAULT_HEAD}{body}\n    return c\n"
