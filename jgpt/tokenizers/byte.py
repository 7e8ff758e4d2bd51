"""One token per UTF-8 byte: no training, nothing unknown, three tokens for a kana or kanji."""

from typing import Any

from jgpt.tokenizers.base import SPECIAL_TOKENS, Tokenizer


class ByteTokenizer(Tokenizer):
    """The special tokens, then the 256 bytes. Text is never normalized."""

    kind = "byte"

    def __init__(self):
        self._first = len(SPECIAL_TOKENS)
        super().__init__(
            token_bytes=[b""] * self._first + [bytes([byte]) for byte in range(256)],
            special_tokens={name: token for token, name in enumerate(SPECIAL_TOKENS)},
            emits_unk=False,
        )

    def _normalize(self, text: str) -> str:
        return text

    def _encode(self, text: str) -> list[int]:
        return [self._first + byte for byte in text.encode("utf-8")]

    def _files(self) -> dict[str, bytes]:
        return {}

    def _settings(self) -> dict[str, Any]:
        return {"special_tokens": list(SPECIAL_TOKENS)}

    @classmethod
    def from_saved(cls, files: dict[str, bytes], settings: dict[str, Any]) -> "ByteTokenizer":
        return cls()
