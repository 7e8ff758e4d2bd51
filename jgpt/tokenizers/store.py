"""Loading, training and caching tokenizers."""

import dataclasses
import hashlib
import json
import logging
import os
import shutil
import tempfile
import unicodedata
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from jgpt.config import ConfigError, TokenizerConfig
from jgpt.tokenizers import folder as folder_settings
from jgpt.tokenizers import huggingface, merges, ranks, sentencepiece, word, wordpiece
from jgpt.tokenizers.base import METADATA_FILE, SPECIAL_TOKENS, Tokenizer
from jgpt.tokenizers.byte import ByteTokenizer
from jgpt.tokenizers.huggingface import HuggingFaceTokenizer
from jgpt.tokenizers.ranks import RankTokenizer
from jgpt.tokenizers.sentencepiece import SentencePieceTokenizer
from jgpt.tokenizers.word import WordTokenizer
from jgpt.tokenizers.wordpiece import WordPieceTokenizer

_log = logging.getLogger(__name__)

KINDS: dict[str, type[Tokenizer]] = {
    kind.kind: kind
    for kind in (
        SentencePieceTokenizer,
        ByteTokenizer,
        WordTokenizer,
        HuggingFaceTokenizer,
        RankTokenizer,
        WordPieceTokenizer,
    )
}
_FILES_IN_FOLDER = (
    huggingface.TOKENIZER_FILE,
    sentencepiece.MODEL_FILE,
    "spiece.model",
    "spm.model",
    "*.tiktoken",
    ranks.TEKKEN_FILE,
    wordpiece.VOCABULARY_FILE,
    merges.VOCABULARY_FILE,
)
"""Of a model's folder, the first that is there."""
_RECIPE = 1
"""Raised when training changes, so that caches of the older recipe are not used."""
_SENTENCEPIECE_KINDS = ("unigram", "bpe", "char")
TRAINABLE_KINDS = (*_SENTENCEPIECE_KINDS, "word", "byte")
_RELEVANT_FIELDS = {
    **dict.fromkeys(
        _SENTENCEPIECE_KINDS,
        (
            "vocab_size",
            "character_coverage",
            "byte_fallback",
            "split_digits",
            "split_scripts",
            "normalization",
        ),
    ),
    "word": ("vocab_size", "normalization", "word_segmenter"),
}


def load(path: str | os.PathLike) -> Tokenizer:
    """A saved tokenizer, the tokenizer of a Hugging Face model's folder, or one of its files.

    A folder written by `Tokenizer.save` is read as it was. In a model's folder the first of
    `tokenizer.json`, a SentencePiece model, a file of ranks (`*.tiktoken`, `tekken.json`),
    `vocab.txt` and GPT-2's `vocab.json` decides, and the JSON files beside it name the added and
    special tokens. A folder of class BertJapaneseTokenizer is read from its `vocab.txt`. `~` and
    `$VARIABLES` are expanded.

    Raises:
        ConfigError: nothing there is a tokenizer, its content is not what was saved, or a package
            that it needs is missing.
    """
    path = Path(os.path.expandvars(os.path.expanduser(path)))
    if (path / METADATA_FILE).is_file():
        return _load_saved(path)
    return _load_file(find(path))


def find(path: Path) -> Path:
    """The file that decides in a model's folder (see `load`); a file is itself.

    Raises:
        ConfigError: there is none.
    """
    if path.is_file():
        return path
    class_name = folder_settings.read(path).class_name
    names = _FILES_IN_FOLDER
    if class_name == wordpiece.JAPANESE_CLASS:
        names = (wordpiece.VOCABULARY_FILE,)
    for name in names:
        for file in sorted(path.glob(name)):
            return file
    written = f" (its tokenizer_config.json says {class_name})" if class_name else ""
    raise ConfigError(
        f"tokenizer.path: no tokenizer at {str(path)!r}{written}; give a folder with one of "
        f"{', '.join((METADATA_FILE, *names))}, or one of these files"
    )


def _load_file(path: Path) -> Tokenizer:
    if path.suffix == ".tiktoken" or path.name.startswith("tekken"):
        return ranks.load(path)
    if path.name == merges.VOCABULARY_FILE:
        return merges.load(path)
    if path.suffix == ".json":
        return huggingface.load(path)
    if path.suffix == ".txt":
        return wordpiece.load(path)
    if ".model" not in path.suffixes:
        raise ConfigError(
            f"tokenizer.path: {str(path)!r} is no tokenizer file; known are .json, .model, "
            ".tiktoken and vocab.txt"
        )
    with open(path, "rb") as file:
        is_ranks = ranks.is_rank_file(file.read(256))
    return ranks.load(path) if is_ranks else sentencepiece.load(path)


