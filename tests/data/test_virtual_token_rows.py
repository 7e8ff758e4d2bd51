"""Virtual tokens before every document: never learned, kept through packing and saved states."""

import json

import numpy as np
import pytest

from jgpt.config import ConfigError, DataConfig
from jgpt.data import pipeline
from jgpt.data.packing import Segment, decode_rows, encode_rows
from jgpt.tokenizers.byte import ByteTokenizer

COUNT, LENGTH = 3, 48
TOKENIZER = ByteTokenizer()


def batches(write_jsonl, count, packing="best_fit"):
    texts = [f"{n}番。" + "春の朝、" * (n % 3) for n in range(40)]
    config = DataConfig(
        sources=f"jsonl:{write_jsonl(texts)}",
        sequence_length=LENGTH,
        batch_size=8,
        virtual_shards=8,
        validation_fraction=0.2,
        packing=packing,
        virtual_tokens=count,
    )
    corpus = pipeline.open_corpus(config)
    training = pipeline.training_batches(corpus, TOKENIZER, config)
    found = [next(training) for _ in range(2)]
    training.close()
    return found + pipeline.validation_batches(corpus, TOKENIZER, config, 8)


def documents(batch):
    """Slices of the rows' documents."""
    for row in range(len(batch["inputs"])):
        ids = batch["segment_ids"][row]
        for number in range(1, ids.max() + 1):
            place = np.flatnonzero(ids == number)
            yield {name: values[row, place] for name, values in batch.items()}


@pytest.mark.parametrize("packing", ["best_fit", "none"])
def test_every_document_begins_with_them(write_jsonl, packing):
    number = 0
    for batch in batches(write_jsonl, COUNT, packing):
        assert batch["targets"].min() >= 0
        for document in documents(batch):
            number += 1
            assert document["inputs"][: COUNT + 1].tolist() == [-3, -2, -1, TOKENIZER.bos_id]
            assert (document["inputs"][COUNT:] >= 0).all()
            assert document["loss_weights"].tolist() == [0.0] * COUNT + [1.0] * (
                len(document["inputs"]) - COUNT
            )
            assert document["positions"].tolist() == list(range(len(document["inputs"])))
    assert number > 15


def test_validation_learns_from_the_same_targets_with_and_without_them(write_jsonl):
    def targets(count):
        *_, batch = batches(write_jsonl, count)
        found = [d["targets"][d["loss_weights"] > 0].tolist() for d in documents(batch)]
        return sorted(found), int(batch["characters"].sum())

    assert targets(0) == targets(COUNT)


def test_saved_rows_keep_negative_ids():
    segment = Segment(np.array([-2, -1, 5, 70000], np.int32), 1, np.array([False, False, True]))
    ((found,),) = decode_rows(json.loads(json.dumps(encode_rows([[segment]]))))
    assert found.tokens.tolist() == [-2, -1, 5, 70000]
    assert found.learned.tolist() == [False, False, True]


def test_a_row_must_have_room_for_text():
    with pytest.raises(ConfigError, match="has no room for text after 10 virtual tokens"):
        DataConfig(sequence_length=11, virtual_tokens=10)
