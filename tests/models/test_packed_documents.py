"""Packed documents and padding leave each document what it is alone; outputs fit each other."""

import numpy as np
import pytest

from jgpt.config import RopeScaling
from tests.models.tiny_models import (
    forward,
    random_tokens,
    random_variables,
    relative_error,
    tiny,
    tiny_moe,
)

LENGTH, PADDING = 8, 4
"""Two documents of LENGTH tokens in one row."""

MODELS = {
    "rope": {},
    "rope, yarn": {"rope_scaling": RopeScaling("yarn", 4.0, 8), "rope_fraction": 0.5},
    "alibi": {"position": "alibi"},
    "learned": {"position": "learned"},
    "sinusoidal": {"position": "sinusoidal"},
    "relative": {"position": "relative", "relative_buckets": 8, "relative_max_distance": 16},
    "none": {"position": "none"},
    "window": {"num_layers": 2, "attention_pattern": ("local", "global"), "window": 4},
    "bidirectional": {"attention": "bidirectional"},
    "experts": tiny_moe(selection_bias=True, router="sigmoid", num_shared_experts=1),
}


def packed(documents):
    """One row of all the documents, [1, 2 * LENGTH + PADDING], from an array of them by row."""
    count = len(documents["inputs"])
    pad = [(0, 0), (0, PADDING)]
    row = {name: np.pad(x.reshape(1, -1), pad, mode="edge") for name, x in documents.items()}
    positions = np.tile(np.arange(LENGTH, dtype=np.int32), count)[None]
    segments = np.repeat(np.arange(count, dtype=np.int32) + 1, LENGTH)[None]
    return row | {"positions": np.pad(positions, pad), "segment_ids": np.pad(segments, pad)}


@pytest.mark.parametrize("name", MODELS)
def test_a_packed_document_has_its_own_loss(name):
    config = tiny(**{"num_layers": 1} | MODELS[name])
    variables = random_variables(config)
    documents = {"inputs": random_tokens(2, LENGTH), "targets": random_tokens(2, LENGTH, seed=1)}
    alone, _ = forward(config, "token_logps")(variables, documents)
    found, _ = forward(config, "token_logps")(variables, packed(documents))
    assert relative_error(found[0, : 2 * LENGTH].reshape(2, LENGTH), alone) < 2e-5


def test_a_packed_document_has_its_own_logits():
    config = tiny()
    variables = random_variables(config)
    documents = {"inputs": random_tokens(2, LENGTH)}
    alone, _ = forward(config)(variables, documents)
    found, _ = forward(config)(variables, packed(documents))
    assert relative_error(found[0, : 2 * LENGTH].reshape(alone.shape), alone) < 2e-5


@pytest.mark.parametrize("name", ["rope", "experts"])
def test_what_stands_in_the_padding_does_not_matter(name):
    config = tiny(**{"num_layers": 1} | MODELS[name])
    variables = random_variables(config)
    tokens = {"inputs": random_tokens(2, LENGTH), "targets": random_tokens(2, LENGTH, seed=1)}
    batch = packed(tokens)
    other = batch | {"inputs": batch["inputs"].copy()}
    other["inputs"][:, 2 * LENGTH :] = random_tokens(1, PADDING, seed=9)
    found, aux = forward(config, "token_logps")(variables, batch)
    changed, changed_aux = forward(config, "token_logps")(variables, other)
    np.testing.assert_array_equal(found[:, : 2 * LENGTH], changed[:, : 2 * LENGTH])
    if aux.router is not None:
        np.testing.assert_array_equal(aux.router.probabilities, changed_aux.router.probabilities)
        np.testing.assert_array_equal(aux.router.tokens, [2 * LENGTH])


def test_token_logps_and_cross_entropy_follow_from_the_logits():
    config = tiny(final_softcap=3.0, head_bias=True)
    variables = random_variables(config)
    tokens, targets = random_tokens(2, 11, seed=1), random_tokens(2, 11, seed=2)
    weights = np.random.default_rng(3).random((2, 11)).astype(np.float32)
    batch = {"inputs": tokens, "targets": targets, "loss_weights": weights}
    logits, _ = forward(config)(variables, batch)
    assert logits.dtype == np.float32 and np.abs(logits).max() < 3.0
    logits = np.asarray(logits, np.float64)
    logps = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = np.take_along_axis(logps, targets[..., None], axis=-1)[..., 0]
    found, _ = forward(config, "token_logps")(variables, batch)
    assert relative_error(found, expected) < 1e-5
    sums, _ = forward(config, "cross_entropy")(variables, batch)
    assert relative_error(sums.nll, -(weights * expected).sum()) < 1e-5


def test_mup_multiplies_the_logits_and_not_the_hidden_states():
    config = tiny(num_layers=1, mup_base_width=4, head_bias=True)
    variables = random_variables(config)
    batch = {"inputs": random_tokens(1, 6)}
    hidden, _ = forward(config, "hidden")(variables, batch)
    head = variables["params"]["head"]
    expected = np.asarray(hidden) @ np.asarray(head["kernel"]) * (4 / 16) + head["bias"]
    assert relative_error(forward(config)(variables, batch)[0], expected) < 1e-5
