"""Turns an index into a document: the only place where kinds, seeds and indices meet."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from jgpt.data.document import Document
from jgpt.data.microworld import arithmetic, dialogues, entries, instructions, questions, stories
from jgpt.data.microworld.frames import Random

DEFAULT_SIZE = 240_000

# kind: (its share of the documents in percent, what makes one). A maker gives the text, the
# prompt and the answer.
_MAKERS: dict[str, tuple[int, Callable[[Random], tuple[str, str | None, str | None]]]] = {
    "story": (32, stories.make),
    "dialogue": (18, dialogues.make),
    "encyclopedia": (14, entries.make),
    "qa": (14, questions.make),
    "arithmetic": (12, arithmetic.make),
    "instruction": (10, instructions.make),
}
KINDS = tuple(_MAKERS)
_WHEEL = tuple(kind for kind, (share, _) in _MAKERS.items() for _ in range(share))
_MASK = (1 << 64) - 1


def _mix(number: int) -> int:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): neighbours become unrelated."""
    number = (number + 0x9E3779B97F4A7C15) & _MASK
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & _MASK
    return number ^ (number >> 31)


def document(index: int, seed: int = 0) -> Document:
    """The document with that index in the corpus of that seed.

    Pure: the same on every platform and Python version, in any order of calls.

    Raises:
      ValueError: a negative index.
    """
    kind, draw = _begin(index, seed)
    text, prompt, answer = _MAKERS[kind][1](draw)
    return Document(text, f"microworld/{seed}/{index}", kind, answer, prompt)


def kind_of(index: int, seed: int = 0) -> str:
    """The kind of a document, without making it: twenty times faster.

    Raises:
      ValueError: a negative index.
    """
    return _begin(index, seed)[0]


def _begin(index: int, seed: int) -> tuple[str, Random]:
    """The kind of a document, and the numbers that the rest of it is drawn with."""
    if index < 0:
        raise ValueError(f"index {index}: documents are numbered from 0")
    draw = random.Random(_mix(_mix(seed & _MASK) ^ index)).random
    return _WHEEL[int(draw() * len(_WHEEL))], draw


def documents(start: int, stop: int, seed: int = 0) -> Iterator[Document]:
    """The documents from ``start`` up to, not including, ``stop``."""
    for index in range(start, stop):
        yield document(index, seed)