def _load_saved(folder: Path) -> Tokenizer:
    try:
        values = json.loads((folder / METADATA_FILE).read_text(encoding="utf-8"))
        files = {name: (folder / name).read_bytes() for name in values["files"]}
        tokenizer = KINDS[values["kind"]].from_saved(files, values["settings"])
        fingerprint = values["fingerprint"]
    except ConfigError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"tokenizer.path: {str(folder)!r} is damaged ({error!r}); save it again"
        ) from error
    if tokenizer.fingerprint != fingerprint:
        raise ConfigError(
            f"tokenizer.path: {str(folder)!r} is not what was saved there (its fingerprint "
            "differs); save or train it again"
        )
    return tokenizer


def build(
    config: TokenizerConfig, texts: Callable[[], Iterable[str]], cache: str | None
) -> Tokenizer:
    """`load(config.path)` where a path is given, else `train` on `texts()`."""
    if config.path:
        return load(config.path)
    return train(config, texts(), cache)


def train(config: TokenizerConfig, texts: Iterable[str], cache: str | None) -> Tokenizer:
    """Trains a tokenizer on the first `config.train_megabytes` (10^6 bytes of UTF-8) of `texts`.

    The same settings, text and SentencePiece version give the same bytes and fingerprint.

    Args:
        cache: folder in which it is kept under a hash of all that decides the result, and found
            again; None for no cache.

    Raises:
        ConfigError: the text is empty, or a setting does not fit it.
    """
    if config.kind == "byte":
        return ByteTokenizer()
    if config.kind == "huggingface":
        raise ConfigError("tokenizer.kind is huggingface; set tokenizer.path to a tokenizer.json")
    _check(config)
    lines = training_lines(texts, config.train_megabytes)
    if not lines:
        raise ConfigError("the tokenizer's training text is empty; check data.sources")
    if cache is None:
        return _train(config, lines)
    folder = Path(cache) / "tokenizers" / _cache_key(config, lines)
    if folder.is_dir():
        try:
            return load(folder)
        except ConfigError as error:
            _log.warning("%s. It is trained again.", error)
            shutil.rmtree(folder)
    tokenizer = _train(config, lines)
    _save_whole(tokenizer, folder)
    return tokenizer


def _check(config: TokenizerConfig) -> None:
    if config.vocab_size <= len(SPECIAL_TOKENS):
        raise ConfigError(
            f"tokenizer.vocab_size is {config.vocab_size}; it must be above the "
            f"{len(SPECIAL_TOKENS)} special tokens"
        )
    if not 0.9 <= config.character_coverage <= 1:
        raise ConfigError(
            f"tokenizer.character_coverage is {config.character_coverage}; it must lie in [0.9, 1]"
        )
    if config.train_megabytes <= 0:
        raise ConfigError(
            f"tokenizer.train_megabytes is {config.train_megabytes}; it must be positive"
        )


def training_lines(texts: Iterable[str], megabytes: float) -> list[str]:
    """Non-empty lines from the start of `texts`, `megabytes` of UTF-8 at most."""
    left = int(megabytes * 1_000_000)
    lines = []
    for text in texts:
        for line in text.split("\n"):
            encoded = line.encode("utf-8", errors="ignore")
            if encoded.strip():
                lines.append(encoded[:left].decode("utf-8", errors="ignore"))
            left -= len(encoded) + 1
            if left <= 0:
                return lines
    return lines


def _train(config: TokenizerConfig, lines: list[str]) -> Tokenizer:
    if config.kind == "word":
        return word.train(config, lines)
    return sentencepiece.train(config, lines)


def _cache_key(config: TokenizerConfig, lines: list[str]) -> str:
    digest = hashlib.sha256(json.dumps(_decisive(config), sort_keys=True).encode())
    for line in lines:
        digest.update(f"{line}\n".encode())
    return f"{config.kind}-{digest.hexdigest()[:24]}"


def _decisive(config: TokenizerConfig) -> dict[str, Any]:
    """What the result depends on beside the text."""
    settings = dataclasses.asdict(config)
    return {
        "recipe": _RECIPE,
        "kind": config.kind,
        **{name: settings[name] for name in _RELEVANT_FIELDS[config.kind]},
        "special_tokens": SPECIAL_TOKENS,
        "sentencepiece": metadata.version("sentencepiece"),
        "unicode": unicodedata.unidata_version,
    }


def _save_whole(tokenizer: Tokenizer, folder: Path) -> None:
    """Saves under another name first: a folder of this name is always complete."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-")
    os.chmod(partial, 0o755)
    try:
        tokenizer.save(partial)
        os.rename(partial, folder)
    except OSError:
        shutil.rmtree(partial)
        # Where the folder is there, another process was faster; what it wrote is the same.
        if not folder.is_dir():
            raise
