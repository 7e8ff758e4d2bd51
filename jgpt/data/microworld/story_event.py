"""What an event of a story is: an operator on a set of facts, and how it is told."""

from __future__ import annotations

from typing import NamedTuple

from jgpt.data.microworld import phrases  # noqa: F401  (defines the slot types used here)
from jgpt.data.microworld.frames import Frame, frames


class Event(NamedTuple):
    """An operator on the state of a story."""

    name: str
    needs: frozenset[str]
    adds: frozenset[str]
    removes: frozenset[str]
    told: tuple[Frame, ...]
    is_ending: bool


def event(name: str, needs: str, effects: str, *told: str, is_ending: bool = False) -> Event:
    """An event; effects are written +fact and -fact."""
    changes = effects.split()
    return Event(
        name,
        frozenset(needs.split()),
        frozenset(change[1:] for change in changes if change[0] == "+"),
        frozenset(change[1:] for change in changes if change[0] == "-"),
        frames(*told),
        is_ending,
    )
