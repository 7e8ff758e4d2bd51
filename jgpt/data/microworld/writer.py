"""What every kind of text but the stories is written with."""

from __future__ import annotations

from jgpt.data.microworld.conjugation import PLAIN, POLITE
from jgpt.data.microworld.frames import Frame, Random, pick
from jgpt.data.microworld.world import WORLD


class Writer:
    """The draws, the register and the cast of one text.

    The cast starts with two people of the world, ``a`` and ``b`` (``first`` and ``second``), and
    the town of the first.
    """

    def __init__(self, random: Random, plain_share: float = 0.35):
        self.random = random
        self.register = PLAIN if random() < plain_share else POLITE
        self.first = pick(WORLD.people, random)
        self.second = pick(WORLD.people, random)
        while self.second is self.first:
            self.second = pick(WORLD.people, random)
        self.cast: dict = {"a": self.first.name, "b": self.second.name, "town": self.first.town}

    def say(self, choices: tuple[Frame, ...] | Frame, **cast: object) -> str:
        """One sentence from one of the frames, with these additions to the cast."""
        self.cast.update(cast)
        chosen = choices if isinstance(choices, Frame) else pick(choices, self.random)
        return chosen.write(self.cast, self.random, self.register)

    def number(self, low: int, high: int, step: int = 1) -> int:
        """A number from low to high, both included, in steps."""
        return low + step * int(self.random() * ((high - low) // step + 1))

    def pick(self, choices: tuple):
        """One of several choices, each with the same chance."""
        return choices[int(self.random() * len(choices))]

    def shuffled(self, items: list) -> list:
        """The items in a random order."""
        items = list(items)
        for last in range(len(items) - 1, 0, -1):
            other = int(self.random() * (last + 1))
            items[last], items[other] = items[other], items[last]
        return items
