"""The embedded corpus: determinism, variety, truth of what it says, and answers that hold."""

from __future__ import annotations

import collections
import random
import re
import subprocess
import sys
import unicodedata

import pytest

from jgpt.data import microworld
from jgpt.data.document import Document
from jgpt.data.microworld import people, stories
from jgpt.data.microworld.generator import KINDS
from jgpt.data.microworld.things import THINGS

SAMPLE = 20_000
START = 40_000  # the sample lies in the middle of the corpus


@pytest.fixture(scope="module")
def sample() -> list[Document]:
    return list(microworld.documents(START, START + SAMPLE))


def _of_kind(sample: list[Document], kind: str) -> list[Document]:
    return [document for document in sample if document.kind == kind]


# --- the interface ------------------------------------------------------------------------
def test_documents_do_not_depend_on_the_order_of_calls(sample):
    indices = random.Random(3).sample(range(SAMPLE), 200)
    for index in indices:
        assert microworld.document(START + index) == sample[index]


def test_documents_are_the_same_in_another_process():
    """Nothing may depend on the seed of str hashes."""
    command = (
        "from jgpt.data import microworld as m, document as d; import hashlib;"
        "t=''.join(x.text for x in m.documents(0, 300, seed=5));"
        "print(hashlib.sha256(t.encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", command],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(p for p in sys.path if p)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def test_seeds_give_different_corpora_of_the_same_world():
    first = [d.text for d in microworld.documents(0, 300, seed=0)]
    second = [d.text for d in microworld.documents(0, 300, seed=1)]
    assert len(set(first) & set(second)) <= 3
    assert microworld.document(7, seed=1).id == "microworld/1/7"


def test_a_negative_index_is_refused():
    with pytest.raises(ValueError, match="index -1"):
        microworld.document(-1)


def test_importing_takes_neither_numpy_nor_jax():
    command = (
        "import sys; from jgpt.data import microworld; microworld.document(0);"
        "print([m for m in ('numpy', 'jax', 'grain') if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", command], check=True, capture_output=True, text=True
    )
    assert run.stdout.strip() == "[]"


# --- variety ------------------------------------------------------------------------------
def test_every_kind_is_there_in_its_share(sample):
    counts = collections.Counter(document.kind for document in sample)
    assert set(counts) == set(KINDS) == set(microworld.KINDS)
    assert min(counts.values()) > 0.08 * SAMPLE


