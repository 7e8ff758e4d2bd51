"""The experts of every token, as they are read from a model."""

import dataclasses

import jax
import numpy as np
import pytest

from jgpt import models
from jgpt.config import ConfigError, ModelConfig, MoEConfig
from jgpt.evals.routing import BYTES, route_texts, token_routing
from jgpt.tokenizers.byte import ByteTokenizer

MOE = MoEConfig(num_experts=5, top_k=2, intermediate_size=16, dispatch="dense")
CONFIG = ModelConfig(
    vocab_size=300,
    num_layers=4,
    hidden_size=32,
    num_heads=2,
    intermediate_size=48,
    max_length=64,
    ffn_pattern=("dense", "moe"),
    moe=MOE,
)


def model(config, seed=0):
    variables = {"params": models.init(config, jax.random.key(seed))}
    if config.moe.selection_bias:
        shape = (2, config.moe.num_experts)
        variables["selection_bias"] = 0.2 * jax.random.normal(jax.random.key(1), shape)
    return variables


def batch(seed):
    rng = np.random.default_rng(seed)
    segments = np.ones((3, 20), np.int32)
    segments[1, 13:] = 0
    return {"inputs": rng.integers(0, 300, (3, 20), np.int32), "segment_ids": segments}


@pytest.mark.parametrize(
    ("changes", "scan"),
    [
        ({}, "on"),
        ({"router": "sigmoid", "selection_bias": True}, "off"),
        ({"dispatch": "dense", "top_k": 1, "renormalize": False}, "off"),
    ],
    ids=["softmax, scanned", "sigmoid, bias", "top-1"],
)
def test_what_is_read_is_what_the_model_counts(changes, scan):
    config = dataclasses.replace(
        CONFIG, scan_layers=scan, remat="dots", moe=dataclasses.replace(MOE, **changes)
    )
    variables, data = model(config), batch(3)
    routing = token_routing(config, variables, data)
    _, aux = models.apply(config, variables, data, output="hidden")
    counted = np.stack([np.bincount(layer.ravel(), minlength=6) for layer in routing.experts])
    np.testing.assert_array_equal(counted[:, :5], aux.router.assignments)
    assert (np.asarray(routing.experts)[:, 1, 13:] == 5).all()  # padding goes nowhere
    if config.moe.renormalize:
        np.testing.assert_allclose(routing.weights.sum(-1), 1, rtol=1e-5)


def test_models_without_routers_that_choose_for_tokens_are_refused():
    dense = dataclasses.replace(CONFIG, ffn_pattern=("dense",), moe=MoEConfig())
    with pytest.raises(ConfigError, match="num_experts is 0"):
        token_routing(dense, {}, batch(0))


def test_texts_are_read_alone_whatever_stands_beside_them():
    tokenizer, variables = ByteTokenizer(), model(CONFIG)
    texts = ["春になると、", "a", "夏の日に海へ" * 9]
    together = route_texts(CONFIG, variables, tokenizer, texts, rows=2)
    for text, found in zip(texts, together):
        (alone,) = route_texts(CONFIG, variables, tokenizer, [text], rows=1)
        np.testing.assert_array_equal(found.experts, alone.experts)
        assert found.pieces == alone.pieces
        assert found.experts.shape == (2, len(found.pieces), 2)
    assert together[1].pieces == ("a",) and set(together[0].pieces) == {BYTES}
    assert len(together[2].pieces) == 63  # cut at the model's length
    assert route_texts(CONFIG, variables, tokenizer, []) == []
