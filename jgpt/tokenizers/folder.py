"""What the small JSON files of a Hugging Face model folder say about its tokenizer.

`tokenizer_config.json` (any release), and the files of older releases: `special_tokens_map.json`
(the names of the roles) and `added_tokens.json` (name to id).
"""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from jgpt.config import ConfigError
from jgpt.tokenizers.base import BOS, CHAT_MARKERS, EOS, PAD, UNK

CONFIG_FILE = "tokenizer_config.json"
_MAP_FILE = "special_tokens_map.json"
_ADDED_FILE = "added_tokens.json"
_ROLE_FIELDS = {
    PAD: ("pad_token",),
    UNK: ("unk_token",),
    BOS: ("bos_token", "cls_token"),
    EOS: ("eos_token", "sep_token"),
}
_MARKER = re.compile(r"<\|.+\|>")


@dataclasses.dataclass(frozen=True)
class AddedToken:
    """A token that the folder puts beside its vocabulary, or a name it gives to an entry of it.

    Attributes:
        special: stands for no text, and no text produces it.
    """

    id: int
    content: str
    special: bool


@dataclasses.dataclass(frozen=True)
class FolderSettings:
    """
    Attributes:
        config: content of `tokenizer_config.json`; empty where there is none.
        roles: `<pad>`, `<unk>`, `<s>`, `</s>` to the names of the tokens that play them. A model
            with `[CLS]` and `[SEP]` and no other begin and end has these there.
        special_names: tokens that are special by any of the files.
        added: in the order of their ids.
    """

    config: dict[str, Any]
    roles: dict[str, str]
    special_names: frozenset[str]
    added: tuple[AddedToken, ...]

    @property
    def class_name(self) -> str:
        return self.config.get("tokenizer_class") or ""


def read(folder: Path) -> FolderSettings:
    """The settings of a folder; where it has none of the files, empty ones.

    Raises:
        ConfigError: one of the files is broken.
    """
    config = read_json(folder / CONFIG_FILE)
    values = {**read_json(folder / _MAP_FILE), **{k: v for k, v in config.items() if v is not None}}
    roles = {}
    for role, names in _ROLE_FIELDS.items():
        found = [_name(values[field]) for field in names if values.get(field) is not None]
        if found:
            roles[role] = found[0]
    special = {_name(v) for k, v in values.items() if k.endswith("_token") and _is_name(v)}
    for field in ("additional_special_tokens", "extra_special_tokens"):
        extra = values.get(field) or []
        special |= {_name(v) for v in (extra.values() if isinstance(extra, dict) else extra)}
    return FolderSettings(
        config, roles, frozenset(special), _added_tokens(folder, config, frozenset(special))
    )


def token_names(folder: Path) -> dict[str, str]:
    """`bos_token`, ... to the names of the tokens: the variables of a chat template."""
    values = {**read_json(folder / _MAP_FILE), **read_json(folder / CONFIG_FILE)}
    return {k: _name(v) for k, v in values.items() if k.endswith("_token") and _is_name(v)}


def is_marker(name: str) -> bool:
    """Whether a token is taken for a control token whatever the files say: `<|this|>`, `<think>`.

    Many folders declare those of their chat format as ordinary.
    """
    return name in CHAT_MARKERS or _MARKER.fullmatch(name) is not None


def read_json(path: Path) -> dict[str, Any]:
    """Content of a JSON file; empty where there is no such file.

    Raises:
        ConfigError: it is broken.
    """
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"tokenizer.path: {path.name} beside it is broken ({error})") from error
    if not isinstance(values, dict):
        raise ConfigError(f"tokenizer.path: {path.name} beside it is broken (it is no object)")
    return values


def _added_tokens(
    folder: Path, config: dict[str, Any], special_names: frozenset[str]
) -> tuple[AddedToken, ...]:
    found = {int(token): name for name, token in read_json(folder / _ADDED_FILE).items()}
    declared = config.get("added_tokens_decoder") or {}
    found |= {int(token): value["content"] for token, value in declared.items()}
    marked = {value["content"] for value in declared.values() if value.get("special")}
    return tuple(
        AddedToken(token, name, name in marked or name in special_names or is_marker(name))
        for token, name in sorted(found.items())
    )


def _is_name(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, dict) and "content" in value)


def _name(value: str | dict[str, Any]) -> str:
    return value["content"] if isinstance(value, dict) else value
