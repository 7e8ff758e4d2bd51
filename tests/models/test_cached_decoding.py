"""Decoding with a cache gives what a forward pass over the whole row gives."""

import functools

import jax
import numpy as np
import pytest

from jgpt import models
from jgpt.config import BlockSparse, CacheConfig, ConfigError, LatentConfig
from jgpt.layers.cache import allot
from tests.models.tiny_models import (
    forward,
    random_tokens,
    random_variables,
    relative_error,
    tiny,
    tiny_moe,
)

STEPS = 5
LATENT = {"num_kv_heads": 0, "latent": LatentConfig(12, 0, 6, 4, 5)}
LENGTHS = np.asarray([9, 3, 6], np.int32)

MODELS = {
    "rope, grouped queries": {"num_layers": 2},
    "learned, biases": {"position": "learned", "norm": "layernorm", "attention_bias": True},
    "sinusoidal": {"position": "sinusoidal"},
    "relative": {"position": "relative", "relative_buckets": 8, "relative_max_distance": 16},
    "window": {"num_layers": 2, "attention_pattern": ("local", "global"), "window": 4},
    "alibi, window": {"position": "alibi", "attention_pattern": ("local",), "window": 4},
    "block sparse": {"block_sparse": BlockSparse(2, 2, 1, 3)},
    "sinks, softcap, norms": {
        "attention_sinks": True,
        "attention_softcap": 4.0,
        "qk_norm": True,
        "num_kv_heads": 1,
    },
    "experts": tiny_moe(num_shared_experts=1),
    "prefix": {"attention": "prefix"},
    "latent": LATENT,
    "latent, window, compressed query": {
        **LATENT,
        "latent": LatentConfig(12, 10, 6, 4, 5),
        "attention_pattern": ("local",),
        "window": 4,
        "attention_bias": True,
    },
}


@functools.cache
def step(config):
    """Compiled (variables, batch, cache) -> (logits, cache)."""

    def run(variables, batch, cache):
        logits, aux = models.apply(config, variables, batch, cache=cache)
        return logits, aux.cache

    return jax.jit(run)


def ragged(tokens, lengths):
    """The first `lengths` tokens of every row, padded on the right with other tokens."""
    inside = np.arange(max(lengths)) < lengths[:, None]
    return {
        "inputs": np.where(inside, tokens[:, : max(lengths)], 7).astype(np.int32),
        "segment_ids": inside.astype(np.int32),
    }


@pytest.mark.parametrize("name", MODELS)
def test_ragged_prefill_and_single_steps_equal_recomputation(name):
    config = tiny(**{"num_layers": 1} | MODELS[name])
    variables = random_variables(config)
    tokens = random_tokens(3, max(LENGTHS) + STEPS)
    extra = {}
    if config.attention == "prefix":
        extra = {"prefix_lengths": np.asarray([4, 3, 2], np.int32)}
    whole, _ = forward(config)(variables, ragged(tokens, LENGTHS + STEPS) | extra)

    cache = models.init_cache(config, 3, int(max(LENGTHS)) + STEPS)
    logits, cache = step(config)(variables, ragged(tokens, LENGTHS) | extra, cache)
    np.testing.assert_array_equal(cache.length, LENGTHS)
    rows = np.arange(3)
    for row, length in enumerate(LENGTHS):
        assert relative_error(logits[row, :length], whole[row, :length]) < 1e-4
    for t in range(STEPS):
        batch = {"inputs": tokens[rows, LENGTHS + t][:, None]}
        logits, cache = step(config)(variables, batch, cache)
        assert relative_error(logits[:, 0], whole[rows, LENGTHS + t]) < 1e-4
    np.testing.assert_array_equal(cache.length, LENGTHS + STEPS)


