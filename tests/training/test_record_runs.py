"""Runs on records: conversations, then labels from what conversations have made."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from jgpt.config import ConfigError, from_config_dict
from jgpt.interop.start import prepare
from jgpt.interop.workdirs import open_saved
from jgpt.layers import heads
from jgpt.training import loop
from jgpt.training.metrics import last_per_step, read_json_lines
from tests.training.tiny import settings

QUIET = {"train__steps": 2, "train__eval_every": 0, "train__sample_every": 0}
ON_CHATS = {
    "objective__name": "sft",
    "data__sources": "microworld_chat@3,microworld@1",
    "data__chat__checked": 2,
    "data__sequence_length": 192,
    "model__max_length": 256,
    "data__validation_fraction": 0.1,
    "train__steps": 10,
    "train__eval_every": 0,
    "train__sample_every": 0,
    "optimizer__learning_rate": 5e-3,
}
CLASSES = ("story", "dialogue", "encyclopedia", "qa", "arithmetic", "instruction")
ON_LABELS = {
    "objective__name": "classification",
    "data__sources": "microworld_labels:kind",
    "data__packing": "none",
    "data__labels__classes": CLASSES,
    "model__pooling": "last",
    "model__num_labels": 6,
    "sample__final_samples": 0,
    "data__validation_documents": 16,
    **QUIET,
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def fine_tuned(tmp_path_factory, cache):
    """(workdir, final figures) of a run on conversations."""
    workdir = tmp_path_factory.mktemp("chats")
    return workdir, loop.run(from_config_dict(settings(cache, **ON_CHATS)), workdir)


def test_conversations_are_learned_and_asked_about(fine_tuned):
    workdir, final = fine_tuned
    train = last_per_step(read_json_lines(workdir / "metrics.jsonl"), "train")
    assert train[-1]["loss"] < train[0]["loss"] - 0.2
    assert 0 <= final["checked_accuracy"] <= 1 and final["checked_questions"] >= 1
    assert "trigram_loss" not in final and final["replayed"] and final["prompts_cut"] > 0
    samples = read_json_lines(workdir / "samples.jsonl")
    assert samples and all(s["prompt"].endswith("\nassistant: ") for s in samples)
    page = (workdir / "report.html").read_text(encoding="utf-8")
    assert "assistant: " in page and "questions answered rightly" in page and "prompts cut" in page


def test_a_decoder_gets_a_head_and_learns_labels(tmp_path, cache, fine_tuned):
    base, begun = fine_tuned[0], {}
    config = from_config_dict(settings(cache, init__workdir=str(base), **ON_LABELS))
    config, start = prepare(config, tmp_path)

    def watched(*arguments):
        variables = start(*arguments)
        begun["table"] = np.array(variables["params"]["embedding"]["table"])
        begun["head"] = np.array(variables["params"]["classifier"]["kernel"])
        return variables

    final = loop.run(config, tmp_path, watched)
    assert np.array_equal(begun["table"], open_saved(base).read("params/embedding/table"))
    assert begun["head"].shape == (32, 6) and begun["head"].any()
    assert 0 <= final["validation_accuracy"] <= 1 and 0 <= final["validation_f1"] <= 1
    assert "validation_perplexity" not in final and "trigram_loss" not in final
    assert json.loads((tmp_path / "final.json").read_text())["step"] == 2


def test_fine_tuning_without_conversations_is_refused(tmp_path, cache):
    values = {**ON_CHATS, "data__sources": "microworld"}
    with pytest.raises(ConfigError, match="'sft' needs conversations"):
        loop.run(from_config_dict(settings(cache, **values)), tmp_path)


def test_the_last_token_is_pooled_whatever_the_padding():
    hidden = np.random.default_rng(0).standard_normal((3, 7, 5)).astype(np.float32)
    lengths = np.array([7, 3, 5])
    pooled = heads.pool("last", hidden, jnp.arange(7) < lengths[:, None])
    np.testing.assert_array_equal(pooled, hidden[np.arange(3), lengths - 1])
    np.testing.assert_array_equal(heads.pool("last", hidden, None), hidden[:, -1])
