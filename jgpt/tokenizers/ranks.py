"""Byte-pair encodings given as ranks, the form of OpenAI's `tiktoken` library (an optional extra).

Three files of public models have it: `*.tiktoken` (Qwen), Llama 3's original `tokenizer.model`
(both lines of a token in base64 and its rank) and Mistral's `tekken.json`.
"""

import base64
import binascii
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jgpt.config import ConfigError
from jgpt.tokenizers import folder as folder_settings
from jgpt.tokenizers.base import BOS, EOS, PAD, UNK, Tokenizer

RANKS_FILE = "ranks.tiktoken"
TEKKEN_FILE = "tekken.json"
_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_QWEN_SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    *(f"<|extra_{i}|>" for i in range(205)),
)
_LLAMA3_SPECIAL = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|reserved_special_token_2|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    *(f"<|reserved_special_token_{i}|>" for i in range(3, 248)),
)
_TEKKEN_SPECIAL = (
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[TOOL_CALLS]",
    "[IMG]",
    "<pad>",
    "[IMG_BREAK]",
    "[IMG_END]",
    "[PREFIX]",
    "[MIDDLE]",
    "[SUFFIX]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[TOOL_CONTENT]",
)
"""Of tekken files that do not list their own (versions before v7)."""
_USUAL_NAMES = {
    PAD: ("<pad>", "<|finetune_right_pad_id|>"),
    UNK: ("<unk>",),
    BOS: ("<s>", "<|begin_of_text|>", "<|endoftext|>"),
    EOS: ("</s>", "<|end_of_text|>", "<|endoftext|>"),
}


class RankTokenizer(Tokenizer):
    """Byte-pair encoding by ranks behind the common interface; nothing is unknown or normalized."""

    kind = "ranks"

    def __init__(
        self,
        pieces: Sequence[bytes],
        pattern: str,
        special: dict[str, int],
        roles: dict[str, str],
        first: int = 0,
    ):
        """
        Args:
            pieces: the bytes of each rank.
            pattern: regular expression whose matches are encoded one by one.
            special: name to id of the special tokens.
            roles: `<pad>`, `<unk>`, `<s>`, `</s>` to the names of the tokens that play them; one
                that is missing is given the end token.
            first: the id of rank 0.

        Raises:
            ConfigError: the library is missing, or there is no end token.
        """
        self._pieces = list(pieces)
        self._pattern = pattern
        self._special = dict(special)
        self._roles = dict(roles)
        self._first = first
        self._library = _library(self._pieces, pattern)
        found = {}
        for role, usual in _USUAL_NAMES.items():
            names = [name for name in (roles.get(role), *usual) if name in special]
            if names:
                found[role] = special[names[0]]
        if EOS not in found:
            raise ConfigError(
                "tokenizer.path: no end-of-text token is known; name it as eos_token in a "
                "tokenizer_config.json beside the file"
            )
        size = max([first + len(self._pieces), *(token + 1 for token in special.values())])
        token_bytes = [b""] * size
        token_bytes[first : first + len(self._pieces)] = self._pieces
        for token in special.values():
            token_bytes[token] = b""
        super().__init__(
            token_bytes=token_bytes,
            special_tokens=special | {role: found.get(role, found[EOS]) for role in _USUAL_NAMES},
            emits_unk=False,
            special_names=special,
        )

    def _normalize(self, text: str) -> str:
        return text

    def _encode(self, text: str) -> list[int]:
        return [self._first + rank for rank in self._library.encode_ordinary(text)]

    def _files(self) -> dict[str, bytes]:
        lines = (base64.b64encode(p) + b" %d\n" % rank for rank, p in enumerate(self._pieces))
        return {RANKS_FILE: b"".join(lines)}

    def _settings(self) -> dict[str, Any]:
        return {
            "pattern": self._pattern,
            "special": self._special,
            "roles": self._roles,
            "first": self._first,
        }

    @classmethod
    def from_saved(cls, files: dict[str, bytes], settings: dict[str, Any]) -> Tokenizer:
        return cls(_read_ranks(files[RANKS_FILE]), **settings)


def is_rank_file(content: bytes) -> bool:
    """Whether a file called `tokenizer.model` holds ranks, and no SentencePiece model."""
    head = content[:256].split(b"\n")[0].split(b" ")
    return len(head) == 2 and head[1].strip().isdigit()


def load(path: Path) -> RankTokenizer:
    """Reads a `*.tiktoken` file, a `tokenizer.model` of that form, or a `tekken.json`.

    The rank files say nothing about special tokens and the pattern: those of Llama 3 are taken for
    its 128,000 ranks, otherwise Qwen's.

    Raises:
        ConfigError: as `RankTokenizer`, or a file is broken.
    """
    settings = folder_settings.read(path.parent)
    if path.suffix == ".json":
        return _load_tekken(path, settings.roles)
    pieces = _read_ranks(path.read_bytes())
    llama = len(pieces) == 128_000
    names = _LLAMA3_SPECIAL if llama else _QWEN_SPECIAL
    special = {name: len(pieces) + i for i, name in enumerate(names)}
    special |= {token.content: token.id for token in settings.added if token.special}
    return RankTokenizer(pieces, _LLAMA3 if llama else _QWEN, special, settings.roles)


def _load_tekken(path: Path, roles: dict[str, str]) -> RankTokenizer:
    """The first ids are the special tokens; the file may hold more ranks than the model uses."""
    values = folder_settings.read_json(path)
    try:
        config = values["config"]
        first = config["default_num_special_tokens"]
        count = config["default_vocab_size"] - first
        ranked = sorted(values["vocab"], key=lambda token: token["rank"])[:count]
        pieces = [base64.b64decode(token["token_bytes"]) for token in ranked]
        listed = values.get("special_tokens")
        special = {f"<SPECIAL_{i}>": i for i in range(first)}
        named = [token["token_str"] for token in listed] if listed else _TEKKEN_SPECIAL
        special = {name: i for i, name in enumerate([*named, *list(special)[len(named) :]])}
        return RankTokenizer(pieces, config["pattern"], special, roles, first)
    except (KeyError, TypeError, binascii.Error) as error:
        raise ConfigError(f"tokenizer.path: {str(path)!r} is no readable tekken.json") from error


def _read_ranks(content: bytes) -> list[bytes]:
    try:
        found = dict(reversed(line.split()) for line in content.splitlines() if line.strip())
        ranks = {int(rank): base64.b64decode(piece) for rank, piece in found.items()}
        return [ranks[rank] for rank in range(len(ranks))]
    except (ValueError, KeyError) as error:
        raise ConfigError(
            "tokenizer.path: this is not a readable rank file (base64 and a rank on each line)"
        ) from error


def _library(pieces: Sequence[bytes], pattern: str) -> Any:
    try:
        import tiktoken
    except ImportError as error:
        raise ConfigError(
            "a file of byte-pair ranks needs the tiktoken package: pip install jgpt[tiktoken]"
        ) from error
    ranks = {piece: rank for rank, piece in enumerate(pieces)}
    try:
        return tiktoken.Encoding("jgpt", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    except ValueError as error:
        raise ConfigError(f"tokenizer.path: the ranks are refused ({error})") from error
