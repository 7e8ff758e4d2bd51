"""What a script of a dialogue is made of."""

from __future__ import annotations

from typing import NamedTuple

from jgpt.data.microworld import dialogue_words  # noqa: F401  (defines slot types used here)
from jgpt.data.microworld.frames import Frame, frames


class Turn(NamedTuple):
    """One line: the speaker (0 or 1), the ways to say it, and how often it is said at all."""

    speaker: int
    said: tuple[Frame, ...]
    chance: float


class Script(NamedTuple):
    """A kind of conversation: between whom, and its turns."""

    pair: str
    turns: tuple[Turn, ...]


def script(pair: str, *turns: Turn) -> Script:
    """A script between such a pair."""
    return Script(pair, turns)


def first(*said: str, chance: float = 1.0) -> Turn:
    """A line of the first speaker."""
    return Turn(0, frames(*said), chance)


def second(*said: str, chance: float = 1.0) -> Turn:
    """A line of the second speaker."""
    return Turn(1, frames(*said), chance)
