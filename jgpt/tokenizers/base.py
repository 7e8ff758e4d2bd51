"""What every tokenizer offers, and text shown while it is still being written.

A token stands for some bytes (`token_bytes`), and the text of a sequence is the UTF-8 decoding of
its tokens' bytes, one after the other. Decoding, streaming, truncation and the sampler's byte mask
all rest on that one definition, so they cannot disagree.
"""

import abc
import codecs
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from jgpt.tokenizers.utf8 import incomplete_length

PAD, UNK, BOS, EOS = "<pad>", "<unk>", "<s>", "</s>"
CHAT_MARKERS = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<think>", "</think>")
SPECIAL_TOKENS = (PAD, UNK, BOS, EOS, *CHAT_MARKERS)
"""Reserved in every tokenizer trained here, with the ids 0, 1, 2, ... in this order."""

METADATA_FILE = "jgpt_tokenizer.json"


class Tokenizer(abc.ABC):
    """Text to token ids and back.

    Attributes:
        vocab_size: number of ids; valid ids are 0 ... vocab_size - 1.
        special_tokens: name to id of the tokens that stand for no text. Encoding never emits them
            (except unk), whatever the text says.
        special_names: the same by the names that they have in the tokenizer's files alone, as a
            chat template writes them.
        pad_id, unk_id, bos_id, eos_id: the four that every tokenizer has. An existing tokenizer
            that lacks one has the id of its end token there.
        emits_unk: whether encoding can lose characters to unk. Bits per character of such a
            tokenizer must not be compared with others'.
        strips_leading_space: an existing tokenizer that puts a space before the text when encoding
            and takes it away when decoding. False for all that are trained here.
        fingerprint: sha256 (hex) of everything that decides its behaviour.
    """

    kind: ClassVar[str]

    def __init__(
        self,
        token_bytes: Sequence[bytes],
        special_tokens: dict[str, int],
        emits_unk: bool,
        strips_leading_space: bool = False,
        special_names: dict[str, int] | None = None,
    ):
        self._token_bytes = list(token_bytes)
        self.vocab_size = len(self._token_bytes)
        self.special_tokens = dict(special_tokens)
        self.special_names = dict(special_tokens if special_names is None else special_names)
        self.pad_id, self.unk_id, self.bos_id, self.eos_id = (
            special_tokens[name] for name in (PAD, UNK, BOS, EOS)
        )
        self.emits_unk = emits_unk
        self.strips_leading_space = strips_leading_space
        self._special_names: dict[int, str] = {}
        for name, token in special_tokens.items():
            self._special_names.setdefault(token, name)
        self.fingerprint = _fingerprint(self.kind, self._settings(), self._files())

    @abc.abstractmethod
    def _encode(self, text: str) -> list[int]:
        """Ids of well-formed Unicode text."""

    @abc.abstractmethod
    def _files(self) -> dict[str, bytes]:
        """File name to content of what `save` writes."""

    @abc.abstractmethod
    def _settings(self) -> dict[str, Any]:
        """JSON values that belong to the tokenizer and are in none of its files."""

    @classmethod
    @abc.abstractmethod
    def from_saved(cls, files: dict[str, bytes], settings: dict[str, Any]) -> "Tokenizer":
        """The tokenizer whose `_files` and `_settings` these were."""

    @abc.abstractmethod
    def _normalize(self, text: str) -> str:
        """See `normalize`; of well-formed Unicode text."""

    def _encode_parts(self, parts: Sequence[str | int]) -> list[int]:
        """See `encode_parts`; well-formed texts, none of them empty."""
        ids = []
        for part in parts:
            ids += [part] if isinstance(part, int) else self._encode(part)
        return ids

    def normalize(self, text: str) -> str:
        """What of `text` survives: `decode(encode(text))`, if no character was unknown."""
        return self._normalize(well_formed(text))

    def __reduce__(self):
        """Pickled, for worker processes, as what is saved: libraries' objects often cannot be."""
        return type(self).from_saved, (self._files(), self._settings())

    def _encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self._encode(text) for text in texts]

    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text: nothing is added, and names of special tokens are only characters.

        Lone surrogates (half a character of UTF-16, which JSON may hold) are left out.
        """
        return self._encode(well_formed(text))

    def encode_parts(self, parts: Sequence[str | int]) -> list[int]:
        """Ids of one sequence given as texts and the ids of special tokens between them.

        The texts are ordinary ones, as for `encode`. What stands before them counts: a tokenizer
        that puts a space before a text does so where its library would.

        Raises:
            ValueError: an id that is no special token's.
        """
        known = set(self.special_tokens.values())
        for part in parts:
            if not isinstance(part, str) and part not in known:
                raise ValueError(f"token id {part} is no special token")
        return self._encode_parts(
            [p if isinstance(p, int) else well_formed(p) for p in parts if p != ""]
        )

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """`[encode(text) for text in texts]`, faster where the library has a batched call."""
        return self._encode_batch([well_formed(text) for text in texts])

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token adds to the text; empty for special tokens.

        Raises:
            ValueError: the id is outside the vocabulary.
        """
        token = int(token)
        if not 0 <= token < self.vocab_size:
            raise ValueError(f"token id {token} is outside the vocabulary of {self.vocab_size}")
        return self._token_bytes[token]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of `ids`. Bytes that form no character are left out (see `TextStream`)."""
        if skip_special:
            data = b"".join(map(self.token_bytes, ids))
        else:
            data = b"".join(
                self._special_names.get(int(token), "").encode() + self.token_bytes(token)
                for token in ids
            )
        text = data.decode("utf-8", errors="ignore")
        return text[1:] if self.strips_leading_space and text.startswith(" ") else text

    def streamer(self) -> "TextStream":
        return TextStream(self)

    def save(self, folder: str | os.PathLike) -> None:
        """Writes a folder for `jgpt.tokenizers.load`; each file appears whole or not at all."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        files = self._files()
        metadata = {
            "kind": self.kind,
            "vocab_size": self.vocab_size,
            "files": sorted(files),
            "settings": self._settings(),
            "fingerprint": self.fingerprint,
        }
        for name, content in files.items():
            _write_whole(folder / name, content)
        text = json.dumps(metadata, ensure_ascii=False, indent=1, sort_keys=True) + "\n"
        _write_whole(folder / METADATA_FILE, text.encode())


