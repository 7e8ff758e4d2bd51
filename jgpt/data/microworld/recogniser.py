"""Says whether a sentence is well formed in this world.

The frames that the generator fills are compiled into a recursive transition network (``network``).
Its types do not call themselves, so it is run as a finite automaton whose subset states are built
when first met and kept (Thompson 1968; Aho, Sethi and Ullman 1986, section 3.7): once warm, one
dictionary look-up per character. Well-formedness is a matter of words, forms, particles, counters
and kinds of words; whether the sentence is true, or likely, does not enter.
"""

from __future__ import annotations

import re

from jgpt.data.microworld.frames import all_frames, slot_type
from jgpt.data.microworld.network import Network, Node

_MAX_STATES = 100_000  # subset states kept before the memory is cleared

# A sentence ends with 。 ！ or ？, a closing quote after it included; a line break always ends one.
_SENTENCE = re.compile(r"[^。！？\n]*[。！？]*」?")
_SPEAKER = re.compile(r"([^「」。、：\s]{1,8})「")
_LABEL = re.compile(r"【(?:問題|考え方|文章|問い|答え|指示|応答)】")


class _State(dict):
    """A subset state: the next state by character, as far as it is known (None: no sentence).

    Attributes:
      places: the nodes that read a character here, each with the stack to return along.
      accepting: whether a sentence may end here.
    """

    __slots__ = ("accepting", "places")


class _Automaton:
    """The network run as a deterministic automaton, built as far as sentences have led.

    A stack of nodes to return to is a number: an index of pairs of a node and the stack below.
    """

    def __init__(self, network: Network):
        self._network = network
        self._forget()

    def _forget(self) -> None:
        self._stacks: list[tuple[Node | None, int]] = [(None, 0)]  # 0: the empty stack
        self._stack_numbers: dict[tuple[int, int], int] = {}
        self._states: dict[frozenset, _State] = {}
        self._start = self._state([(self._network.start, 0)])

    def _push(self, node: Node, stack: int) -> int:
        key = (node.number, stack)
        number = self._stack_numbers.get(key)
        if number is None:
            number = self._stack_numbers[key] = len(self._stacks)
            self._stacks.append((node, stack))
        return number

    def _state(self, places: list[tuple[Node, int]]) -> _State:
        """The state of all places that can be reached from these without reading."""
        pending, seen, readers, accepting = places, set(), {}, False
        while pending:
            node, stack = pending.pop()
            key = (node.number, stack)
            if key in seen:
                continue
            seen.add(key)
            if node.reads:
                readers[key] = (node, stack)
            for entry, following in node.calls:
                pending.append((entry, self._push(following, stack)))
            pending.extend((following, stack) for following in node.jumps)
            if node.final and stack:
                pending.append(self._stacks[stack])
            accepting = accepting or (node.final and not stack)
        subset = frozenset((*readers, accepting))
        state = self._states.get(subset)
        if state is None:
            state = self._states[subset] = _State()
            state.places = tuple(readers.values())
            state.accepting = accepting
        return state

    def _step(self, state: _State, character: str) -> _State | None:
        moved = [
            (node.reads[character], stack)
            for node, stack in state.places
            if character in node.reads
        ]
        state[character] = following = self._state(moved) if moved else None
        return following

    def accepts(self, sentence: str) -> bool:
        """Whether the whole sentence is a path of the network."""
        if len(self._states) > _MAX_STATES:
            self._forget()
        state = self._start
        for character in sentence:
            state = state[character] if character in state else self._step(state, character)
            if state is None:
                return False
        return state.accepting


_automaton: _Automaton | None = None


def _language() -> _Automaton:
    """The automaton of the whole language, built once, when first needed."""
    global _automaton
    if _automaton is None:
        # The kinds register their frames when imported; the language needs all of them.
        from jgpt.data.microworld import generator  # noqa: F401

        _automaton = _Automaton(Network(all_frames()))
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
