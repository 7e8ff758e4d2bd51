"""The recogniser takes what the grammar makes, seen or not, and refuses broken sentences."""

from __future__ import annotations

import random
import time

import pytest

from jgpt.data import microworld
from jgpt.data.microworld import recogniser

PARTICLES = "はがをにへでと"


@pytest.fixture(scope="module")
def generated() -> list[str]:
    """Distinct sentences of documents far from those other tests use."""
    documents = microworld.documents(900_000, 903_000, seed=23)
    return list(dict.fromkeys(s for d in documents for s in recogniser.sentences(d.text)))


def test_every_generated_sentence_is_accepted(generated):
    refused = [sentence for sentence in generated if not recogniser.accepts(sentence)]
    assert not refused, refused[:5]
    assert len(generated) > 12_000


@pytest.mark.parametrize(
    "sentence",
    [
        "健太は直樹に何度も礼を言い、本屋で買った古い図鑑を渡しました。",
        "ある冬の夜、港町の恵子は公園で赤い手袋を落としてしまった。",
        "桜町の八百屋では、大根が一本180円で売られています。",
        "店員の田中「バラは一本250円で、三本ですから750円になります。」",
        "【問題】健太は港町の文房具屋で、1本60円の鉛筆を4本と1冊120円のノートを2冊買いました。",
        "【考え方】鉛筆は1本60円だから、代金は60×4=240円です。",
        "【答え】480円です。",
    ],
)
def test_hand_written_sentences_of_this_world_are_accepted(sentence):
    assert recogniser.accepts(sentence)


@pytest.mark.parametrize(
    ("sentence", "fault"),
    [
        ("健太に直樹は何度も礼を言い、本屋で買った古い図鑑を渡しました。", "swapped particles"),
        ("健太は直樹に何度も礼を言い、本屋で買った古い図鑑が渡しました。", "wrong particle"),
        ("健太は直樹に何度も礼を言い、本屋で買った古い図鑑を渡しりました。", "wrong conjugation"),
        (
            "健太は直樹に何度も礼を言い、本屋で買った古いな図鑑を渡しました。",
            "な after an い-adjective",
        ),
        (
            "健太は直樹に何度も礼を言い、本屋で買った古い桃を渡しました。",
            "no bookshop sells peaches",
        ),
        ("健太は直樹に何度も礼を言い、本屋で買った古い図鑑を", "cut short"),
        ("健太は直樹に何度も礼を言い、本屋で買った古い図鑑を渡しました", "no full stop"),
        ("桜町の八百屋では、大根が一冊180円で売られています。" + "です。", "two ends"),
        ("バラは一冊250円で、全部で三匹です。", "wrong counters"),
        ("直樹", "a name only"),
        ("", "nothing"),
        ("今日は良い天気ですね、みなさん。", "words of another world"),
    ],
)
def test_broken_sentences_are_refused(sentence, fault):
    assert not recogniser.accepts(sentence), fault


def test_recombinations_never_generated_together_are_accepted():
    """Every word of a slot may stand where another of its kind does."""
    names = [person.name for person in microworld.WORLD.people][::9]
    for name in names:
        for counted in ("鉛筆を三本", "絵本を十冊", "手袋を二組", "椅子を五脚", "さばを八匹"):
            assert recogniser.accepts(f"{name}「では、{counted}ください。」")
    assert not recogniser.accepts("森田「では、鉛筆を三本ください。」")  # nobody's name
    assert not recogniser.accepts(f"{names[0]}「では、鉛筆を三匹ください。」")


def _delete(sentence: str, rng: random.Random) -> str:
    at = rng.randrange(len(sentence))
    return sentence[:at] + sentence[at + 1 :]


def _swap(sentence: str, rng: random.Random) -> str:
    at = rng.randrange(len(sentence) - 1)
    return sentence[:at] + sentence[at + 1] + sentence[at] + sentence[at + 2 :]


def _cut(sentence: str, rng: random.Random) -> str:
    return sentence[: rng.randrange(1, len(sentence) - 1)]


def _other_particle(sentence: str, rng: random.Random) -> str:
    places = [at for at, character in enumerate(sentence) if character in PARTICLES]
    if not places:
        return sentence
    at = rng.choice(places)
    return sentence[:at] + rng.choice(PARTICLES.replace(sentence[at], "")) + sentence[at + 1 :]


def _move_words(sentence: str, rng: random.Random) -> str:
    one, two, three = sorted(rng.sample(range(len(sentence)), 3))
    return sentence[:one] + sentence[two:three] + sentence[one:two] + sentence[three:]


def _repeat(sentence: str, rng: random.Random) -> str:
    at = rng.randrange(len(sentence))
    return sentence[:at] + sentence[at] + sentence[at:]


@pytest.mark.parametrize(
    ("corrupt", "least"),
    [
        *((_delete, 0.95), (_swap, 0.97), (_cut, 0.99), (_other_particle, 0.99)),
        *((_move_words, 0.99), (_repeat, 0.95)),
    ],
)
def test_corruptions_are_refused(generated, corrupt, least):
    """A digit left out or doubled gives another number, and so another good sentence: those
    corruptions are not counted, and what was generated elsewhere is not either."""
    rng = random.Random(29)
    known = set(generated)
    counted = refused = 0
    for sentence in rng.sample(generated, 2_500):
        broken = corrupt(sentence, rng)
        if broken in known or _without_digits(broken) == _without_digits(sentence):
            continue
        if broken == sentence.removesuffix("」"):  # the quote may end in a later sentence
            continue
        counted += 1
        refused += not recogniser.accepts(broken)
    assert counted > 2_000
    assert refused >= least * counted, refused / counted


def _without_digits(sentence: str) -> str:
    return "".join(character for character in sentence if not character.isdigit())


def test_sentences_are_split_at_stops_lines_and_quotes():
    text = "健太「おはよう。元気だよ。」\n美咲は「また来る」と言った。帰った。\n\n終わり"
    assert recogniser.sentences(text) == [
        "健太「おはよう。",
        "元気だよ。」",
        "美咲は「また来る」と言った。",
        "帰った。",
        "終わり",
    ]
    assert recogniser.sentences("") == []


def test_splitting_loses_nothing_but_line_breaks():
    for document in microworld.documents(0, 300):
        joined = "".join(recogniser.sentences(document.text))
        assert joined == document.text.replace("\n", "")


def test_it_is_fast_enough(generated):
    begin = time.process_time()
    for sentence in generated[:6_000]:
        recogniser.accepts(sentence)
    assert 6_000 / (time.process_time() - begin) > 5_000


def test_accepted_share_of_a_text():
    assert recogniser.accepted_share("【答え】480円です。めちゃくちゃな文。") == 0.5
    assert recogniser.accepted_share("") == 0.0


def test_forgetting_states_changes_no_verdict(generated, monkeypatch):
    """Memory is bounded by forgetting; a tiny bound must only cost time."""
    verdicts = [recogniser.accepts(sentence) for sentence in generated[:200]]
    monkeypatch.setattr(recogniser, "_MAX_STATES", 50)
    assert [recogniser.accepts(sentence) for sentence in generated[:200]] == verdicts
