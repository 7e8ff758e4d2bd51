"""SentencePiece models: unigram (Kudo 2018), BPE and characters; trained here, or a `.model` file.

SentencePiece writes a space as U+2581 (▁). In a model trained here that character itself is spelt
in bytes, so a text that holds it comes back as it was; an existing model turns it into a space.
"""

import io
import itertools
import os
import re
import tempfile
from collections.abc import Sequence
from typing import Any

import sentencepiece

from jgpt.config import ConfigError, TokenizerConfig
from jgpt.tokenizers.base import BOS, CHAT_MARKERS, EOS, PAD, SPECIAL_TOKENS, UNK, Tokenizer
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

    def __init__(self, model: bytes):
        """`model`: content of a `.model` file.

        Raises:
            ConfigError: it is no SentencePiece model, or one of a form that is not supported.
        """
        self._model = model
        self._processor = _processor(model)
        probe = self._processor.normalize("a")
        if probe.endswith(_SPACE):
            raise ConfigError(
                "tokenizer.path: this SentencePiece model writes spaces as suffixes "
                "(treat_whitespace_as_suffix); use one that writes them as prefixes"
            )
        strips_leading_space = probe.startswith(_SPACE)
        byte_fallback = any(map(self._processor.is_byte, range(len(self._processor))))
        self._keeps_spaces = (
            self._processor.normalize(" a ") == f"{_SPACE}a{_SPACE}"
            and not strips_leading_space
            and not self._processor.is_unknown(self._processor.piece_to_id(_SPACE))
        )
        super().__init__(
            token_bytes=[_piece_bytes(self._processor, i) for i in range(len(self._processor))],
            special_tokens=_special_tokens(self._processor),
            emits_unk=not byte_fallback,
            strips_leading_space=strips_leading_space,
        )
        self._space_sign_ids = (
            [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE.encode()]
            if byte_fallback
            else [self.unk_id]
        )

    def _normalize(self, text: str) -> str:
        if self._keeps_spaces:
            return _SPACE.join(
                self._processor.normalize(part).replace(_SPACE, " ") for part in text.split(_SPACE)
            )
        shown = self._processor.normalize(text).replace(_SPACE, " ")
        return shown.removeprefix(" ") if self.strips_leading_space else shown

    def _encode(self, text: str) -> list[int]:
        if _SPACE not in text or not self._keeps_spaces:
            return self._processor.encode(text)
        first, *others = text.split(_SPACE)
        ids = self._processor.encode(first)
        for part in others:
            ids += self._space_sign_ids + self._processor.encode(part)
        return ids

    def _encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        if any(_SPACE in text for text in texts):
            return [self._encode(text) for text in texts]
        return self._processor.encode(texts)

    def _files(self) -> dict[str, bytes]:
        return {MODEL_FILE: self._model}

    def _settings(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_saved(cls, files: dict[str, bytes], settings: dict[str, Any]) -> Tokenizer:
        return cls(files[MODEL_FILE])


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


def _special_tokens(processor: sentencepiece.SentencePieceProcessor) -> dict[str, int]:
    unk, bos, eos, pad = (
        processor.unk_id(),
        processor.bos_id(),
        processor.eos_id(),
        processor.pad_id(),
    )
    if eos < 0:
        raise ConfigError("tokenizer.path: this SentencePiece model has no end-of-text piece")
    tokens = {PAD: pad, UNK: unk, BOS: bos, EOS: eos}
    tokens = {name: eos if token < 0 else token for name, token in tokens.items()}
    for token in range(len(processor)):
        if processor.is_control(token) and token not in (pad, bos, eos):
            tokens[processor.id_to_piece(token)] = token
    return tokens


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
