"""Well-formedness of samples, and sentences found in training text."""

import pytest

from jgpt.data.microworld import generator
from jgpt.evals import wellformed
from jgpt.evals.wellformed import VerbatimSearch
from jgpt.evals.writing import Sample

TEXT = generator.document(3).text


def sample(text: str, prompt: str = "", finished: bool = True) -> Sample:
    return Sample(prompt, text, finished, dropped_bytes=0)


def test_generated_documents_pass_and_shuffled_ones_do_not():
    good = dict(wellformed.make(lambda _: [sample(TEXT)])(None))
    assert good["wellformed_share"] == 1 and good["sentences"] > 2
    bad = dict(wellformed.make(lambda _: [sample(TEXT[::-1].replace("\n", "") + "。")])(None))
    assert bad["wellformed_share"] < 0.5


def test_prompt_and_text_form_sentences_together():
    cut = len(TEXT) // 3
    assert wellformed.sentences_of(sample(TEXT[cut:], TEXT[:cut])) == wellformed.sentences_of(
        sample(TEXT)
    )


def test_a_sentence_that_the_limit_cut_off_is_not_judged():
    cut = TEXT[: TEXT.index("。") + 4]
    whole = TEXT[: TEXT.index("。") + 1]
    assert wellformed.sentences_of(sample(cut, finished=False)) == [whole]
    assert len(wellformed.sentences_of(sample(cut, finished=True))) == 2
    assert wellformed.sentences_of(sample(whole, finished=False)) == [whole]


def test_mojibake_and_lost_bytes_are_counted():
    found = wellformed.make(lambda _: [Sample("", "猫\ufffd\ufffd。", True, 2)])(None)
    counts = dict(found)
    assert counts["replacement_characters"] == 2 and counts["dropped_bytes"] == 2


def test_no_samples_give_no_division_by_zero():
    assert dict(wellformed.make(lambda _: [])(None))["wellformed_share"] == 0


def test_verbatim_share_counts_repeated_sentences_each_time():
    search = VerbatimSearch(["猫が鳴く。", "犬が走る。", "猫が鳴く。", "鳥が飛ぶ。"])
    search.add("朝、犬が走る。")
    assert search.share == pytest.approx(1 / 4)
    search.add("猫が鳴く。")
    search.add("鳥が")
    search.add("飛ぶ。")
    assert search.share == pytest.approx(3 / 4)
    assert VerbatimSearch([]).share == 0
