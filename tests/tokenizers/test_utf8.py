"""The automaton accepts exactly what Python's UTF-8 codec accepts."""

import itertools
import random

import numpy as np
import pytest

from jgpt.tokenizers import ByteMask
from jgpt.tokenizers.base import SPECIAL_TOKENS
from jgpt.tokenizers.utf8 import NUM_STATES, START, advance_bytes, incomplete_length

COMPLETIONS = [b"", *(bytes([x]) + b"\x80" * n for x in (0x80, 0x90, 0xA0) for n in range(3))]
"""One of these finishes any character that has begun."""


def accepts(data: bytes) -> bool:
    """Whether `data` begins some valid text, by Python's strict decoder.

    (Its incremental form will not do: it takes 0xED 0xA0 for a beginning.)
    """
    return any(map(is_valid, (data + completion for completion in COMPLETIONS)))


def is_valid(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


EDGES = [0x80, 0x7FF, 0x800, 0xFFF, 0x1000, 0xCFFF, 0xD000, 0xD7FF, 0xE000, 0xFFFF]
EDGES += [0x10000, 0x3FFFF, 0x40000, 0xFFFFF, 0x100000, 0x10FFFF]


def unfinished() -> set[bytes]:
    """Beginnings of characters, those at the edges of each form of UTF-8 among them."""
    draw = random.Random(0)
    inside = [draw.randrange(low, high + 1) for low, high in itertools.pairwise(EDGES)] * 4
    codes = [code for code in EDGES + inside if not 0xD800 <= code < 0xE000]
    encoded = [chr(code).encode() for code in codes]
    return {data[:length] for data in encoded for length in range(1, len(data))}


def test_bytes_after_every_unfinished_character():
    for prefix in [b"", *unfinished()]:
        state = advance_bytes(START, prefix)
        assert state > START or not prefix
        for byte in range(256):
            data = prefix + bytes([byte])
            following = advance_bytes(state, bytes([byte]))
            assert (following >= 0) == accepts(data), data
            if following >= 0:
                assert (following == START) == is_valid(data), data


def start_of_character(data: bytes) -> int:
    return next((i for i, byte in enumerate(data) if byte & 0xC0 != 0x80), len(data))


def test_incomplete_length_agrees_with_the_codec():
    draw = random.Random(1)
    text = "aé猫𠮷".encode()
    for _ in range(500):
        start = draw.randrange(len(text))
        data = text[start : draw.randint(start, len(text))]
        tails = [n for n in range(4) if is_valid(data[start_of_character(data) : len(data) - n])]
        assert incomplete_length(data) == min(tails), data
    assert incomplete_length(b"\xed\xa0") == 0  # no character begins like this (a surrogate)


class Vocabulary:
    """As much of a tokenizer as the mask needs."""

    def __init__(self, pieces):
        self.pieces = list(pieces)
        self.vocab_size = len(self.pieces)

    def token_bytes(self, token):
        return self.pieces[token]


PREFIXES = [b"", b"\xc3", b"\xe0", b"\xe3", b"\xe3\x81", b"\xed", b"\xf0", b"\xf2", b"\xf4"]


def test_the_mask_allows_exactly_the_valid_continuations(trained):
    draw = random.Random(2)
    text = "猫は\u0800\ud7ff\ue000𠮷\U0010ffff東京で123回a".encode()
    cuts = [sorted(draw.sample(range(len(text)), 2)) for _ in range(200)]
    partial = Vocabulary([bytes([b]) for b in range(256)] + [text[a:b] for a, b in cuts])
    for tokenizer in (trained["byte"], trained["unigram"], partial):
        mask = ByteMask(tokenizer)
        assert mask.allowed_table.shape == (mask.num_states, tokenizer.vocab_size)
        assert mask.allowed_table.dtype == bool and mask.next_table.dtype == np.int32
        for prefix in PREFIXES:
            state = advance_bytes(mask.start, prefix)
            for token in range(tokenizer.vocab_size):
                data = tokenizer.token_bytes(token)
                expected = accepts(prefix + data) if data else not prefix
                assert mask.allowed(state)[token] == expected, (prefix, data)
                if expected:
                    assert mask.advance(state, token) == advance_bytes(state, data)


def test_the_prefixes_cover_all_states():
    states = {advance_bytes(START, prefix) for prefix in PREFIXES}
    assert states == set(range(NUM_STATES))


@pytest.mark.parametrize("name", ["byte", "unigram", "char"])
def test_masked_random_tokens_are_always_valid_text(trained, name):
    tokenizer = trained[name]
    mask = ByteMask(tokenizer)
    draw = np.random.default_rng(3)
    for _ in range(30):
        state, ids = mask.start, []
        while len(ids) < 20 or state != mask.start:
            ids.append(int(draw.choice(np.flatnonzero(mask.allowed_table[state]))))
            state = int(mask.next_table[state, ids[-1]])
        written = b"".join(map(tokenizer.token_bytes, ids))
        assert written.decode("utf-8").encode("utf-8") == written


def test_special_tokens_wait_for_the_end_of_a_character(trained):
    mask = ByteMask(trained["byte"])
    inside = mask.advance(mask.start, trained["byte"].encode("猫")[0])
    specials = range(len(SPECIAL_TOKENS))
    assert mask.allowed(mask.start)[specials].all()
    assert not mask.allowed(inside)[specials].any()


def test_a_token_that_nothing_can_finish_is_not_allowed():
    mask = ByteMask(Vocabulary([b"a", b"\xe3", b"\xe3\x81", b"\x82a", b"\xc3"]))
    # Nothing gives 0xE3 its second and third byte; 0xE3 0x81 and 0xC3 are finished by 0x82.
    assert mask.allowed(mask.start).tolist() == [True, False, True, False, True]
    assert ByteMask(Vocabulary([b"a", b"\xe3", b"\xf0"])).allowed(START).tolist() == [1, 0, 0]


def test_columns_of_a_padded_vocabulary_are_never_allowed(trained):
    size = trained["byte"].vocab_size
    mask = ByteMask(trained["byte"], vocab_size=size + 6)
    assert mask.allowed_table.shape == mask.next_table.shape == (NUM_STATES, size + 6)
    assert not mask.allowed_table[:, size:].any()
    assert (mask.next_table >= 0).all()
    with pytest.raises(ValueError, match="below the tokenizer's vocabulary"):
        ByteMask(trained["byte"], vocab_size=size - 1)


def test_advancing_by_a_masked_token_is_an_error(trained):
    mask = ByteMask(trained["byte"])
    with pytest.raises(ValueError, match="not valid UTF-8"):
        mask.advance(mask.start, 10 + 0xFF)
