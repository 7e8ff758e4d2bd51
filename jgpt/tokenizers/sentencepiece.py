"""SentencePiece models: unigram (Kudo 2018), BPE and characters; trained here, or a `.model` file.

SentencePiece writes a space as U+2581 (▁). In a model trained here that character itself is spelt
in bytes, so a text that holds it comes back as it was; an existing model turns it into a space.
"""

import dataclasses
import io
import itertools
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sentencepiece

from jgpt.config import ConfigError, TokenizerConfig
from jgpt.tokenizers import folder as folder_settings
from jgpt.tokenizers import sentencepiece_model
from jgpt.tokenizers.base import BOS, CHAT_MARKERS, EOS, PAD, SPECIAL_TOKENS, UNK, Tokenizer
from jgpt.tokenizers.folder import AddedToken
from jgpt.tokenizers.normalization import sentencepiece_rule
from jgpt.tokenizers.wire import without_field

MODEL_FILE = "tokenizer.model"
_SPACE = "▁"
_TRAINING_THREADS = 4
"""Fixed: sums over threads are rounded differently for another number of them."""


_RULE_FILE_FIELD = (3, 6)
"""ModelProto.normalizer_spec.normalization_rule_tsv: a temporary file's name, which would make the
bytes of every training different. The compiled rule itself is in another field."""
_SEEDS_PER_PIECE = 10
_SHRINKING_FACTOR = 0.5
"""Unigram training starts from 10 candidates a piece and halves them every round. On 5 MB of prose
that takes 11 seconds instead of 24 (SentencePiece's defaults: a million candidates, a quarter
dropped a round), for the same number of tokens (0.633 a character)."""


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model behind the common interface."""

    kind = "sentencepiece"

    def __init__(
        self,
        model: bytes,
        added: Sequence[AddedToken] = (),
        roles: dict[str, str] | None = None,
        prefix_after_special: bool = True,
    ):
        """
        Args:
            model: content of a `.model` file.
            added: tokens of a model folder: new ones after the file's, and names of the file's
                own. The special ones are out of text's reach, the others are found in it.
            roles: `<pad>`, `<unk>`, `<s>`, `</s>` to the names of the tokens that play them; for
                those missing here, or not in the vocabulary, the file's own.
            prefix_after_special: where the model puts a space before a text, whether it does so
                for each text between special tokens or only for the first (`legacy` of Llama).

        Raises:
            ConfigError: it is no SentencePiece model, or one of a form that is not supported.
        """
        self.model = model
        self.added = tuple(added)
        self._roles = dict(roles or {})
        self._prefix_after_special = prefix_after_special
        special = _declared_special(model, self.added, self._roles)
        reachable = sentencepiece_model.with_control(model, set(special.values()))
        self._processor = _processor(reachable)
        probe = self._processor.normalize("a")
        if probe.endswith(_SPACE):
            raise ConfigError(
                "tokenizer.path: this SentencePiece model writes spaces as suffixes "
                "(treat_whitespace_as_suffix); use one that writes them as prefixes"
            )
        strips_leading_space = probe.startswith(_SPACE)
        self._continuing = self._processor
        if strips_leading_space and not prefix_after_special:
            self._continuing = _processor(sentencepiece_model.without_dummy_prefix(reachable))
        byte_fallback = any(map(self._processor.is_byte, range(len(self._processor))))
        self._keeps_spaces = (
            self._processor.normalize(" a ") == f"{_SPACE}a{_SPACE}"
            and not strips_leading_space
            and not self._processor.is_unknown(self._processor.piece_to_id(_SPACE))
        )
        ordinary = {t.content: t.id for t in self.added if not t.special}
        ordinary = {name: i for name, i in ordinary.items() if i >= len(self._processor)}
        self._ordinary = ordinary
        names = sorted(ordinary, key=len, reverse=True)
        self._find_added = re.compile("|".join(map(re.escape, names))) if names else None
        super().__init__(
            token_bytes=_all_bytes(self._processor, self.added, ordinary),
            special_tokens=_special_tokens(self._processor, special, self._roles),
            emits_unk=not byte_fallback,
            strips_leading_space=strips_leading_space,
            special_names=_control_names(self._processor) | special,
        )
        self._space_sign_ids = (
            [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE.encode()]
            if byte_fallback
            else [self.unk_id]
        )

    def with_model(self, model: bytes) -> "SentencePieceTokenizer":
        """The same folder's tokenizer with another `.model` file."""
        return SentencePieceTokenizer(model, self.added, self._roles, self._prefix_after_special)

    def _normalize(self, text: str) -> str:
        if self._keeps_spaces:
            return _SPACE.join(
                self._processor.normalize(part).replace(_SPACE, " ") for part in text.split(_SPACE)
            )
        shown = self._processor.normalize(text).replace(_SPACE, " ")
        return shown.removeprefix(" ") if self.strips_leading_space else shown

    def _encode(self, text: str) -> list[int]:
        return self._encode_parts([text])

    def _encode_parts(self, parts: Sequence[str | int]) -> list[int]:
        ids = []
        for part in self._around_added(parts):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += self._encode_piece(part, self._continuing if ids else self._processor)
        return ids

    def _around_added(self, parts: Sequence[str | int]) -> Sequence[str | int]:
        """`parts` with the ordinary added tokens that the texts hold taken out as ids."""
        if self._find_added is None:
            return parts
        found = []
        for part in parts:
            if isinstance(part, int):
                found.append(part)
                continue
            position = 0
            for match in self._find_added.finditer(part):
                found += [part[position : match.start()], self._ordinary[match[0]]]
                position = match.end()
            found.append(part[position:])
        return [part for part in found if part != ""]

    def _encode_piece(
        self, text: str, processor: sentencepiece.SentencePieceProcessor
    ) -> list[int]:
        if _SPACE not in text or not self._keeps_spaces:
            return processor.encode(text)
        first, *others = text.split(_SPACE)
        ids = processor.encode(first)
        for part in others:
            ids += self._space_sign_ids + processor.encode(part)
        return ids

    def _encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        if self._find_added is not None or any(_SPACE in text for text in texts):
            return [self._encode(text) for text in texts]
        return self._processor.encode(texts)

    def _files(self) -> dict[str, bytes]:
        return {MODEL_FILE: self.model}

    def _settings(self) -> dict[str, Any]:
        """Empty for a model that stands for itself."""
        if not self.added and not self._roles and self._prefix_after_special:
            return {}
        return {
            "added": [dataclasses.asdict(token) for token in self.added],
            "roles": self._roles,
            "prefix_after_special": self._prefix_after_special,
        }

    @classmethod
    def from_saved(cls, files: dict[str, bytes], settings: dict[str, Any]) -> Tokenizer:
        added = [AddedToken(**token) for token in settings.get("added", ())]
        return cls(files[MODEL_FILE], **{**settings, "added": added})


