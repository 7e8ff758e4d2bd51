"""Labelled records: their form, their rows, their refusals."""

import dataclasses
import json

import numpy as np
import pytest

from jgpt.config import DataConfig, LabelsConfig
from jgpt.data import labels, pipeline
from jgpt.data.encoding import LabelEncoder
from jgpt.data.records import BadRecords, DataError
from jgpt.data.tasks import TASKS
from jgpt.tokenizers.byte import ByteTokenizer

TOKENIZER = ByteTokenizer()
CLASSES = LabelsConfig(text="文", label="類", classes=("肯定", "0"))
PAIRS = LabelsConfig(text="a", pair="b", label="score")


def write(path, records):
    path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    return path


def config_of(source, settings, **changes):
    values = {
        "sources": source,
        "labels": settings,
        "packing": "none",
        "sequence_length": 32,
        "batch_size": 4,
        "virtual_shards": 4,
        "validation_fraction": 0.2,
        "epochs": 1,
    }
    return DataConfig(**{**values, **changes})


BAD = [
    (CLASSES, {"文": "よい"}, "has no field '類'; set data.labels.label"),
    (CLASSES, {"類": 0}, "has no field '文'; set data.labels.text"),
    (
        CLASSES,
        {"文": "よい", "類": 1},
        r"'類' is 1, which is none of data.labels.classes \(肯定, 0\)",
    ),
    (CLASSES, {"文": " ", "類": 0}, "'文' holds no text"),
    (PAIRS, {"a": "い", "score": 1}, "no field 'b'; set data.labels.pair"),
    (PAIRS, {"a": "い", "b": "ろ", "score": "高"}, "no number; set data.labels.classes"),
    (PAIRS, {"a": "い", "b": "ろ", "score": True}, "no number"),
    (PAIRS, [1], "a JSON list"),
]


@pytest.mark.parametrize("settings, record, message", BAD)
def test_a_bad_record_is_named_with_its_field(tmp_path, settings, record, message):
    path = write(tmp_path / "labels.jsonl", [record])
    with pytest.raises(DataError, match=message) as caught:
        list(labels.read_labelled(path, BadRecords(0), str, settings))
    assert str(caught.value).startswith(f"{path}:1")


def test_every_record_has_a_row_with_its_label_at_its_last_token(tmp_path):
    rng = np.random.default_rng(2)
    records = [
        {"a": f"{i}" + "あ" * int(n), "b": "い" * int(m), "score": float(i)}
        for i, (n, m) in enumerate(rng.integers(1, 8, (60, 2)))
    ]
    path = write(tmp_path / "pairs.jsonl", records)
    config = config_of(f"labels:{path}", PAIRS)
    corpus = pipeline.open_corpus(config)
    batches = list(pipeline.training_batches(corpus, TOKENIZER, config))
    held_out = pipeline.validation_batches(corpus, TOKENIZER, config, 4)
    bos, eos, found = TOKENIZER.bos_id, TOKENIZER.eos_id, {}
    for batch in [*batches, *held_out]:
        assert batch["labels"].dtype == np.float32
        for row, label in enumerate(batch["labels"]):
            real = batch["segment_ids"][row] > 0
            if np.isnan(label):
                assert not real.any()
                continue
            ids = batch["inputs"][row][real].tolist()
            assert ids[0] == bos and ids[-1] == eos and ids.count(eos) == 2
            assert np.flatnonzero(batch["loss_weights"][row]).tolist() == [len(ids) - 1]
            middle = ids.index(eos)
            found[label] = (TOKENIZER.decode(ids[:middle]), TOKENIZER.decode(ids[middle:]))
    assert set(found) == {float(i) for i in range(60)}
    for label, (a, b) in found.items():
        record = records[int(label)]
        assert record["a"].startswith(a) and record["b"].startswith(b)
        if len((record["a"] + record["b"]).encode()) <= 29:
            assert (a, b) == (record["a"], record["b"])


def test_what_is_too_long_loses_from_its_longer_text_and_is_counted():
    encode = LabelEncoder(TOKENIZER, config_of("labels:x", PAIRS, sequence_length=16))
    record = {"text": "a" * 20, "pair": "b" * 5, "label": 2.0, "id": "x"}
    [encoded] = encode([json.dumps(record)])
    assert TOKENIZER.decode(encoded.segment.tokens.tolist()) == "a" * 8 + "b" * 5
    assert encoded.segment.size == 16 and encoded.cuts == (0, 1, 0)


def test_labels_survive_the_state(tmp_path):
    records = [{"文": f"{i}番", "類": ("肯定", 0)[i % 2]} for i in range(80)]
    config = config_of(
        f"labels:{write(tmp_path / 'c.jsonl', records)}", CLASSES, epochs=0, virtual_shards=8
    )
    corpus = pipeline.open_corpus(config)
    batches = pipeline.training_batches(corpus, TOKENIZER, config)
    for _ in range(18):
        assert next(batches)["labels"].dtype == np.int32
    state = json.loads(json.dumps(batches.get_state()))
    expected = next(batches)
    batches.close()
    again = pipeline.training_batches(corpus, TOKENIZER, config)
    again.set_state(state)
    for name, value in next(again).items():
        assert np.array_equal(value, expected[name]), name
    again.close()
    odd = [int(TOKENIZER.decode(row.tolist()).split("番")[0]) % 2 for row in expected["inputs"]]
    assert expected["labels"].tolist() == odd


def test_labels_stand_alone(tmp_path):
    path = write(tmp_path / "c.jsonl", [{"文": "よい", "類": 0}])
    for changes in ({"packing": "best_fit"}, {"sources": f"labels:{path},microworld"}):
        with pytest.raises(DataError, match="'none' and leave labels alone"):
            pipeline.open_corpus(config_of(f"labels:{path}", CLASSES, **changes))
    kinds = LabelsConfig(
        classes=("story", "dialogue", "encyclopedia", "qa", "arithmetic", "instruction")
    )
    assert pipeline.open_corpus(config_of("microworld_labels:kind", kinds)).labelled
    with pytest.raises(DataError, match="no task 'mood'; choose one of kind, similarity"):
        pipeline.open_corpus(config_of("microworld_labels:mood", CLASSES))


def test_the_microworlds_similarity_is_the_share_of_sentences_in_common():
    found = {}
    for index in range(400):
        record = TASKS["similarity"](index, 1)
        if record is None:
            continue
        one, two = (set(record[f].split("。")) - {""} for f in ("text", "pair"))
        found.setdefault(record["label"], []).append(len(one & two) / 4)
    assert set(found) == {0.0, 1.25, 2.5, 3.75, 5.0}
    for label, shares in found.items():
        assert np.mean(shares) == pytest.approx(label / 5, abs=0.05)


def test_the_kinds_are_told_without_their_headings():
    records = [TASKS["kind"](index, 1) for index in range(100)]
    assert len({r["label"] for r in records}) == 6 and not any("【" in r["text"] for r in records)


def test_another_label_is_another_corpus(tmp_path):
    prints = []
    for label in (0, 1):
        path = write(tmp_path / f"{label}.jsonl", [{"a": "い", "b": "ろ", "score": label}])
        config = dataclasses.replace(config_of(f"labels:{path}", PAIRS), validation_fraction=0.0)
        prints.append(pipeline.open_corpus(config).fingerprint)
    assert prints[0] != prints[1]