@pytest.mark.parametrize(
    "name, cache, tolerance",
    [
        ("rope, grouped queries", CacheConfig("pages", page_size=4), 1e-4),
        ("alibi, window", CacheConfig("pages", page_size=4), 1e-4),
        ("relative", CacheConfig("pages", page_size=4), 1e-4),
        ("sinks, softcap, norms", CacheConfig("pages", "int8", 4), 0.05),
        ("window", CacheConfig("slots", "int8"), 0.05),
        ("rope, grouped queries", CacheConfig("slots", "bfloat16"), 0.02),
    ],
)
def test_every_kind_of_cache_equals_recomputation(name, cache, tolerance):
    """A ragged prefill, a chunk of two, and a single step."""
    config = tiny(**{"num_layers": 1} | MODELS[name])
    variables = random_variables(config)
    tokens = random_tokens(3, max(LENGTHS) + 3)
    whole, _ = forward(config)(variables, ragged(tokens, LENGTHS + 3))
    state = models.init_cache(config, 3, int(max(LENGTHS)) + 3, cache)
    _, state = step(config)(variables, ragged(tokens, LENGTHS), state)
    rows = np.arange(3)[:, None]
    for new in (np.asarray([0, 1]), np.asarray([2])):
        at = LENGTHS[:, None] + new
        logits, state = step(config)(variables, {"inputs": tokens[rows, at]}, state)
        assert relative_error(logits, whole[rows, at]) < tolerance
    kept = state.layers[0].stored
    assert kept.k.dtype == (config.dtype if cache.dtype == "model" else cache.dtype)


def test_rows_take_pages_of_a_pool_that_others_gave_back():
    """A second text in the pages of the first gives what it gives in a fresh cache."""
    config = tiny(num_layers=1)
    variables, tokens = random_variables(config), random_tokens(2, 6)
    cache = models.init_cache(config, 1, 8, CacheConfig("pages", page_size=4), num_pages=3)
    whole, _ = forward(config)(variables, {"inputs": tokens})
    for row, table in enumerate(([[2, 0]], [[0, 1]])):
        cache = allot(cache, np.asarray(table, np.int32), np.zeros(1, np.int32))
        for part in (slice(0, 5), slice(5, 6)):
            batch = {"inputs": tokens[row : row + 1, part]}
            logits, cache = step(config)(variables, batch, cache)
            assert relative_error(logits, whole[row : row + 1, part]) < 1e-4


@pytest.mark.parametrize("name", ["rope, grouped queries", "window"])
def test_a_prompt_may_come_in_chunks(name):
    config = tiny(**{"num_layers": 1} | MODELS[name])
    variables = random_variables(config)
    tokens = random_tokens(3, 13)
    whole, _ = forward(config)(variables, {"inputs": tokens})
    cache = models.init_cache(config, 3, 13)
    chunks = []
    for start, stop in ((0, 5), (5, 12), (12, 13)):
        logits, cache = step(config)(variables, {"inputs": tokens[:, start:stop]}, cache)
        chunks.append(logits)
    assert relative_error(np.concatenate(chunks, axis=1), whole) < 1e-4


def test_rows_that_are_padded_while_others_decode_stay_as_they_are():
    config = tiny()
    variables = random_variables(config)
    tokens = random_tokens(2, 8)
    _, cache = step(config)(variables, {"inputs": tokens[:, :6]}, models.init_cache(config, 2, 8))
    batch = {"inputs": tokens[:, 6:7], "segment_ids": np.asarray([[1], [0]], np.int32)}
    _, after = step(config)(variables, batch, cache)
    np.testing.assert_array_equal(after.length, [7, 6])
    for old, new in zip(cache.layers, after.layers):
        np.testing.assert_array_equal(old.stored.k[1], new.stored.k[1])
        np.testing.assert_array_equal(old.stored.positions[1], new.stored.positions[1])


def test_local_layers_keep_no_more_than_their_window():
    config = tiny(attention_pattern=("local", "global"), window=4)
    cache = models.init_cache(config, 2, 10)
    assert [layer.stored.k.shape for layer in cache.layers] == [(2, 2, 4, 4), (2, 2, 10, 4)]


def test_scanned_weights_decode_too():
    config = tiny()
    variables = random_variables(config)
    stacked = variables | {"params": models.restack(variables["params"], config, True)}
    tokens = random_tokens(2, 6)
    cache = models.init_cache(config, 2, 6)
    logits, cache = step(config)(stacked, {"inputs": tokens}, cache)
    whole, _ = forward(config)(variables, {"inputs": tokens})
    assert relative_error(logits, whole) < 1e-5


def test_a_cache_that_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="bidirectional"):
        models.init_cache(tiny(attention="bidirectional"), 1, 8)
    with pytest.raises(ConfigError, match=r"latent.*use 'slots'"):
        models.init_cache(tiny(**LATENT), 1, 8, CacheConfig("pages"))
    with pytest.raises(ConfigError, match="max_length"):
        models.init_cache(tiny(position="learned"), 1, 33)
