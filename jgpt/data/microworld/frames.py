"""Sentence frames: the one notation that both the generator and the recogniser read.

A frame is a sentence pattern in a small notation:

* ``{hero:person}``  a slot of type ``person``, filled from the cast under the name ``hero``; what
  the cast lacks is drawn once and kept there. ``{person}`` is short for ``{person:person}``.
* ``{act.te:hobby}``  a slot whose filler is a predicate, in the form named after the dot.
* ``{~time}``, ``{~hobby.te}``  an open slot: a filler of that type is drawn anew each time.
* ``[行く|past]``  a word conjugated once, in the register of the text (行った, 行きました).
* ``[うん/はい]``  what is said in plain and in polite texts.

Slot types are defined by ``words``, ``predicates`` (phrases with all their forms), ``patterns``
(alternatives in the same notation, with open slots only) or ``digits`` (any number of that many
digits at most; never drawn). Each frame becomes one
``str.format`` template per register for the generator; the recogniser compiles the same tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from jgpt.data.microworld.conjugation import REGISTERS, Forms, conjugate

Random = Callable[[], float]  # random.Random().random: uniform in [0, 1)

_TOKEN = re.compile(
    r"\{(~?)(\w+)(?:\.([a-z_+]+))?(?::(\w+))?\}"  # a slot: key, form, type
    r"|\[([^|\]]+)\|([a-z_+]+)\]"  # a conjugated word: word, form
    r"|\[([^/\]]+)/([^/\]]+)\]"  # said differently: plain, polite
)


class Slot(NamedTuple):
    """A slot of a frame: the key of its filler, its type, the form it stands in."""

    key: str
    type: str
    form: str
    is_open: bool


Token = str | Slot


def parse(source: str) -> list[tuple[Token, ...]]:
    """Splits a frame into tokens, each given once per register.

    Raises:
      ValueError: a bracket that is neither a slot nor a word, or an unknown form.
    """
    tokens: list[tuple[Token, ...]] = []
    position = 0
    for number, match in enumerate(_TOKEN.finditer(source)):
        if match.start() > position:
            tokens.append((source[position : match.start()],) * len(REGISTERS))
        position = match.end()
        is_open, name, form, slot_type, word, word_form, plain, polite = match.groups()
        if plain:
            tokens.append((plain, polite))
        elif word:
            tokens.append(tuple(conjugate(word, word_form, register) for register in REGISTERS))
        else:
            key = f"_{number}" if is_open else name
            slot = Slot(key, slot_type or name, form or "", bool(is_open))
            tokens.append((slot,) * len(REGISTERS))
    if position < len(source):
        tokens.append((source[position:],) * len(REGISTERS))
    if any(isinstance(token[0], str) and re.search(r"[{}\[\]|]", token[0]) for token in tokens):
        raise ValueError(f"frame {source!r}: a bracket that is no slot and no conjugated word")
    return tokens


class Frame:
    """A sentence frame; ``write`` fills it.

    It is compiled when first used: importing the package must cost little.

    Attributes:
      source: the frame in its notation.
      tokens: texts and slots, each as a pair by register.
      keys: the names of its named slots.
    """

    __slots__ = ("_slots", "_templates", "keys", "source", "tokens")

    def __init__(self, source: str):
        self.source = source

    def __getattr__(self, name: str) -> object:
        # Reached only while a slot of the instance is still empty: before the first use.
        if name not in Frame.__slots__:
            raise AttributeError(name)
        self._compile()
        return getattr(self, name)

    def _compile(self) -> None:
        self.tokens = parse(self.source)
        self._templates = tuple(self._template(register) for register in REGISTERS)
        slots = [token[0] for token in self.tokens if isinstance(token[0], Slot)]
        self.keys = frozenset(slot.key for slot in slots if not slot.is_open)
        self._slots = tuple((slot.key, slot_type(slot.type), slot.is_open) for slot in slots)

    def _template(self, register: int) -> str:
        parts = []
        for token in self.tokens:
            part = token[register]
            if isinstance(part, Slot):
                part = f"{{{part.key}[{part.form}]}}" if part.form else f"{{{part.key}}}"
            parts.append(part)
        return "".join(parts)

    def write(self, cast: dict, random: Random, register: int) -> str:
        """The sentence: named slots from ``cast``, open slots and missing ones drawn."""
        for key, drawn_type, is_open in self._slots:
            if is_open or key not in cast:
                cast[key] = drawn_type.draw(random, register)
        return self._templates[register].format_map(cast)

    def rewrite(self, cast: dict, register: int) -> str:
        """The sentence once more with the fillers that ``write`` left in the cast."""
        return self._templates[register].format_map(cast)


class SlotType:
    """What may stand in a slot: words, predicates and patterns."""

    __slots__ = ("digits", "fillers", "name", "patterns", "predicates", "words")

    def __init__(
        self,
        name: str,
        words: Iterable[str] = (),
        predicates: Iterable[str] = (),
        patterns: Iterable[str] = (),
        digits: int = 0,
    ):
        self.name = name
        self.digits = digits
        self.words = tuple(dict.fromkeys(words))
        self.predicates = tuple(dict.fromkeys(predicates))
        self.patterns = tuple(Frame(pattern) for pattern in patterns)
        self.fillers = tuple(
            (*self.words, *(Forms(phrase, register) for phrase in self.predicates), *self.patterns)
            for register in REGISTERS
        )
        if not self.fillers[0] and not digits:
            raise ValueError(f"slot type {name!r}: no words, predicates, patterns or digits")

    def draw(self, random: Random, register: int) -> str | Forms:
        """One filler, each with the same chance."""
        fillers = self.fillers[register]
        filler = fillers[int(random() * len(fillers))]
        if filler.__class__ is Frame:
            return filler.write({}, random, register)
        return filler


_TYPES: dict[str, SlotType] = {}
_FRAMES: dict[str, Frame] = {}


def slot_type(name: str) -> SlotType:
    """The slot type of that name.

    Raises:
      ValueError: no such type has been defined before its first use.
    """
    if name not in _TYPES:
        raise ValueError(f"slot type {name!r}: not defined; define it before the frame using it")
    return _TYPES[name]


def define(
    name: str,
    words: Iterable[str] | str = (),
    predicates: Iterable[str] | str = (),
    patterns: Iterable[str] = (),
    digits: int = 0,
) -> SlotType:
    """Defines a slot type; a string of words or predicates is split at blanks."""
    if name in _TYPES:
        raise ValueError(f"slot type {name!r}: defined twice")
    words = words.split() if isinstance(words, str) else words
    predicates = predicates.split() if isinstance(predicates, str) else predicates
    _TYPES[name] = SlotType(name, words, predicates, patterns, digits)
    return _TYPES[name]


def frame(source: str) -> Frame:
    """The frame of that notation, registered as one that the world's language has."""
    if source not in _FRAMES:
        _FRAMES[source] = Frame(source)
    return _FRAMES[source]


def frames(*sources: str) -> tuple[Frame, ...]:
    """Several frames that say the same thing."""
    return tuple(frame(source) for source in sources)


def all_frames() -> Iterator[Frame]:
    """Every registered frame: the language, as the recogniser compiles it."""
    return iter(_FRAMES.values())


def pick(choices: tuple, random: Random):
    """One of several choices, each with the same chance."""
    return choices[int(random() * len(choices))]