class TextStream:
    """Turns ids into text one at a time, for showing: bytes wait until they are whole characters.

    The strings returned by `push` and `finish`, joined, are `tokenizer.decode` of all ids. Bytes
    that can never become a character (a model may write anything) are left out, so U+FFFD appears
    only where the text itself holds that character; `dropped_bytes` counts them.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._token_bytes = tokenizer.token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="ignore")
        self._strip_next = tokenizer.strips_leading_space
        self._received = 0
        self._decoded = 0

    @property
    def dropped_bytes(self) -> int:
        """Bytes so far that were left out; those still waiting count only after `finish`."""
        waiting, _ = self._decoder.getstate()
        return self._received - self._decoded - len(waiting)

    def push(self, token: int) -> str:
        """Whole characters that became ready with this token, often none."""
        data = self._token_bytes(token)
        self._received += len(data)
        return self._show(self._decoder.decode(data))

    def finish(self) -> str:
        """Ends the stream; an unfinished character at its end is dropped."""
        return self._show(self._decoder.decode(b"", final=True))

    def _show(self, text: str) -> str:
        self._decoded += len(text.encode())
        if text and self._strip_next:
            self._strip_next = False
            return text.removeprefix(" ")
        return text


def safe_truncate(ids: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """The longest prefix of `ids` that does not end inside a character."""
    ids = list(ids)
    while ids and incomplete_length(_last_bytes(ids, tokenizer)):
        ids.pop()
    return ids


def _last_bytes(ids: Sequence[int], tokenizer: Tokenizer) -> bytes:
    """At least the last three bytes of the sequence, where it has so many."""
    data = b""
    for token in reversed(ids):
        data = tokenizer.token_bytes(token) + data
        if len(data) >= 3:
            break
    return data


def well_formed(text: str) -> str:
    """`text` without lone surrogates, which no UTF-8 can hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-8", errors="ignore").decode("utf-8")
    return text


def _fingerprint(kind: str, settings: dict[str, Any], files: dict[str, bytes]) -> str:
    digest = hashlib.sha256(f"{kind}\n{json.dumps(settings, sort_keys=True)}\n".encode())
    for name in sorted(files):
        digest.update(f"{name} {len(files[name])}\n".encode())
        digest.update(files[name])
    return digest.hexdigest()


def _write_whole(path: Path, content: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)