def load(path: Path) -> SentencePieceTokenizer:
    """Reads a `.model` file, and what the JSON files beside it add to it.

    T5's `<extra_id_0>` ... are made from `extra_ids` where the folder does not list them.

    Raises:
        ConfigError: as `SentencePieceTokenizer`, or a file beside it is broken.
    """
    model = path.read_bytes()
    _processor(model)
    settings = folder_settings.read(path.parent)
    size = len(sentencepiece_model.pieces(model))
    added = list(settings.added)
    count = settings.config.get("extra_ids") or 0
    if count and not any(token.content == "<extra_id_0>" for token in added):
        added += [
            AddedToken(size + count - 1 - i, f"<extra_id_{i}>", True)
            for i in reversed(range(count))
        ]
    listed = {token.content for token in added}
    names = {piece.text: i for i, piece in enumerate(sentencepiece_model.pieces(model))}
    added += [
        AddedToken(names[name], name, True)
        for name in sorted(settings.special_names)
        if name in names and name not in listed
    ]
    legacy = settings.config.get("legacy")
    return SentencePieceTokenizer(
        model,
        sorted(added, key=lambda token: token.id),
        settings.roles,
        prefix_after_special=legacy is None or legacy,
    )


def _declared_special(
    model: bytes, added: Sequence[AddedToken], roles: dict[str, str]
) -> dict[str, int]:
    """Name to id of the special tokens that a folder declares and the vocabulary has."""
    if not added and not roles:
        return {}
    special = {token.content: token.id for token in added if token.special}
    names = {piece.text: i for i, piece in enumerate(sentencepiece_model.pieces(model))}
    return special | {
        name: names[name] for name in roles.values() if name in names and name not in special
    }


def _all_bytes(
    processor: sentencepiece.SentencePieceProcessor,
    added: Sequence[AddedToken],
    ordinary: dict[str, int],
) -> list[bytes]:
    """The bytes of every id, the added ones included; none for ids that nothing has."""
    size = len(processor)
    last = max((token.id for token in added), default=0)
    others = {token: name.encode() for name, token in ordinary.items()}
    return [_piece_bytes(processor, i) for i in range(size)] + [
        others.get(i, b"") for i in range(size, last + 1)
    ]


def _processor(model: bytes) -> sentencepiece.SentencePieceProcessor:
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
        raise ConfigError(f"tokenizer.path: not a SentencePiece model ({error})") from error


