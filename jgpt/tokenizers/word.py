"""Whole words, the most frequent ones; all others become unk.

A baseline and a teaching tool: a closed vocabulary loses text, so its bits per character cannot be
compared with those of the other tokenizers (`emits_unk`).
"""

import collections
import functools
import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from jgpt.config import ConfigError, TokenizerConfig
from jgpt.tokenizers.base import SPECIAL_TOKENS, Tokenizer
from jgpt.tokenizers.normalization import nfkc

VOCABULARY_FILE = "vocabulary.json"
_WORD_OR_SPACE = re.compile(r" ?\S+|\s")
_NORMALIZATIONS: dict[str, Callable[[str], str]] = {"identity": str, "nfkc": nfkc}


class WordTokenizer(Tokenizer):
    """The special tokens, then the words, the most frequent first."""

    kind = "word"

    def __init__(self, words: Sequence[str], segmenter: str, normalization: str):
        """
        Args:
            words: what has an id, in order.
            segmenter: a name from `SEGMENTERS`.
            normalization: `identity` or `nfkc`, before segmenting.

        Raises:
            ConfigError: the segmenter's package is not installed.
        """
        self._words = list(words)
        self._segmenter = segmenter
        self._normalization = normalization
        self._segment = SEGMENTERS[segmenter]()
        self._ids = {word: i for i, word in enumerate(self._words, len(SPECIAL_TOKENS))}
        super().__init__(
            token_bytes=[b""] * len(SPECIAL_TOKENS) + [word.encode() for word in self._words],
            special_tokens={name: token for token, name in enumerate(SPECIAL_TOKENS)},
            emits_unk=True,
        )

    def _normalize(self, text: str) -> str:
        return _NORMALIZATIONS[self._normalization](text)

    def _encode(self, text: str) -> list[int]:
        words = self._segment(self._normalize(text))
        return [self._ids.get(word, self.unk_id) for word in words]

    def _files(self) -> dict[str, bytes]:
        return {VOCABULARY_FILE: json.dumps(self._words, ensure_ascii=False, indent=0).encode()}

    def _settings(self) -> dict[str, Any]:
        return {"segmenter": self._segmenter, "normalization": self._normalization}

    @classmethod
    def from_saved(cls, files: dict[str, bytes], settings: dict[str, Any]) -> Tokenizer:
        return cls(json.loads(files[VOCABULARY_FILE]), **settings)


def train(config: TokenizerConfig, lines: Sequence[str]) -> WordTokenizer:
    """The most frequent words of `lines` (text without newlines), ties in code point order.

    `config.vocab_size` is an upper limit.
    """
    normalize = _NORMALIZATIONS[config.normalization]
    segment = SEGMENTERS[config.word_segmenter]()
    counts = collections.Counter({"\n": len(lines)})
    for line in lines:
        counts.update(segment(normalize(line)))
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    words = ranked[: config.vocab_size - len(SPECIAL_TOKENS)]
    return WordTokenizer(words, config.word_segmenter, config.normalization)


def _whitespace() -> Callable[[str], list[str]]:
    """Words between whitespace; one space before a word belongs to it, the rest stand alone."""
    return _WORD_OR_SPACE.findall


def _mecab() -> Callable[[str], list[str]]:
    try:
        import fugashi

        tagger = fugashi.Tagger()
    except (ImportError, RuntimeError) as error:
        raise ConfigError(
            "tokenizer.word_segmenter is mecab, which needs more packages: pip install jgpt[mecab]"
        ) from error
    return functools.partial(_by_line, lambda line: (word.surface for word in tagger(line)))


def _sudachi() -> Callable[[str], list[str]]:
    try:
        import sudachipy

        dictionary = sudachipy.Dictionary().create(mode=sudachipy.SplitMode.C)
    except (ImportError, RuntimeError) as error:
        raise ConfigError(
            "tokenizer.word_segmenter is sudachi, which needs more packages: "
            "pip install jgpt[sudachi]"
        ) from error
    return functools.partial(
        _by_line, lambda line: (word.surface() for word in dictionary.tokenize(line))
    )


SEGMENTERS: dict[str, Callable[[], Callable[[str], list[str]]]] = {
    "whitespace": _whitespace,
    "mecab": _mecab,
    "sudachi": _sudachi,
}
"""Name to a function that makes a segmenter: text to pieces which, joined, are the text."""

_LONGEST_CALL = 8000
"""Characters given to an analyser at once; Sudachi refuses more than 49,149 bytes."""


def _by_line(surfaces: Callable[[str], Iterable[str]], text: str) -> list[str]:
    """Segments each line, and puts back the whitespace that analysers leave out, one by one."""
    pieces = []
    for line in re.findall(f"\n|[^\n]{{1,{_LONGEST_CALL}}}", text):
        pieces += [line] if line == "\n" else _with_gaps(line, surfaces(line))
    return pieces


def _with_gaps(line: str, surfaces: Iterable[str]) -> list[str]:
    pieces = []
    position = 0
    for surface in surfaces:
        start = line.find(surface, position)
        if start < 0 or not surface:
            continue
        pieces += [*line[position:start], surface]
        position = start + len(surface)
    return pieces + list(line[position:])
