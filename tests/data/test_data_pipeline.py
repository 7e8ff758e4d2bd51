"""Batches: the same for every process count, and after a resume at any step."""

import collections
import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from jgpt.config import ConfigError, DataConfig
from jgpt.data import corpus, pipeline
from jgpt.data.microworld import cache as microworld_cache
from jgpt.data.records import DataError
from jgpt.data.rows import RowsDataset, Start
from jgpt.tokenizers.byte import ByteTokenizer

TOKENIZER = ByteTokenizer()
PACKINGS = ("best_fit", "split", "none")
WORDS = (
    "春の朝、",
    "町の駅で",
    "小さな犬が",
    "赤い傘を",
    "見つけた。",
    "雨が降る。",
    "母は笑った。",
)


@pytest.fixture
def texts():
    """300 distinct texts of 5 to 400 characters."""
    rng = np.random.default_rng(11)
    return [
        f"{number}番。" + "".join(WORDS[i] for i in rng.integers(0, len(WORDS), size))
        for number, size in enumerate(rng.integers(0, 80, 300) ** 2 // 80)
    ]


@pytest.fixture
def config(write_jsonl, texts):
    return DataConfig(
        sources=f"jsonl:{write_jsonl(texts)}",
        sequence_length=64,
        batch_size=8,
        virtual_shards=16,
        pack_open_rows=4,
        validation_fraction=0.1,
        prefetch=2,
    )


def changed(config, **values):
    return dataclasses.replace(config, **values)


def take(iterator, number):
    return [next(iterator) for _ in range(number)]


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype
        assert np.array_equal(left[name], right[name]), name


def joined(parts):
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def texts_of(batches):
    """Texts of the documents that lie whole in the batches."""
    found = []
    for batch in batches:
        for targets, segments in zip(batch["targets"], batch["segment_ids"], strict=True):
            for segment in range(1, segments.max() + 1):
                found.append(TOKENIZER.decode(targets[segments == segment]))
    return found


@pytest.mark.parametrize("batch_size, virtual_shards", [(8, 16), (16, 16), (32, 8)])
def test_the_processes_share_the_same_global_batches(config, batch_size, virtual_shards):
    config = changed(config, batch_size=batch_size, virtual_shards=virtual_shards)
    corpus = pipeline.open_corpus(config)
    whole = take(pipeline.training_batches(corpus, TOKENIZER, config), 20)
    for count in (2, 4):
        parts = [
            pipeline.training_batches(corpus, TOKENIZER, config, index, count)
            for index in range(count)
        ]
        for batch in whole:
            assert_same(joined([next(part) for part in parts]), batch)
        [part.close() for part in parts]


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("step", [0, 1, 16, 37])
def test_resuming_gives_the_batches_that_would_have_come(config, packing, step):
    config = changed(config, packing=packing)
    corpus = pipeline.open_corpus(config)
    iterator = pipeline.training_batches(corpus, TOKENIZER, config)
    take(iterator, step)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = take(iterator, 25)
    resumed = pipeline.training_batches(corpus, TOKENIZER, config)
    next(resumed)  # a state replaces whatever was going on
    resumed.set_state(state)
    for batch in expected:
        assert_same(next(resumed), batch)
    assert resumed.get_state() == iterator.get_state()
    iterator.set_state(state)
    assert_same(next(iterator), expected[0])


def test_a_state_taken_soon_after_resuming_is_as_good(config):
    """Between snapshots the state still leans on the one that was loaded."""
    corpus = pipeline.open_corpus(config)
    first = pipeline.training_batches(corpus, TOKENIZER, config)
    take(first, 18)
    second = pipeline.training_batches(corpus, TOKENIZER, config)
    second.set_state(first.get_state())
    take(second, 1)
    third = pipeline.training_batches(corpus, TOKENIZER, config)
    third.set_state(second.get_state())
    take(first, 1)
    assert_same(next(third), next(first))


@pytest.mark.parametrize("before, after", [(1, 4), (4, 2), (2, 1)])
def test_another_number_of_processes_continues_exactly(config, before, after):
    corpus = pipeline.open_corpus(config)
    whole = pipeline.training_batches(corpus, TOKENIZER, config)
    expected = take(whole, 40)
    old = [pipeline.training_batches(corpus, TOKENIZER, config, i, before) for i in range(before)]
    for part in old:
        take(part, 21)
    state = pipeline.merge_states([json.loads(json.dumps(part.get_state())) for part in old])
    new = [pipeline.training_batches(corpus, TOKENIZER, config, i, after) for i in range(after)]
    for part in new:
        part.set_state(state)
    for batch in expected[21:]:
        assert_same(joined([next(part) for part in new]), batch)
    [part.close() for part in [*old, *new]]


def test_worker_processes_make_the_same_batches_and_states(config):
    """Two workers take over from a thread in the middle, and a thread from them."""
    corpus = pipeline.open_corpus(config)
    threaded = pipeline.training_batches(corpus, TOKENIZER, config)
    take(threaded, 5)
    working = pipeline.training_batches(corpus, TOKENIZER, changed(config, workers=2))
    working.set_state(threaded.get_state())
    for expected in take(threaded, 18):
        assert_same(next(working), expected)
    state = working.get_state()
    working.close()
    assert json.dumps(state, sort_keys=True) == json.dumps(threaded.get_state(), sort_keys=True)
    other = pipeline.training_batches(corpus, TOKENIZER, config)
    other.set_state(state)
    for expected in take(threaded, 5):
        assert_same(next(other), expected)


@pytest.mark.parametrize("batch_size, virtual_shards", [(16, 16), (32, 8)])
def test_workers_of_several_processes_share_the_rows(config, batch_size, virtual_shards):
    """What Grain's slicing gives worker i of 2 in process p of 2, without starting any."""
    config = changed(config, batch_size=batch_size, virtual_shards=virtual_shards)
    corpus = pipeline.open_corpus(config)
    iterators = []
    for process in range(2):
        for worker in range(2):
            dataset = RowsDataset(corpus, TOKENIZER, config, process, 2, Start())
            dataset.set_slice(slice(worker, None, 2))
            iterators.append(iter(dataset))
    for batch in take(pipeline.training_batches(corpus, TOKENIZER, config), 6):
        assert_same(joined([next(iterator).arrays for iterator in iterators]), batch)


def test_iteration_goes_on_after_close(config):
    corpus = pipeline.open_corpus(config)
    expected = take(pipeline.training_batches(corpus, TOKENIZER, config), 8)
    iterator = pipeline.training_batches(corpus, TOKENIZER, config)
    for batch in expected:
        assert_same(next(iterator), batch)
        iterator.close()


def test_a_process_may_end_without_closing(config):
    code = f"""
from jgpt.config import ChatConfig, CleaningConfig, DataConfig, LabelsConfig
from jgpt.data import pipeline
from jgpt.tokenizers.byte import ByteTokenizer
config = {config!r}
batches = pipeline.training_batches(pipeline.open_corpus(config), ByteTokenizer(), config)
[next(batches) for _ in range(3)]
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert ended.returncode == 0 and b"Exception ignored" not in ended.stderr


@pytest.mark.parametrize("packing", ["best_fit", "none"])
def test_an_epoch_holds_every_training_document_once(config, packing):
    config = changed(config, packing=packing, epochs=1, sequence_length=2048)
    corpus = pipeline.open_corpus(config)
    iterator = pipeline.training_batches(corpus, TOKENIZER, config)
    batches = list(iterator)
    assert sorted(texts_of(batches)) == sorted(corpus.training_texts())
    assert iterator.exhausted
    assert all(batch["loss_weights"].any() for batch in batches)
    characters = sum(int(batch["characters"].sum()) for batch in batches)
    assert characters == sum(map(len, corpus.training_texts())) == iterator.stats.characters
    assert iterator.stats.epochs == [1.0]


def test_epochs_differ_in_order_and_hold_the_same_documents(config):
    config = changed(config, packing="none", epochs=2, sequence_length=2048)
    corpus = pipeline.open_corpus(config)
    texts = texts_of(pipeline.training_batches(corpus, TOKENIZER, config))
    counts = collections.Counter(texts)
    assert set(counts.values()) == {2}
    firsts = list(dict.fromkeys(texts))
    seconds = list(dict.fromkeys(reversed(texts)))[::-1]
    assert firsts != seconds
    other = changed(config, seed=1)
    assert texts_of(pipeline.training_batches(corpus, TOKENIZER, other)) != texts


def test_without_shuffling_documents_come_in_file_order(config):
    config = changed(
        config, packing="none", epochs=1, sequence_length=2048, shuffle=False, virtual_shards=8
    )
    corpus = pipeline.open_corpus(config)
    texts = texts_of(pipeline.training_batches(corpus, TOKENIZER, config))
    assert texts == list(corpus.training_texts())


def test_several_processes_go_on_with_empty_batches_after_the_last_epoch(config):
    config = changed(config, epochs=1)
    corpus = pipeline.open_corpus(config)
    iterator = pipeline.training_batches(corpus, TOKENIZER, config, 1, 2)
    while not iterator.exhausted:
        next(iterator)
    assert not next(iterator)["loss_weights"].any()
    iterator.close()


def test_fewer_documents_than_virtual_shards(config, write_jsonl):
    """Every shard still gets documents, and all documents come equally often."""
    texts = ["一つ目の文。", "二つ目の文です。", "三つ目。"]
    path = write_jsonl(texts, "tiny.jsonl")
    config = changed(config, sources=str(path), validation_fraction=0.0, packing="none")
    corpus = pipeline.open_corpus(config)
    found = collections.Counter(
        texts_of(take(pipeline.training_batches(corpus, TOKENIZER, config), 30))
    )
    assert found == dict.fromkeys(texts, 80)


def test_validation_covers_every_document_once(config):
    corpus = pipeline.open_corpus(changed(config, sequence_length=2048))
    batches = pipeline.validation_batches(
        corpus, TOKENIZER, changed(config, sequence_length=2048), 6
    )
    assert sorted(texts_of(batches)) == sorted(corpus.validation_texts())
    assert {batch["inputs"].shape for batch in batches} == {(6, 2048)}


@pytest.mark.parametrize("packing", PACKINGS)
def test_validation_characters_add_up_to_the_texts(config, packing):
    config = changed(config, packing=packing)
    corpus = pipeline.open_corpus(config)
    batches = pipeline.validation_batches(corpus, TOKENIZER, config, 8)
    expected = corpus.validation_texts()
    assert expected
    assert sum(int(b["characters"].sum()) for b in batches) == sum(map(len, expected))
    targets = sum(int(b["loss_weights"].sum()) for b in batches)
    assert targets == sum(len(TOKENIZER.encode(text)) + 1 for text in expected)
    halves = [pipeline.validation_batches(corpus, TOKENIZER, config, 8, i, 2) for i in range(2)]
    for batch, *parts in zip(batches, *halves, strict=True):
        assert_same(joined(parts), batch)


def test_validation_is_limited_and_a_sample_that_only_grows(config):
    few, more = (
        pipeline.open_corpus(changed(config, validation_documents=n)).validation_texts()
        for n in (5, 12)
    )
    assert len(few) == 5 and len(more) == 12
    assert more[:5] == few


def test_no_text_is_on_both_sides(config, write_jsonl, texts):
    """Duplicates land together, whatever their place and file."""
    paths = [write_jsonl(texts, "a.jsonl"), write_jsonl(texts[::-2], "b.jsonl")]
    corpus = pipeline.open_corpus(changed(config, sources=",".join(map(str, paths))))
    training = set(corpus.training_texts())
    validation = {t for source in corpus.sources for t in source.validation_texts()}
    assert training and validation and not training & validation
    assert training | validation == set(texts)


def test_token_shares_of_a_mixture_follow_the_weights(config, write_jsonl, texts):
    """Shares are of tokens, so long documents do not crowd out short ones."""
    short = write_jsonl([f"短い{n}。" for n in range(200)], "short.jsonl")
    long = write_jsonl(texts, "long.jsonl")
    sources = f"{short}@3,jsonl:{long}@1"
    config = changed(config, sources=sources, batch_size=16, sequence_length=256)
    corpus = pipeline.open_corpus(config)
    assert corpus.weights == [0.75, 0.25]
    iterator = pipeline.training_batches(corpus, TOKENIZER, config)
    take(iterator, 150)
    counts = iterator.stats.counts
    positions = np.array(counts.tokens) + counts.documents  # eos is a target, too
    shares = positions / positions.sum()
    assert abs(shares[0] - 0.75) < 0.02


def test_a_mixture_resumes_exactly(config, write_jsonl, texts):
    other = write_jsonl([text[::-1] for text in texts], "other.jsonl")
    config = changed(config, sources=f"{config.sources}@0.9,{other}@0.1")
    corpus = pipeline.open_corpus(config)
    iterator = pipeline.training_batches(corpus, TOKENIZER, config)
    take(iterator, 19)
    resumed = pipeline.training_batches(corpus, TOKENIZER, config)
    resumed.set_state(iterator.get_state())
    for _ in range(10):
        assert_same(next(resumed), next(iterator))


def test_training_texts_of_a_mixture_start_with_a_fair_sample(config, write_jsonl):
    a = write_jsonl([f"あああああ{n:04}" for n in range(1000)], "a.jsonl")
    b = write_jsonl([f"いいいいい{n:04}" for n in range(1000)], "b.jsonl")
    corpus = pipeline.open_corpus(changed(config, sources=f"{a}@1,{b}@4"))
    start = [text for _, text in zip(range(200), corpus.training_texts(), strict=False)]
    assert sum(text.startswith("い") for text in start) == 160
    assert len(list(corpus.training_texts())) == sum(len(s) for s in corpus.sources)


def test_unknown_tokens_are_counted(config):
    class Forgetful(ByteTokenizer):
        def encode_batch(self, texts):
            return [[self.unk_id, *ids[1:]] for ids in super().encode_batch(texts)]

    corpus = pipeline.open_corpus(config)
    iterator = pipeline.training_batches(corpus, Forgetful(), config)
    take(iterator, 10)
    assert iterator.stats.counts.unknown[0] == iterator.stats.documents > 0


def test_a_state_of_other_settings_is_refused(config):
    corpus = pipeline.open_corpus(config)
    state = pipeline.training_batches(corpus, TOKENIZER, config).get_state()
    other = pipeline.training_batches(corpus, TOKENIZER, changed(config, seed=5))
    with pytest.raises(DataError, match="seed=0, now it is 5"):
        other.set_state(state)


def test_a_state_of_half_the_processes_is_refused(config):
    corpus = pipeline.open_corpus(config)
    half = pipeline.training_batches(corpus, TOKENIZER, config, 0, 2)
    take(half, 17)
    whole = pipeline.training_batches(corpus, TOKENIZER, config)
    with pytest.raises(DataError, match="merge_states"):
        whole.set_state(half.get_state())
    ahead = pipeline.training_batches(corpus, TOKENIZER, config, 1, 2)
    with pytest.raises(DataError, match="different steps"):
        pipeline.merge_states([half.get_state(), ahead.get_state()])


def test_batches_that_cannot_be_shared_out_are_refused(config):
    corpus = pipeline.open_corpus(config)
    with pytest.raises(ConfigError, match="3 processes"):
        pipeline.training_batches(corpus, TOKENIZER, config, 0, 3)
    with pytest.raises(ConfigError, match=r"data\.workers"):
        pipeline.training_batches(corpus, TOKENIZER, changed(config, workers=3))


def test_the_state_is_small(config):
    corpus = pipeline.open_corpus(config)
    iterator = pipeline.training_batches(corpus, TOKENIZER, config)
    take(iterator, 40)
    assert len(json.dumps(iterator.get_state())) < 16 * 20_000


def test_errors_while_reading_reach_the_caller(config):
    class Broken(ByteTokenizer):
        def encode_batch(self, texts):
            raise DataError("no tokens today")

    corpus = pipeline.open_corpus(config)
    with pytest.raises(DataError, match="no tokens today"):
        next(pipeline.training_batches(corpus, Broken(), config))


def test_the_microworld_is_the_same_from_its_cache(tmp_path):
    config = DataConfig(
        microworld_documents=300,
        validation_fraction=0.2,
        sequence_length=128,
        batch_size=8,
        virtual_shards=8,
        cache=str(tmp_path),
    )
    generated = pipeline.open_corpus(config)
    path = microworld_cache.ensure(tmp_path / "microworld", 300)
    cached = pipeline.open_corpus(config)
    assert isinstance(corpus.open_microworld(config), microworld_cache.CachedDocuments)
    assert cached.fingerprint == generated.fingerprint
    assert cached.validation_texts() == generated.validation_texts()
    assert 0 < len(cached.validation_texts()) < 300
    left, right = (pipeline.training_batches(c, TOKENIZER, config) for c in (generated, cached))
    for _ in range(5):
        assert_same(next(left), next(right))
    with open(path, "r+b") as file:
        file.truncate(1000)
    assert isinstance(corpus.open_microworld(config), corpus.MicroworldDocuments)