def _piece_bytes(processor: sentencepiece.SentencePieceProcessor, token: int) -> bytes:
    piece = processor.id_to_piece(token)
    if processor.is_byte(token):
        return bytes([int(piece[3:5], 16)])
    if processor.is_control(token) or processor.is_unknown(token) or processor.is_unused(token):
        return b""
    return piece.replace(_SPACE, " ").encode()


def _special_tokens(
    processor: sentencepiece.SentencePieceProcessor, special: dict[str, int], roles: dict[str, str]
) -> dict[str, int]:
    """Name to id: the four roles, by the folder or else by the file, and the other special ones."""
    own = {
        PAD: processor.pad_id(),
        UNK: processor.unk_id(),
        BOS: processor.bos_id(),
        EOS: processor.eos_id(),
    }
    tokens = {role: special.get(roles.get(role), token) for role, token in own.items()}
    eos = tokens[EOS]
    if eos < 0:
        raise ConfigError("tokenizer.path: this SentencePiece model has no end-of-text piece")
    tokens = {name: eos if token < 0 else token for name, token in tokens.items()}
    for token in range(len(processor)):
        if processor.is_control(token) and token not in own.values():
            tokens.setdefault(processor.id_to_piece(token), token)
    for name, token in special.items():
        if token not in own.values():
            tokens.setdefault(name, token)
    return tokens


def _control_names(processor: sentencepiece.SentencePieceProcessor) -> dict[str, int]:
    return {
        processor.id_to_piece(i): i
        for i in range(len(processor))
        if processor.is_control(i) or processor.is_unknown(i)
    }


def train(config: TokenizerConfig, lines: Sequence[str]) -> SentencePieceTokenizer:
    """Trains on `lines` (text without newlines); the same input gives the same bytes.

    A newline is always a token of its own, and so is the space. `char` takes
    `config.vocab_size` as an upper limit.

    Raises:
        ConfigError: the vocabulary size does not fit the text, or the text is empty.
    """
    model = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        try:
            sentencepiece.SentencePieceTrainer.train(
                # Some releases abort on a required character that the text does not have.
                sentence_iterator=itertools.chain(lines, [" "]),
                model_writer=model,
                model_type=config.kind,
                vocab_size=config.vocab_size,
                hard_vocab_limit=config.kind != "char",
                character_coverage=config.character_coverage,
                byte_fallback=config.byte_fallback,
                split_digits=config.split_digits,
                split_by_unicode_script=config.split_scripts,
                required_chars=_SPACE,
                user_defined_symbols=["\n"],
                control_symbols=list(CHAT_MARKERS),
                **{f"{name.strip('<>')}_piece": name for name in (PAD, UNK)},
                **{f"{n}_id": i for i, n in enumerate(("pad", "unk", "bos", "eos"))},
                bos_piece=BOS,
                eos_piece=EOS,
                add_dummy_prefix=False,
                remove_extra_whitespaces=False,
                max_sentence_length=1 << 30,
                shuffle_input_sentence=False,
                seed_sentencepiece_size=_SEEDS_PER_PIECE * config.vocab_size,
                shrinking_factor=_SHRINKING_FACTOR,
                num_threads=_TRAINING_THREADS,
                minloglevel=2,
                **_normalization(config.normalization, folder),
            )
        except RuntimeError as error:
            raise _readable(error, config) from error
    return SentencePieceTokenizer(without_field(model.getvalue(), _RULE_FILE_FIELD))


def _normalization(name: str, folder: str) -> dict[str, str]:
    if name == "identity":
        return {"normalization_rule_name": "identity"}
    path = os.path.join(folder, "nfkc.tsv")
    with open(path, "w", encoding="ascii") as file:
        file.write(sentencepiece_rule())
    return {"normalization_rule_tsv": path}


def _readable(error: RuntimeError, config: TokenizerConfig) -> ConfigError:
    """SentencePiece's message as one line that names the field and the remedy."""
    message = str(error)
    size = f"tokenizer.vocab_size is {config.vocab_size}"
    if largest := re.search(r"set it to a value <= (\d+)", message):
        return ConfigError(
            f"{size}, more than the training text supports; set tokenizer.vocab_size to "
            f"{largest[1]} or less, or train on more text"
        )
    if needed := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return ConfigError(
            f"{size}, less than the text's characters, bytes and special tokens need; set "
            f"tokenizer.vocab_size to {needed[1]} or more, or lower tokenizer.character_coverage"
        )
    if "(vocab_size) >= (0)" in message:
        least = len(SPECIAL_TOKENS) + 1 + (256 if config.byte_fallback else 0)
        return ConfigError(
            f"{size}, less than the special tokens and bytes need; set tokenizer.vocab_size to "
            f"{least} or more"
        )
    if "sentences_.empty()" in message:
        return ConfigError("the tokenizer's training text is empty; check data.sources")
    return ConfigError(f"the tokenizer could not be trained (SentencePiece: {message})")
