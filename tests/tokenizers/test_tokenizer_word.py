"""Word tokenizers: segmenting loses nothing, the vocabulary is by frequency, the rest is unk."""

import pickle
import sys

import hypothesis
import pytest
from hypothesis import strategies as st

from jgpt import tokenizers
from jgpt.config import ConfigError, TokenizerConfig
from jgpt.tokenizers import word

TEXTS = st.one_of(
    st.text(st.sampled_from("猫犬は。a 　\n\t\r\0𠮷\u200b"), max_size=30), st.text(max_size=30)
)


@hypothesis.given(text=TEXTS)
def test_pieces_joined_are_the_text(text):
    assert "".join(word.SEGMENTERS["whitespace"]()(text)) == text


@hypothesis.given(text=TEXTS, width=st.integers(1, 3))
def test_what_an_analyser_leaves_out_is_put_back(text, width):
    def analyser(line):
        assert "\n" not in line
        kept = line.replace(" ", "").replace("\u3000", "")
        return [kept[i : i + width] for i in range(0, len(kept), width)]

    assert "".join(word._by_line(analyser, text)) == text


def test_the_vocabulary_is_by_frequency_then_code_point():
    texts = ["b a c", "b a", "b", "一"]
    tokenizer = tokenizers.train(TokenizerConfig(kind="word", vocab_size=14), texts, None)
    words = [tokenizer.token_bytes(token).decode() for token in range(10, tokenizer.vocab_size)]
    assert words == ["\n", "b", " a", " c"]
    assert tokenizer.encode("b a z\n") == [11, 12, tokenizer.unk_id, 10]
    assert tokenizer.vocab_size == 14


def test_a_small_text_makes_a_small_vocabulary():
    tokenizer = tokenizers.train(TokenizerConfig(kind="word", vocab_size=8000), ["猫 犬"], None)
    assert tokenizer.vocab_size == 10 + 3


@pytest.mark.parametrize(("segmenter", "package"), [("mecab", "fugashi"), ("sudachi", "sudachipy")])
def test_a_missing_analyser_says_what_to_install(segmenter, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    config = TokenizerConfig(kind="word", word_segmenter=segmenter)
    with pytest.raises(ConfigError, match=rf"pip install jgpt\[{segmenter}\]"):
        tokenizers.train(config, ["猫"], None)


@pytest.mark.parametrize(("segmenter", "package"), [("mecab", "fugashi"), ("sudachi", "sudachipy")])
def test_analysers_segment_japanese(segmenter, package, tmp_path):
    pytest.importorskip(package, reason=f"the {segmenter} segmenter is optional")
    text = "　吾輩は猫である。 名前は\tまだ無い。\n\nどこで生れたか。"
    config = TokenizerConfig(kind="word", word_segmenter=segmenter)
    tokenizer = tokenizers.train(config, [text], None)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert "吾輩".encode() in [tokenizer.token_bytes(token) for token in ids]
    tokenizer.save(tmp_path)
    assert tokenizers.load(tmp_path).encode(text) == ids
    assert pickle.loads(pickle.dumps(tokenizer)).encode(text) == ids
