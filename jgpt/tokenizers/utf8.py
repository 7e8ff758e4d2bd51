"""UTF-8 as an automaton: for bytes, and for a tokenizer's whole tokens.

Unicode 16, section 3.9, table 3-7, "Well-Formed UTF-8 Byte Sequences": after some lead bytes the
second byte has a narrower range (no overlong forms, no surrogates, nothing above U+10FFFF).
"""

import typing
from collections.abc import Sequence

import numpy as np

if typing.TYPE_CHECKING:
    from jgpt.tokenizers.base import Tokenizer

START = 0
"""Between two characters."""
_ONE_LEFT, _TWO_LEFT, _THREE_LEFT = 1, 2, 3
_AFTER_E0, _AFTER_ED, _AFTER_F0, _AFTER_F4 = 4, 5, 6, 7
NUM_STATES = 8
INVALID = -1

# (state, first byte, last byte, next state)
_TRANSITIONS = (
    (START, 0x00, 0x7F, START),
    (START, 0xC2, 0xDF, _ONE_LEFT),
    (START, 0xE0, 0xE0, _AFTER_E0),
    (START, 0xE1, 0xEC, _TWO_LEFT),
    (START, 0xED, 0xED, _AFTER_ED),
    (START, 0xEE, 0xEF, _TWO_LEFT),
    (START, 0xF0, 0xF0, _AFTER_F0),
    (START, 0xF1, 0xF3, _THREE_LEFT),
    (START, 0xF4, 0xF4, _AFTER_F4),
    (_ONE_LEFT, 0x80, 0xBF, START),
    (_TWO_LEFT, 0x80, 0xBF, _ONE_LEFT),
    (_THREE_LEFT, 0x80, 0xBF, _TWO_LEFT),
    (_AFTER_E0, 0xA0, 0xBF, _ONE_LEFT),
    (_AFTER_ED, 0x80, 0x9F, _ONE_LEFT),
    (_AFTER_F0, 0x90, 0xBF, _TWO_LEFT),
    (_AFTER_F4, 0x80, 0x8F, _TWO_LEFT),
)


def _byte_table() -> np.ndarray:
    table = np.full((NUM_STATES, 256), INVALID, np.int32)
    for state, first, last, following in _TRANSITIONS:
        table[state, first : last + 1] = following
    return table


BYTE_TABLE = _byte_table()
"""int32 [NUM_STATES, 256]: the state after a byte, or INVALID."""


def advance_bytes(state: int, data: bytes) -> int:
    """The state after `data`, or INVALID."""
    for byte in data:
        if state == INVALID:
            return INVALID
        state = int(BYTE_TABLE[state, byte])
    return state


def incomplete_length(data: bytes) -> int:
    """How many bytes at the end of `data` (0 to 3) begin a character that is not finished."""
    for length in range(1, min(3, len(data)) + 1):
        if advance_bytes(START, data[-length:]) > START:
            return length
    return 0


class ByteMask:
    """Which tokens keep the text valid UTF-8, as dense tables for a jitted sampler.

    In state `s` a sampler may draw only tokens with `allowed_table[s]`, and goes on to state
    `next_table[s, token]`. A finished character is back at `start`. Special tokens stand for no
    bytes and are allowed only there, so a text never ends inside a character. Tokens after which
    nothing could finish the character (a vocabulary without the bytes for it) are not allowed.

    Attributes:
        start: the state at the beginning.
        num_states: the number S of states.
        allowed_table: bool [S, V].
        next_table: int32 [S, V]; `start` where the token is not allowed, so that it can be indexed
            without a check.
    """

    start = START
    num_states = NUM_STATES

    def __init__(self, tokenizer: "Tokenizer", vocab_size: int | None = None):
        """`vocab_size`: width V of the tables, for a model whose vocabulary is padded.

        Raises:
            ValueError: `vocab_size` is less than the tokenizer's.
        """
        vocab_size = tokenizer.vocab_size if vocab_size is None else vocab_size
        if vocab_size < tokenizer.vocab_size:
            raise ValueError(f"vocab_size {vocab_size} is below the tokenizer's vocabulary")
        following = np.full((NUM_STATES, vocab_size), INVALID, np.int32)
        pieces = [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)]
        following[:, : tokenizer.vocab_size] = _advance_all(pieces)
        following = _without_dead_ends(following)
        self.allowed_table = following != INVALID
        self.next_table = np.where(self.allowed_table, following, START)

    def allowed(self, state: int) -> np.ndarray:
        """bool [V]: the tokens that may follow."""
        return self.allowed_table[state]

    def advance(self, state: int, token: int) -> int:
        """The state after `token`.

        Raises:
            ValueError: the token may not follow.
        """
        if not self.allowed_table[state, token]:
            raise ValueError(f"token {token} is not valid UTF-8 in state {state}")
        return int(self.next_table[state, token])


def _advance_all(pieces: Sequence[bytes]) -> np.ndarray:
    """int32 [NUM_STATES, len(pieces)]: the state after each piece from each state, or INVALID.

    Pieces without bytes are valid at START only.
    """
    lengths = np.array([len(piece) for piece in pieces])
    starts = np.cumsum(lengths) - lengths
    data = np.frombuffer(b"".join(pieces), np.uint8)
    states = np.repeat(np.arange(NUM_STATES, dtype=np.int32)[:, None], len(pieces), axis=1)
    states[START + 1 :, lengths == 0] = INVALID
    for position in range(lengths.max(initial=0)):
        longer = np.flatnonzero(lengths > position)
        before = states[:, longer]
        after = BYTE_TABLE[before, data[starts[longer] + position]]
        states[:, longer] = np.where(before == INVALID, INVALID, after)
    return states


def _without_dead_ends(following: np.ndarray) -> np.ndarray:
    """`following` without the transitions into states from which no token leads on."""
    while True:
        dead = np.flatnonzero((following == INVALID).all(axis=1))
        pruned = np.where(np.isin(following, dead), INVALID, following)
        if np.array_equal(pruned, following):
            return following
        following = pruned
