"""Streamed datasets: shuffled in blocks, shared out, and found again by bookmarks."""

import collections
import copy
import dataclasses
import json

import numpy as np
import pytest

from jgpt.config import CleaningConfig, DataConfig
from jgpt.data import pipeline, stream
from jgpt.data.records import DataError
from jgpt.tokenizers.byte import ByteTokenizer

TOKENIZER = ByteTokenizer()


class FakeDataset:
    """What the pipeline needs of a streaming dataset; counts the records it was asked for."""

    reads: collections.Counter = collections.Counter()

    def __init__(self, records):
        self.records = records
        self.place = 0

    def __iter__(self):
        while self.place < len(self.records):
            self.place += 1
            FakeDataset.reads["records"] += 1
            yield self.records[self.place - 1]

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.place = copy.deepcopy(state)["place"]


TEXTS = [f"{number}番目の文。" + "雨が降る。" * (number % 7) for number in range(500)]


@pytest.fixture
def serve(monkeypatch):
    """serve(records): what `huggingface:` sources open."""

    def set_records(records):
        FakeDataset.reads.clear()
        rows = list(records)
        monkeypatch.setattr(stream, "open_hugging_face", lambda path, config: FakeDataset(rows))

    set_records({"text": text} for text in TEXTS)
    return set_records


CONFIG = DataConfig(
    sources="huggingface:some/corpus",
    sequence_length=64,
    batch_size=8,
    virtual_shards=16,
    shuffle_buffer=50,
    validation_fraction=0.1,
    prefetch=2,
)


def changed(**values):
    return dataclasses.replace(CONFIG, **values)


def batches_of(config, number, *process):
    iterator = pipeline.training_batches(
        pipeline.open_corpus(config), TOKENIZER, config, *(process or (0, 1))
    )
    return iterator, [next(iterator) for _ in range(number)]


def texts_of(batches):
    return [
        TOKENIZER.decode(targets[segments == segment])
        for batch in batches
        for targets, segments in zip(batch["targets"], batch["segment_ids"], strict=True)
        for segment in range(1, segments.max() + 1)
    ]


def test_an_epoch_holds_every_training_text_once(serve):
    config = changed(epochs=1, packing="none", sequence_length=512)
    corpus = pipeline.open_corpus(config)
    texts = texts_of(pipeline.training_batches(corpus, TOKENIZER, config))
    expected = list(corpus.training_texts())
    assert sorted(texts) == sorted(expected)
    assert sorted(expected + corpus.validation_texts()) == sorted(TEXTS)
    assert texts != expected  # shuffled, but no further than a block and the shards' pace
    places = {text: place for place, text in enumerate(expected)}
    distance = [abs(places[text] - place) for place, text in enumerate(texts)]
    assert 5 < np.mean(distance) < 100


def test_epochs_follow_one_another(serve):
    config = changed(epochs=3, packing="none", sequence_length=512)
    corpus = pipeline.open_corpus(config)
    texts = texts_of(pipeline.training_batches(corpus, TOKENIZER, config))
    assert set(collections.Counter(texts).values()) == {3}


@pytest.mark.parametrize("steps", [3, 16, 75])
def test_resuming_gives_the_batches_that_would_have_come(serve, steps):
    """75 steps are more than one epoch."""
    iterator, _ = batches_of(CONFIG, steps)
    state = json.loads(json.dumps(iterator.get_state()))
    resumed, _ = batches_of(CONFIG, 0)
    resumed.set_state(state)
    for _ in range(20):
        left, right = next(iterator), next(resumed)
        assert all(np.array_equal(left[name], right[name]) for name in left)


def test_bookmarks_spare_reading_from_the_start(serve):
    serve({"text": f"{number}番目の文。" * 3} for number in range(8000))
    config = changed(batch_size=16, sequence_length=256)
    iterator, _ = batches_of(config, 64)
    state = iterator.get_state()
    iterator.close()
    read = FakeDataset.reads["records"]
    resumed, _ = batches_of(config, 0)
    resumed.set_state(state)
    FakeDataset.reads.clear()
    next(resumed)
    resumed.close()
    assert FakeDataset.reads["records"] < 0.5 * read


