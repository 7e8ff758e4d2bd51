"""Says whether a sentence is well formed in this world.

The frames that the generator fills are compiled into a recursive transition network: a frame is a
path of characters and calls of slot types, a slot type a network of its own (a trie of its words,
the forms of its predicates, its patterns). Frames and types do not call themselves, so the
network is run as a finite automaton whose subset states are built when first met and kept
(Thompson 1968; Aho, Sethi and Ullman 1986, section 3.7): once warm, one dictionary look-up per
character. Well-formedness is a matter of words, forms, particles, counters and types; whether the
sentence is true does not enter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from jgpt.data.microworld.conjugation import REGISTERS, conjugate
from jgpt.data.microworld.frames import Slot, Token, all_frames, slot_type

_MAX_STATES = 100_000  # subset states kept before the memory is cleared

# A sentence ends with 。 ！ or ？, a closing quote after it included; a line break always ends one.
_SENTENCE = re.compile(r"[^。！？\n]*[。！？]*」?")
_SPEAKER = re.compile(r"([^「」。、：\s]{1,8})「")
_LABEL = re.compile(r"【(?:問題|考え方|文章|問い|答え|指示|応答)】")


class _Node:
    """A place in the network: what may be read or called from here, and whether one may stop."""

    __slots__ = ("calls", "final", "number", "reads")

    def __init__(self, number: int):
        self.number = number
        self.reads: dict[str, _Node] = {}
        self.calls: list[tuple[_Node, _Node]] = []  # (the type's first node, where to go on)
        self.final = False


class _Network:
    """All nodes, and the first node of every slot type in every form and register."""

    def __init__(self, frames: Iterable):
        self._count = 0
        self._types: dict[tuple[str, str, int], _Node] = {}
        self.start = self._node()
        for frame in frames:
            for register in REGISTERS:
                for sentence in _split_at_stops([token[register] for token in frame.tokens]):
                    self._add(self.start, sentence, register)

    def _node(self) -> _Node:
        self._count += 1
        return _Node(self._count)

    def _add(self, node: _Node, tokens: list[Token], register: int) -> None:
        """Adds one path; equal beginnings are shared."""
        for token in tokens:
            node = (
                self._call(node, token, register)
                if isinstance(token, Slot)
                else self._read(node, token)
            )
        node.final = True

    def _read(self, node: _Node, text: str) -> _Node:
        for character in text:
            following = node.reads.get(character)
            if following is None:
                following = node.reads[character] = self._node()
            node = following
        return node

    def _call(self, node: _Node, slot: Slot, register: int) -> _Node:
        entry = self._type(slot, register)
        for called, following in node.calls:
            if called is entry:
                return following
        following = self._node()
        node.calls.append((entry, following))
        return following

    def _type(self, slot: Slot, register: int) -> _Node:
        key = (slot.type, slot.form, register)
        if key in self._types:
            return self._types[key]
        entry = self._types[key] = self._node()
        kind = slot_type(slot.type)
        for word in kind.words:
            self._add(entry, [word], register)
        for phrase in kind.predicates:
            self._add(entry, [conjugate(phrase, slot.form, register)], register)
        for pattern in kind.patterns:
            self._add(entry, [token[register] for token in pattern.tokens], register)
        if kind.digits:
            self._add_digits(entry, kind.digits)
        return entry

    def _add_digits(self, entry: _Node, most: int) -> None:
        entry.reads["0"] = zero = self._node()
        zero.final = True
        nodes = [self._node() for _ in range(most)]
        for node, following in zip([entry, *nodes], nodes):
            following.final = True
            first = "1" if node is entry else "0"
            for digit in range(int(first), 10):
                node.reads[str(digit)] = following


def _split_at_stops(tokens: list[Token]) -> list[list[Token]]:
    """Splits the tokens of a frame that holds several sentences."""
    sentences: list[list[Token]] = [[]]
    for token in tokens:
        if isinstance(token, Slot):
            sentences[-1].append(token)
            continue
        for piece in _pieces(token):
            sentences[-1].append(piece)
            if piece[-1] in "。！？\n":
                sentences.append([])
    return [
        [token.rstrip("\n") if isinstance(token, str) else token for token in sentence]
        for sentence in sentences
        if sentence and sentence != ["\n"]
    ]


def _pieces(text: str) -> list[str]:
    return re.findall(r"[^。！？\n]+(?:[。！？\n]|$)|[。！？\n]", text)


class _Automaton:
    """The network run as a deterministic automaton, built as far as sentences have led."""

    def __init__(self, network: _Network):
        self._network = network
        self._forget()

    def _forget(self) -> None:
        self._subsets: dict[frozenset, dict] = {}
        self._start = self._state({(self._network.start, None)})

    def _state(self, configurations: set) -> dict:
        """The subset state of these configurations: a table of next states by character.

        A configuration is a node and the stack of nodes to return to. The key None holds
        whether the state is accepting; the key "" the configurations.
        """
        pending, closed = list(configurations), {}
        while pending:
            node, stack = pending.pop()
            key = (node.number, stack and stack[2])
            if key in closed:
                continue
            closed[key] = (node, stack)
            for entry, following in node.calls:
                identity = (following.number, stack and stack[2])
                pending.append((entry, (following, stack, identity)))
            if node.final and stack is not None:
                pending.append((stack[0], stack[1]))
        subset = frozenset(closed)
        state = self._subsets.get(subset)
        if state is None:
            accepting = any(node.final and stack is None for node, stack in closed.values())
            state = {None: accepting, "": list(closed.values())}
            self._subsets[subset] = state
        return state

    def _step(self, state: dict, character: str) -> dict | None:
        moved = {
            (node.reads[character], stack) for node, stack in state[""] if character in node.reads
        }
        state[character] = following = self._state(moved) if moved else None
        return following

    def accepts(self, sentence: str) -> bool:
        """Whether the whole sentence is a path of the network."""
        if len(self._subsets) > _MAX_STATES:
            self._forget()
        state = self._start
        for character in sentence:
            if character in state:
                state = state[character]
            else:
                state = self._step(state, character)
            if state is None:
                return False
        return state[None]


_automaton: _Automaton | None = None


def _language() -> _Automaton:
    """The automaton of the whole language, built once, when first needed."""
    global _automaton
    if _automaton is None:
        # The kinds register their frames when imported; the language needs all of them.
        from jgpt.data.microworld import generator  # noqa: F401

        _automaton = _Automaton(_Network(all_frames()))
    return _automaton


def sentences(text: str) -> list[str]:
    """Splits a text into sentences.

    A sentence ends with 。, ！ or ？ or with its line. A speaker's label stays with the first
    sentence of the line (健太「おはよう。) and the closing quote with the last (行こう。」).
    """
    found = (match.group().strip() for match in _SENTENCE.finditer(text))
    return [sentence for sentence in found if sentence]


def accepts(sentence: str) -> bool:
    """Whether one sentence is well formed in this world.

    Takes the pieces that ``sentences`` gives: a speaker (健太「) or a label (【答え】) may stand
    before the sentence, a closing quote after it.
    """
    language = _language()
    label = _LABEL.match(sentence)
    if label:
        sentence = sentence[label.end() :]
    speaker = _SPEAKER.match(sentence)
    if speaker and speaker.group(1) in slot_type("speaker").words:
        sentence = sentence[speaker.end() :]
    if sentence.endswith(("。」", "！」", "？」")):
        sentence = sentence[:-1]
    return language.accepts(sentence)


def accepted_share(text: str) -> float:
    """The share of the sentences of a text that are well formed (0 for an empty text)."""
    found = sentences(text)
    return sum(map(accepts, found)) / len(found) if found else 0.0
