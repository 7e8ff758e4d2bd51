"""Prior preservation: texts of the model's own beside the new ones, and what each weighs."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

from jgpt import models
from jgpt.class_texts import write, written
from jgpt.config import ConfigError, SampleConfig, from_config_dict
from jgpt.data import pipeline
from jgpt.data.packing import Segment, decode_rows, encode_rows
from jgpt.data.sources import parse_sources
from jgpt.interop.adapted import Model
from jgpt.objectives import make_objective
from jgpt.tokenizers import build
from tests.training.tiny import settings

LAMBDA = 0.25


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    """(config, tokenizer, corpus) of instances of い and class texts of あ, half of each."""
    folder = tmp_path_factory.mktemp("class_texts")
    (folder / "new.txt").write_text("\n\n".join("い" * n for n in range(5, 45)), "utf-8")
    own = [json.dumps({"text": "あ" * n}) for n in range(5, 45)]
    (folder / "own.jsonl").write_text("\n".join(own), "utf-8")
    changes = {
        "data__sources": f"text:{folder}/new.txt,class_texts:{folder}/own.jsonl",
        "data__text_documents": "block",
        "data__class_weight": LAMBDA,
        "data__validation_fraction": 0.2,
        "data__sequence_length": 128,
    }
    config = from_config_dict(settings(folder / "cache", **changes))
    corpus = pipeline.open_corpus(config.data)
    return config, build(config.tokenizer, corpus.training_texts, str(folder)), corpus


def of_class(batch, tokenizer):
    """[B, S] bool: whether the target's document is a class text."""
    marks = [set(tokenizer.encode(text)) for text in ("あ", "い")]
    own = np.isin(batch["targets"], list(marks[0] - marks[1]))
    result = np.zeros_like(own)
    for row, segments in enumerate(batch["segment_ids"]):
        for segment in set(segments[segments > 0].tolist()):
            result[row, segments == segment] = own[row, segments == segment].any()
    return result


def test_class_texts_weigh_lambda_in_training_and_one_in_validation(mixture):
    config, tokenizer, corpus = mixture
    with_state = pipeline.training_batches(corpus, tokenizer, config.data)
    batches = [next(with_state) for _ in range(3)]
    state = with_state.get_state()
    after = next(with_state)
    with_state.close()
    for batch in batches:
        own, counted = of_class(batch, tokenizer), batch["segment_ids"] > 0
        assert own.any() and (counted & ~own).any()
        wanted = np.where(counted, np.where(own, LAMBDA, 1), 0)
        np.testing.assert_array_equal(batch["loss_weights"], wanted.astype(np.float32))
    again = pipeline.training_batches(corpus, tokenizer, config.data)
    again.set_state(json.loads(json.dumps(state)))
    np.testing.assert_array_equal(next(again)["loss_weights"], after["loss_weights"])
    again.close()
    for batch in pipeline.validation_batches(corpus, tokenizer, config.data, 8):
        assert of_class(batch, tokenizer).any()
        assert set(np.unique(batch["loss_weights"])) <= {0, 1}


def test_the_loss_is_the_instances_and_lambda_times_the_class(mixture):
    config, tokenizer, corpus = mixture
    reader = pipeline.training_batches(corpus, tokenizer, config.data)
    batch = next(reader)
    reader.close()
    config = dataclasses.replace(
        config, model=dataclasses.replace(config.model, vocab_size=tokenizer.vocab_size)
    )
    params = models.init(config.model, jax.random.key(0))
    apply = functools.partial(models.apply, config.model)

    @jax.jit
    def loss(weights):
        found = make_objective(config).loss(
            apply, {"params": params}, {**batch, "loss_weights": weights}, None
        )
        return found.total, found.weight

    own, counted = of_class(batch, tokenizer), batch["segment_ids"] > 0
    mixed, class_alone, instances = (
        loss(weights.astype(np.float32))
        for weights in (batch["loss_weights"], own & counted, ~own & counted)
    )
    for i in range(2):  # the sum, and what it is divided by
        np.testing.assert_allclose(mixed[i], instances[i] + LAMBDA * class_alone[i], rtol=1e-5)


def test_weights_survive_being_cut_and_saved():
    segment = Segment(np.arange(9, dtype=np.int32), 8, weight=0.3)
    assert segment.part(2, 5).weight == 0.3
    rows = [[segment], [Segment(np.arange(3, dtype=np.int32), 2)]]
    back = decode_rows(json.loads(json.dumps(encode_rows(rows))))
    assert [part.weight for row in back for part in row] == [0.3, 1.0]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_texts_and_only_whole_ones(mixture, tmp_path):
    config, tokenizer, _ = mixture
    size = dataclasses.replace(config.model, num_layers=1, vocab_size=tokenizer.vocab_size)
    config = dataclasses.replace(config, model=size)
    params = models.init(size, jax.random.key(0))
    model = Model(config, {"params": params}, None, None, 1, ())
    # One token in 260 ends a text of this model: 64 places end a quarter of them.
    sample = SampleConfig(top_p=1.0, temperature=1.0, max_new_tokens=64, prompts=("春", ""), seed=3)
    first, again = (list(written(model, tokenizer, sample, 5)) for _ in range(2))
    other = list(written(model, tokenizer, dataclasses.replace(sample, seed=4), 5))
    assert first == again != other and len(first) == 5
    for record in first:
        assert record["text"].startswith(record["prompt"])
        assert len(tokenizer.encode(record["text"])) < 64 + len(tokenizer.encode("春"))


def test_texts_are_sampled_once(tmp_path):
    file = tmp_path / "class_texts.jsonl"
    file.write_text("", "utf-8")
    with pytest.raises(ConfigError, match="is there already"):
        write(tmp_path, file, SampleConfig(), 5)
    assert parse_sources(f"class_texts:{file}@2")[0].items == "class_texts"


def test_a_weight_of_nothing_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="leave the class_texts out"):
        from_config_dict(settings(tmp_path, data__class_weight=0.0))