def test_repetition_is_unlikely_up_to_the_whole_corpus(sample):
    """Pairs of equal documents grow with the square of the number: scale them up."""
    texts = collections.Counter(document.text for document in sample)
    equal_pairs = sum(n * (n - 1) // 2 for n in texts.values())
    scale = microworld.DEFAULT_SIZE / SAMPLE
    assert equal_pairs * scale**2 < 0.02 * microworld.DEFAULT_SIZE
    mean_bytes = sum(len(document.text.encode()) for document in sample) / SAMPLE
    assert 250 <= mean_bytes <= 900
    assert mean_bytes * microworld.DEFAULT_SIZE > 50e6
    assert microworld.DEFAULT_SIZE >= 200_000


_DOUBLED = re.compile(r"[{}\[\]|]|、。|。。|、、|にに|をを|はは(?!は)|のの(?!ぞみ)|(?<!じゃ)がが")


def test_text_is_plain_japanese_that_normalisation_leaves_alone(sample):
    for document in sample[::5]:
        assert unicodedata.normalize("NFKC", document.text) == document.text
        assert "\ufffd" not in document.text
        assert not _DOUBLED.search(document.text), document.text


def test_sentences_seldom_recur_word_for_word(sample):
    """Else what a model writes well would count as copied from its training text."""
    seen = {s for d in sample[:15_000] for s in microworld.recogniser.sentences(d.text)}
    fresh = [s for d in sample[15_000:17_000] for s in microworld.recogniser.sentences(d.text)]
    assert sum(sentence in seen for sentence in fresh) < 0.13 * len(fresh)
    lengths = [len(sentence) for sentence in fresh]
    assert 15 < sum(lengths) / len(lengths) < 40


# --- answers ------------------------------------------------------------------------------
def test_prompt_and_answer_are_parts_of_the_text(sample):
    for document in sample:
        assert (document.answer is None) == (document.prompt is None)
        if document.kind in ("qa", "arithmetic"):
            assert document.answer is not None
        if document.answer is not None:
            assert document.text.startswith(document.prompt)
            assert document.answer in document.text[len(document.prompt) :]
    answered = sum(d.answer is not None for d in _of_kind(sample, "instruction"))
    assert answered > 0.5 * len(_of_kind(sample, "instruction"))


def test_answers_to_questions_follow_from_the_passage(sample):
    for document in _of_kind(sample, "qa"):
        passage = document.text.partition("\n")[0]
        if document.answer in passage:
            continue
        if document.answer.endswith("歳"):  # 7歳 and 4歳 apart: 11歳
            assert int(document.answer[:-1]) == sum(map(int, re.findall(r"(\d+)歳", passage)))
        else:  # a cause or an act stands there in another form
            stem = re.split(r"からだ?$|こと$", document.answer)[0]
            assert stem[: max(1, len(stem) - 2)] in passage, document.text


def _passed_on(passage: str) -> str | None:
    """Plays a passage of handing on through: who holds the thing in the end."""
    holder = None
    for sentence in microworld.recogniser.sentences(passage.removeprefix("【文章】")):
        names = [name for name in _NAMES.findall(sentence) if name in _PEOPLE]
        if re.search("渡し|預け", sentence):
            giver, taker = names[0], names[-1]
            assert holder == giver
            holder = taker
        elif "受け取" in sentence:
            taker, giver = names[0], names[-1]
            assert holder == giver
            holder = taker
        elif re.search("見つけ|拾|のところに", sentence):
            holder = names[0]
    return holder


_PEOPLE = {person.name for person in microworld.WORLD.people}
_NAMES = re.compile("|".join(sorted(_PEOPLE, key=len, reverse=True)))


def test_who_holds_a_thing_in_the_end_is_found_by_playing_it_through(sample):
    checked = 0
    for document in _of_kind(sample, "qa"):
        last_question = document.prompt.rstrip().splitlines()[-2]
        if re.search("今、.*持っているのは|最後に.*受け取った", last_question):
            assert _passed_on(document.text.splitlines()[0]) == document.answer
            checked += 1
    assert checked > 30


_STEP = re.compile(r"(\d+(?:[-+×÷]\d+)+)=(\d+)(?:余り(\d+))?")


def test_every_worked_step_is_right_and_the_last_gives_the_answer(sample):
    prices = {thing.name: thing.price for thing in THINGS}
    for document in _of_kind(sample, "arithmetic"):
        work = document.text[len(document.prompt) :]
        steps = _STEP.findall(work)
        assert steps, document.text
        for expression, result, rest in steps:
            one, operator, two = re.fullmatch(r"(\d+)([-+×÷])(\d+)", expression).groups()
            one, two = int(one), int(two)
            expected = {"+": one + two, "-": one - two, "×": one * two, "÷": one // two}[operator]
            assert expected == int(result)
            assert expected >= 0
            if operator == "÷":
                assert one % two == int(rest or 0)
        if "時" not in document.answer:
            assert re.match(r"\d+", document.answer).group() == steps[-1][1]
        else:
            assert _minutes(document.answer) == _minutes_asked(document.prompt)
        for price, name in re.findall(r"1\w(\d+)円の([^をと、]+?)を", document.prompt):
            assert prices[name] == int(price)


def _minutes(clock: str) -> int:
    hour, minute = re.search(r"(\d+)時(?:(\d+)分)?", clock).groups()
    return 60 * int(hour) + int(minute or 0)


def _minutes_asked(problem: str) -> int:
    return _minutes(problem) + int(re.search(r"(\d+)分(?:歩|続)", problem).group(1))


def test_checker_accepts_the_answer_and_refuses_others(sample):
    rng = random.Random(11)
    asked = [document for document in sample if document.answer is not None]
    for document in rng.sample(asked, 1_500):
        response = document.text[len(document.prompt) :]
        assert microworld.check_answer(document, document.answer)
        assert microworld.check_answer(document, response)
        assert microworld.check_answer(document, f" {document.answer} ")
        assert not microworld.check_answer(document, "分かりません。")
        assert not microworld.check_answer(document, "違う" + document.answer)


def test_checker_ignores_width_and_ending_but_not_what_was_asked_for():
    sum_ = Document("…", "t", "arithmetic", "360円", "…")
    for good in ("360円", "３６０円", "360円です。", "考えると…\n【答え】360円です。", "「360円」"):
        assert microworld.check_answer(sum_, good)
    assert not microworld.check_answer(sum_, "36円")
    listed = Document(
        "…",
        "t",
        "instruction",
        "桃、柿",
        "【指示】健太に教えたいので、果物を二つ挙げてください。\n【応答】",
    )
    assert microworld.check_answer(listed, "りんご、みかんです。")
    assert not microworld.check_answer(listed, "りんご、りんご")
    assert not microworld.check_answer(listed, "りんご、大根")
    assert not microworld.check_answer(listed, "りんご")
    polite = Document("…", "t", "instruction", "駅は楽しかったです。", "…")
    assert not microworld.check_answer(polite, "駅は楽しかった。")
    with pytest.raises(ValueError, match="no answer"):
        microworld.check_answer(Document("…", "t", "story"), "x")


# --- stories ------------------------------------------------------------------------------
def test_every_event_of_a_story_has_its_cause():
    draw = random.Random(17).random
    traces = [stories.story(draw).trace for _ in range(3_000)]
    assert all(stories.holds(trace) for trace in traces)
    endings = {event.name for event in stories.ENDINGS}
    assert all(trace[-1] in endings for trace in traces)
    assert all(len(trace) >= 4 for trace in traces)
    used = {name for trace in traces for name in trace}
    assert used == {event.name for event in stories.all_events()}


def test_a_story_without_its_cause_does_not_hold():
    draw = random.Random(18).random
    trace = stories.story(draw).trace
    assert not stories.holds(trace[1:])
    assert not stories.holds(tuple(reversed(trace)))


_THINGS = "|".join(sorted((thing.name for thing in THINGS), key=len, reverse=True))


# --- the world ----------------------------------------------------------------------------
def test_facts_are_unique_and_told_in_grammatical_sentences():
    world = microworld.WORLD
    facts = list(world.facts())
    assert len(facts) > 1_500
    assert len(set(facts)) == len(facts)
    for fact in facts[::7]:
        for register in (0, 1):
            assert microworld.recogniser.accepts(world.sentence(fact, register))
    with pytest.raises(ValueError, match="relation"):
        world.sentence(facts[0]._replace(relation="好き嫌い"))


def test_families_are_consistent():
    world = microworld.WORLD
    names = [person.name for person in world.people]
    assert len(set(names)) == len(names)
    for household in world.households:
        for person in household:
            for other in household:
                kin = people.relation(person, other)
                if kin in ("父", "母"):
                    assert other.age - person.age >= 16
                    assert people.relation(other, person) in ("息子", "娘")
                elif kin in ("祖父", "祖母"):
                    assert other.age - person.age >= 35
                elif kin in ("兄", "姉"):
                    assert other.age > person.age


def test_entries_say_what_is_true(sample):
    world = microworld.WORLD
    ages = {person.full_name: person.age for person in world.people}
    prices = {thing.name: thing.price for thing in THINGS}
    checked = 0
    for document in _of_kind(sample, "encyclopedia"):
        for full_name, age in re.findall(r"^(\w{3,6}?)は(\d+)歳で、", document.text):
            assert ages[full_name] == int(age)
            checked += 1
        for one, two, gap, which in re.findall(
            rf"。({_THINGS})は({_THINGS})より(\d+)円(高|安)", document.text
        ):
            assert prices[one] - prices[two] == int(gap) * (1 if which == "高" else -1)
            checked += 1
    assert checked > 100
