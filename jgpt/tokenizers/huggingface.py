"""Existing `tokenizer.json` files, through Hugging Face's `tokenizers` library (an optional extra).

Three families are known: byte-level BPE (GPT-2, where every character of a token's name stands for
a byte), SentencePiece-like models (Llama, with ▁ for a space and `<0xE3>` for a byte) and WordPiece
(BERT, whose pieces are joined with spaces but for those written `##so`).
"""

import functools
import json
import re
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jgpt.config import ConfigError
from jgpt.tokenizers import folder as folder_settings
from jgpt.tokenizers.base import BOS, EOS, PAD, UNK, Tokenizer

TOKENIZER_FILE = "tokenizer.json"
_USUAL_NAMES = {
    PAD: ("<pad>", "[PAD]", "<|padding|>", "<|pad|>"),
    UNK: ("<unk>", "[UNK]"),
    BOS: ("<s>", "<bos>", "<|begin_of_text|>", "<|startoftext|>", "<|endoftext|>", "[CLS]"),
    EOS: ("</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>", "<|im_end|>", "[SEP]"),
}
_SPACE = "▁"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class HuggingFaceTokenizer(Tokenizer):
    """A `tokenizer.json` behind the common interface.

    Tokens that the file calls special, those that look like `<|this|>` and the chat markers of
    `base` cannot be produced by text. What else the file adds (runs of spaces, say) is ordinary.
    """

    kind = "huggingface"

    def __init__(self, content: bytes, roles: dict[str, int]):
        """
        Args:
            content: of the `tokenizer.json`.
            roles: ids of `<pad>`, `<unk>`, `<s>` and `</s>`; see `load`.

        Raises:
            ConfigError: the library is missing, the file is broken or of another family.
        """
        self.content = content
        self.roles = roles
        values = _parse(content)
        names = _names(values)
        special = _special_names(values) | {names[i]: i for i in roles.values()}
        # The library would otherwise find `<s>` in a user's text.
        secret = secrets.token_hex(16)
        self._library = library(_with_hidden(values, {name: secret + name for name in special}))
        added = {token["id"] for token in values["added_tokens"]}
        self._hidden = {i: secret + name for name, i in special.items() if i in added}
        spelling = _spelling(values)
        token_bytes = [
            b"" if name is None or name in special else spelling(name)
            for name in (names.get(token) for token in range(max(names) + 1))
        ]
        super().__init__(
            token_bytes=token_bytes,
            special_tokens=special | roles,
            special_names=special,
            emits_unk=not {bytes([byte]) for byte in range(256)} <= set(token_bytes),
            strips_leading_space=_strips_leading_space(values),
        )

    def _normalize(self, text: str) -> str:
        """What the file's own rules leave of the text: there is no other definition of them."""
        return self.decode(self._encode(text))

    def _encode(self, text: str) -> list[int]:
        return self._library.encode(text, add_special_tokens=False).ids

    def _encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [e.ids for e in self._library.encode_batch(texts, add_special_tokens=False)]

    def _encode_parts(self, parts: Sequence[str | int]) -> list[int]:
        """All at once under the library's hidden names: its rules know what stands before."""
        if not all(isinstance(part, str) or part in self._hidden for part in parts):
            return super()._encode_parts(parts)
        return self._encode(
            "".join(part if isinstance(part, str) else self._hidden[part] for part in parts)
        )

    def _files(self) -> dict[str, bytes]:
        return {TOKENIZER_FILE: self.content}

    def _settings(self) -> dict[str, Any]:
        return {"roles": self.roles}

    @classmethod
    def from_saved(cls, files: dict[str, bytes], settings: dict[str, Any]) -> Tokenizer:
        return cls(files[TOKENIZER_FILE], settings["roles"])


def load(path: Path) -> HuggingFaceTokenizer:
    """Reads a `tokenizer.json` and the `tokenizer_config.json` or `special_tokens_map.json` beside.

    Those name the begin, end, padding and unknown tokens; where they are missing the usual names
    are tried. A tokenizer without one of them uses its end token instead, which it must have.

    Raises:
        ConfigError: as `HuggingFaceTokenizer`, or there is no end token.
    """
    return from_content(path.read_bytes(), path)


def from_content(content: bytes, path: Path) -> HuggingFaceTokenizer:
    """`load` of a content that is in no file; `path` is one beside which it would be."""
    values = _parse(content)
    ids = {name: token for token, name in _names(values).items()}
    declared = folder_settings.read(path.parent).roles
    roles = {}
    for role in _USUAL_NAMES:
        candidates = (declared.get(role), _model_unk(values) if role == UNK else None)
        found = [name for name in (*candidates, *_USUAL_NAMES[role]) if name in ids]
        if found:
            roles[role] = ids[found[0]]
    if EOS not in roles:
        raise ConfigError(
            f"tokenizer.path: {str(path)!r} has no known end-of-text token; name it as eos_token "
            "in a tokenizer_config.json beside it"
        )
    return HuggingFaceTokenizer(
        content, {role: roles.get(role, roles[EOS]) for role in _USUAL_NAMES}
    )