def test_the_processes_share_the_same_global_batches(serve):
    _, whole = batches_of(CONFIG, 30)
    parts = [batches_of(CONFIG, 30, index, 2)[1] for index in range(2)]
    for batch, *halves in zip(whole, *parts, strict=True):
        for name in batch:
            assert np.array_equal(batch[name], np.concatenate([half[name] for half in halves]))


def test_another_number_of_processes_continues_exactly(serve):
    whole, expected = batches_of(CONFIG, 45)
    whole.close()
    old = [batches_of(CONFIG, 25, index, 2)[0] for index in range(2)]
    state = pipeline.merge_states([part.get_state() for part in old])
    new, _ = batches_of(CONFIG, 0)
    new.set_state(state)
    for batch in expected[25:]:
        again = next(new)
        assert all(np.array_equal(batch[name], again[name]) for name in batch)


def test_cleaning_and_deduplication_on_the_way(serve):
    """With deduplication a resumed stream must remember the texts before its place."""
    serve({"text": text} for text in ["ＡＢＣ１２３", *TEXTS, *TEXTS[:200]])
    config = changed(cleaning=CleaningConfig(exact_dedup=True), epochs=1)
    texts = list(pipeline.open_corpus(config).training_texts())
    assert len(texts) == len(set(texts))
    assert "ABC123" in texts or "ABC123" in pipeline.open_corpus(config).validation_texts()
    iterator, _ = batches_of(config, 20)
    resumed, _ = batches_of(config, 0)
    resumed.set_state(iterator.get_state())
    left, right = list(iterator), list(resumed)
    assert len(left) == len(right) > 0
    assert all(np.array_equal(a["inputs"], b["inputs"]) for a, b in zip(left, right, strict=True))


def test_pieces_of_long_documents_resume_in_the_middle(serve):
    serve({"text": "。".join(f"{n}の{m}" for m in range(60))} for n in range(50))
    config = changed(cleaning=CleaningConfig(max_characters=30), shuffle_buffer=7)
    iterator, _ = batches_of(config, 21)
    resumed, _ = batches_of(config, 0)
    resumed.set_state(iterator.get_state())
    left, right = next(iterator), next(resumed)
    assert np.array_equal(left["inputs"], right["inputs"])


def test_a_stream_in_a_mixture(serve, write_jsonl):
    path = write_jsonl([f"別の資料{number}。" for number in range(200)])
    config = changed(sources=f"huggingface:some/corpus@1,{path}@1")
    iterator, _ = batches_of(config, 40)
    resumed, _ = batches_of(config, 0)
    resumed.set_state(iterator.get_state())
    assert np.array_equal(next(iterator)["inputs"], next(resumed)["inputs"])
    assert iterator.stats.epochs[0] is None and iterator.stats.epochs[1] > 0
    tokens = iterator.stats.counts.tokens
    assert 0.4 < tokens[0] / sum(tokens) < 0.6


@pytest.mark.parametrize(
    "records, message",
    [
        ([], "no document to train on"),
        ([{"body": "x"}], "set data.text_field to one of: body"),
        ([{"text": None}] * 200, "data.max_bad_records=100"),
    ],
)
def test_streams_that_cannot_be_used(serve, records, message):
    serve(records)
    with pytest.raises(DataError, match=message):
        pipeline.open_corpus(CONFIG)


def test_a_local_dataset_through_the_real_package(tmp_path):
    pytest.importorskip("datasets", reason="datasets is an optional package")
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in TEXTS]
    (tmp_path / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
    config = changed(sources=f"huggingface:{tmp_path}")
    iterator, _ = batches_of(config, 35)
    resumed, _ = batches_of(config, 0)
    resumed.set_state(json.loads(json.dumps(iterator.get_state())))
    assert np.array_equal(next(iterator)["inputs"], next(resumed)["inputs"])
    with pytest.raises(DataError, match="cannot open huggingface:"):
        pipeline.open_corpus(changed(sources=f"huggingface:{tmp_path}/none"))


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(DataError, match=r"'datasets'.*pip install 'jgpt\[data\]'"):
        pipeline.open_corpus(CONFIG)
