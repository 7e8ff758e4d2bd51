"""Text shown token by token is the text, and never half a character."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

NAMES = ("unigram", "bpe", "char", "no_bytes", "word", "byte")
examples = hypothesis.settings(max_examples=150, deadline=None)


def shown(tokenizer, ids) -> list[str]:
    stream = tokenizer.streamer()
    return [*map(stream.push, ids), stream.finish()]


@pytest.mark.parametrize("name", NAMES)
@hypothesis.given(text=st.text(max_size=20))
@examples
def test_the_stream_of_a_text_is_its_decoding(trained, name, text):
    tokenizer = trained[name]
    hypothesis.assume("\ufffd" not in text)
    ids = tokenizer.encode(text)
    final = tokenizer.decode(ids)
    so_far = ""
    stream = tokenizer.streamer()
    for token in ids:
        so_far += stream.push(token)
        assert final.startswith(so_far)
        assert "\ufffd" not in so_far
    assert so_far + stream.finish() == final
    assert stream.dropped_bytes == 0


@pytest.mark.parametrize("name", NAMES)
@hypothesis.given(data=st.data())
@examples
def test_the_stream_of_any_ids_is_their_decoding(trained, name, data):
    tokenizer = trained[name]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=20))
    parts = shown(tokenizer, ids)
    assert "".join(parts) == tokenizer.decode(ids)
    assert "\ufffd" not in "".join(parts)


@hypothesis.given(data=st.binary(max_size=12))
@examples
def test_dropped_bytes_are_counted(trained, data):
    tokenizer = trained["byte"]
    stream = tokenizer.streamer()
    ids = [10 + byte for byte in data]
    text = "".join(map(stream.push, ids)) + stream.finish()
    assert text == data.decode("utf-8", errors="ignore")
    assert stream.dropped_bytes == len(data) - len(text.encode())


def test_characters_appear_with_their_last_byte(trained):
    ids = trained["byte"].encode("猫𠮷")
    assert shown(trained["byte"], ids) == ["", "", "猫", "", "", "", "𠮷", ""]


def test_an_unfinished_character_at_the_end_is_dropped(trained):
    tokenizer = trained["byte"]
    stream = tokenizer.streamer()
    ids = tokenizer.encode("猫猫")[:-1]
    assert "".join(map(stream.push, ids)) == "猫"
    assert stream.dropped_bytes == 0  # two bytes wait
    assert stream.finish() == ""
    assert stream.dropped_bytes == 2
    assert tokenizer.decode(ids) == "猫"


def test_a_replacement_character_in_the_text_is_text(trained):
    for name in ("unigram", "byte"):
        assert "".join(shown(trained[name], trained[name].encode("a\ufffdb"))) == "a\ufffdb"


def test_ids_may_be_numpy_integers(trained):
    tokenizer = trained["unigram"]
    ids = np.asarray(tokenizer.encode("猫は走った。"), np.int32)
    assert "".join(shown(tokenizer, ids)) == tokenizer.decode(ids) == "猫は走った。"