def _parse(content: bytes) -> dict[str, Any]:
    try:
        values = json.loads(content)
        values["model"]["vocab"], values["added_tokens"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError("tokenizer.path: this is not a readable tokenizer.json") from error
    return values


def _names(values: dict[str, Any]) -> dict[int, str]:
    """Id to name of every token."""
    vocabulary = values["model"]["vocab"]
    if isinstance(vocabulary, list):
        names = {token: name for token, (name, _) in enumerate(vocabulary)}
    else:
        names = {token: name for name, token in vocabulary.items()}
    return names | {token["id"]: token["content"] for token in values["added_tokens"]}


def _special_names(values: dict[str, Any]) -> dict[str, int]:
    return {
        token["content"]: token["id"]
        for token in values["added_tokens"]
        if token["special"] or folder_settings.is_marker(token["content"])
    }


def _model_unk(values: dict[str, Any]) -> str | None:
    model = values["model"]
    if model.get("unk_id") is not None:
        return model["vocab"][model["unk_id"]][0]
    return model.get("unk_token")


def _with_hidden(values: dict[str, Any], hidden: dict[str, str]) -> dict[str, Any]:
    """The file's values with tokens renamed as `hidden` says, their ids unchanged.

    Both as added tokens and as entries of the vocabulary. The post-processor, which adds special
    tokens by name, is left out.
    """

    def renamed(name: str | None) -> str | None:
        return hidden.get(name, name)

    model = dict(values["model"])
    if isinstance(model["vocab"], list):
        model["vocab"] = [[renamed(name), score] for name, score in model["vocab"]]
    else:
        model["vocab"] = {renamed(name): token for name, token in model["vocab"].items()}
    if "unk_token" in model:
        model["unk_token"] = renamed(model["unk_token"])
    added = [token | {"content": renamed(token["content"])} for token in values["added_tokens"]]
    changes = {"post_processor": None, "truncation": None, "padding": None}
    return values | changes | {"model": model, "added_tokens": added}


def library(values: dict[str, Any]) -> Any:
    """The library's tokenizer of a file's values.

    Raises:
        ConfigError: it is not installed, or refuses them.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise ConfigError(
            "a tokenizer.json needs the tokenizers package: pip install jgpt[hf]"
        ) from error
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(values))
    except Exception as error:
        raise ConfigError(f"tokenizer.path: the tokenizer.json is refused ({error})") from error


def decoders(values: dict[str, Any]) -> list[dict[str, Any]]:
    """The steps of a file's decoder."""
    decoder = values.get("decoder") or {"type": "none"}
    return decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]


def _spelling(values: dict[str, Any]) -> Callable[[str], bytes]:
    """The function from a token's name to its bytes."""
    found = decoders(values)
    if [decoder["type"] for decoder in found] == ["ByteLevel"]:
        return byte_level_bytes
    if [decoder["type"] for decoder in found] == ["WordPiece"]:
        return functools.partial(word_piece_bytes, found[0]["prefix"])
    if not all(map(_is_sentencepiece_like, found)):
        kinds = " + ".join(decoder["type"] for decoder in found)
        raise ConfigError(
            f"tokenizer.path: the tokenizer.json's decoder ({kinds}) is not supported; use a "
            "byte-level (GPT-2), a SentencePiece-like (Llama) or a WordPiece (BERT) tokenizer"
        )
    byte_fallback = bool(values["model"].get("byte_fallback"))

    def spell(name: str) -> bytes:
        if byte_fallback and (byte := _BYTE.fullmatch(name)):
            return bytes([int(byte[1], 16)])
        return name.replace(_SPACE, " ").encode()

    return spell


def word_piece_bytes(prefix: str, name: str) -> bytes:
    """WordPiece's decoding: a space before every piece but those that continue a word."""
    return (name.removeprefix(prefix) if name.startswith(prefix) else f" {name}").encode()


def _is_sentencepiece_like(decoder: dict[str, Any]) -> bool:
    if decoder["type"] == "Metaspace":
        return decoder["replacement"] == _SPACE
    if decoder["type"] == "Replace":
        return decoder["pattern"] == {"String": _SPACE} and decoder["content"] == " "
    if decoder["type"] == "Strip":
        return (decoder["content"], decoder["start"], decoder["stop"]) == (" ", 1, 0)
    return decoder["type"] in ("ByteFallback", "Fuse")


def _strips_leading_space(values: dict[str, Any]) -> bool:
    for decoder in decoders(values):
        if decoder["type"] in ("Strip", "WordPiece"):
            return True
        if decoder["type"] == "Metaspace":
            # Files older than prepend_scheme have add_prefix_space.
            older = "always" if decoder.get("add_prefix_space", True) else "never"
            return decoder.get("prepend_scheme", older) != "never"
    return False


def _byte_of_character() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 for its own byte, the others from U+0100 on, in order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_of_character()
_CHARACTER_OF_BYTE = {byte: character for character, byte in _BYTE_OF_CHARACTER.items()}


def byte_level_name(data: bytes) -> str:
    """A token's name in a byte-level vocabulary."""
    return "".join(_CHARACTER_OF_BYTE[byte] for byte in data)


def byte_level_bytes(name: str) -> bytes:
    """The bytes of a token's name; a name with other characters stands for itself."""
    if all(character in _BYTE_OF_CHARACTER for character in name):
        return bytes(_BYTE_OF_CHARACTER[character] for character in name)
    return name.encode()
