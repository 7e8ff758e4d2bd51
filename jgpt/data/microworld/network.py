"""The grammar of the world as a recursive transition network, compiled from the frames.

A frame is a path of characters and calls of slot types; a slot type is a network of its own (a
trie of its words, the forms of its predicates, its patterns), in which types of one grammatical
kind stand for one another (``word_kinds``). Frames are cut where they end a clause (…ので、 …て、),
and any clause may follow any other, as long as the last one ends a sentence: Japanese chains
clauses freely, and who does what is then often left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from jgpt.data.microworld.conjugation import REGISTERS, conjugate
from jgpt.data.microworld.frames import Frame, Slot, Token, slot_type
from jgpt.data.microworld.word_kinds import ACTIVITY, ADJUNCTS, WIDER

# What stands before 、 at the end of a clause: conjunctions, て-forms, conditionals, and stems
# (行き、 食べ、), which end in a kana of the い or え row.
_CLAUSE_END = re.compile(
    r"(?:ので|から|ながら|けれど|のに|ずに|では|たが|ですが|ますが|くと|ると|すと|うと|いと|で|ば|たら|なら|ころ|とき|たび|ために"
    r"|には|たびに|[てえきぎしちびみりいけげせべめれ])$"
)
_TIME_TYPES = frozenset(
    (
        *("some_day", "morning", "winter_morning", "summer_day", "night", "moment", "next_day"),
        *("evening", "later", "found_when", "since", "recovery_days", "weekday"),
    )
)
_CLAUSE_FORMS = frozenset(("te", "nagara", "stem", "nakute", "naide", "ba", "tara"))
_SENTENCE_LINKS = frozenset(("link", "then"))  # slots that hold their own 、


class Node:
    """A place in the network: what may be read or called from here, and whether one may stop.

    Attributes:
      reads: the next node by character.
      calls: pairs of a slot type's first node and the node to go on from.
      jumps: nodes that one may go on from without reading.
    """

    __slots__ = ("calls", "final", "jumps", "number", "reads")

    def __init__(self, number: int):
        self.number = number
        self.reads: dict[str, Node] = {}
        self.calls: list[tuple[Node, Node]] = []
        self.jumps: list[Node] = []
        self.final = False


class Network:
    """All nodes; ``start`` is where a sentence begins."""

    def __init__(self, frames: Iterable[Frame]):
        self._count = 0
        self._types: dict[tuple, Node] = {}
        self.start = self._node()
        for frame in frames:
            for register in REGISTERS:
                for sentence in _split_at_stops([token[register] for token in frame.tokens]):
                    self._add_sentence(_units(sentence), register)

    def _node(self) -> Node:
        self._count += 1
        return Node(self._count)

    def _add_sentence(self, units: list[Token], register: int) -> None:
        """Adds a frame clause by clause: each begins at the start, where the next may follow."""
        node = self.start
        for index, unit in enumerate(units, start=1):
            if not isinstance(unit, Slot):
                node = self._read(node, unit)
            elif unit.form and ACTIVITY in WIDER.get(unit.type, ()):
                node = self._call(node, self._activity(unit, register))
            else:
                node = self._call(node, self._type(unit, register, WIDER))
            if _ends_clause(units[:index]):
                node.jumps[:] = [self.start]
                node = self.start
        node.final = True

    def _add(self, node: Node, tokens: Iterable[Token], register: int) -> None:
        """Adds one alternative of a slot type, its own slots as narrow as they are given."""
        for token in tokens:
            if isinstance(token, Slot):
                node = self._call(node, self._type(token, register, {}))
            else:
                for character in token:
                    node = self._read(node, character)
        node.final = True

    def _read(self, node: Node, character: str) -> Node:
        if character not in node.reads:
            node.reads[character] = self._node()
        return node.reads[character]

    def _call(self, node: Node, entry: Node) -> Node:
        for called, following in node.calls:
            if called is entry:
                return following
        following = self._node()
        node.calls.append((entry, following))
        return following

    def _type(self, slot: Slot, register: int, wider: dict[str, tuple[str, ...]]) -> Node:
        names = wider.get(slot.type, (slot.type,))
        key = (names, slot.form, register)
        if key in self._types:
            return self._types[key]
        entry = self._types[key] = self._node()
        for name in names:
            kind = slot_type(name)
            for word in kind.words:
                self._add(entry, (word,), register)
            for phrase in kind.predicates:
                self._add(entry, (conjugate(phrase, slot.form, register),), register)
            for pattern in kind.patterns:
                tokens = [token[register] for token in pattern.tokens]
                if len(tokens) == 1 and isinstance(tokens[0], Slot) and tokens[0].type in names:
                    continue  # that type is of this kind itself
                self._add(entry, tokens, register)
            if kind.digits:
                self._add_digits(entry, kind.digits)
        return entry

    def _activity(self, slot: Slot, register: int) -> Node:
        """An activity with or without what may stand before it: 本を読む, 図書館で本を読む."""
        key = ("activity", slot.form, register)
        if key not in self._types:
            plain = self._type(slot, register, WIDER)
            entry = self._types[key] = self._node()
            self._call(entry, plain).final = True
            for kind, particle in ADJUNCTS:
                node = self._call(entry, self._type(Slot("", kind, "", True), register, WIDER))
                for character in particle:
                    node = self._read(node, character)
                self._call(node, plain).final = True
        return self._types[key]

    def _add_digits(self, entry: Node, most: int) -> None:
        self._read(entry, "0").final = True
        nodes = [self._node() for _ in range(most)]
        for node, following in zip([entry, *nodes], nodes):
            following.final = True
            for digit in range(node is entry, 10):  # no number but 0 begins with 0
                node.reads[str(digit)] = following


def _ends_clause(units: list[Token]) -> bool:
    """Whether a clause, or a phrase that any clause may follow, ends after these units."""
    last = units[-1]
    if isinstance(last, Slot):
        return last.type in _SENTENCE_LINKS
    if last != "、" or len(units) < 2:
        return False
    before = units[-2]
    if isinstance(before, Slot):
        return before.type in _TIME_TYPES or before.form in _CLAUSE_FORMS
    text = ""
    for unit in reversed(units[:-1]):
        if isinstance(unit, Slot):
            break
        text = unit + text
    return _CLAUSE_END.search(text) is not None


def _units(tokens: list[Token]) -> list[Token]:
    """The characters and slots of a sentence."""
    units: list[Token] = []
    for token in tokens:
        units.extend([token] if isinstance(token, Slot) else token)
    return units


def _split_at_stops(tokens: list[Token]) -> list[list[Token]]:
    """Splits the tokens of a frame that holds several sentences."""
    sentences: list[list[Token]] = [[]]
    for token in tokens:
        if isinstance(token, Slot):
            sentences[-1].append(token)
            continue
        for piece in re.findall(r"[^。]+。?|。", token):
            sentences[-1].append(piece)
            if piece[-1] == "。":
                sentences.append([])
    return [sentence for sentence in sentences if sentence]
