"""Exact sets of tokens, exact distributions, and draws that repeat."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgpt.config import ConfigError, SampleConfig
from jgpt.inference import sampling

BATCH, VOCAB = 5, 97


@pytest.fixture
def logits() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 3, (BATCH, VOCAB)).astype(np.float32)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def kept_sets(filtered) -> list[set[int]]:
    return [set(np.flatnonzero(np.isfinite(row)).tolist()) for row in np.asarray(filtered)]


@pytest.mark.parametrize("k", [1, 2, 10, VOCAB - 1])
def test_top_k_keeps_exactly_the_k_likeliest(logits, k):
    expected = [set(np.argsort(-row)[:k].tolist()) for row in logits]
    assert kept_sets(sampling.keep_top_k(logits, k)) == expected


@pytest.mark.parametrize("p", [1e-6, 0.3, 0.9, 0.999])
def test_top_p_keeps_the_smallest_sufficient_set(logits, p):
    expected = []
    for row, probability in zip(logits, softmax(logits)):
        order = np.argsort(-row)
        number = int(np.searchsorted(np.cumsum(probability[order]), p)) + 1
        expected.append(set(order[:number].tolist()))
    assert kept_sets(sampling.keep_top_p(logits, p)) == expected


def test_min_p_is_relative_to_the_likeliest(logits):
    probability = softmax(logits)
    least = 0.05 * probability.max(-1, keepdims=True)
    expected = [set(np.flatnonzero(row >= m).tolist()) for row, m in zip(probability, least)]
    assert kept_sets(sampling.keep_min_p(logits, 0.05)) == expected


def test_filters_see_what_the_one_before_left(logits):
    """top_p counts mass among the top_k tokens only, and both after the temperature."""
    config = SampleConfig(temperature=0.5, top_k=6, top_p=0.8)
    expected = []
    for row in logits:
        order = np.argsort(-row)[:6]
        mass = np.cumsum(softmax(row[None, order] / 0.5)[0])
        expected.append(set(order[: int(np.searchsorted(mass, 0.8)) + 1].tolist()))
    assert kept_sets(sampling.filtered(jnp.asarray(logits), config)) == expected


def test_threshold_is_exact_to_the_last_bit():
    values = np.random.default_rng(1).random((3, 50), np.float32) ** 8
    for k in (1, 7, 50):
        found = sampling.largest_threshold(jnp.asarray(values), lambda kept, k=k: kept.sum(-1) >= k)
        np.testing.assert_array_equal(np.asarray(found)[:, 0], np.sort(values, -1)[:, -k])


def test_tied_tokens_stay_together():
    logits = jnp.asarray([[1.0, 2.0, 2.0, 0.0]])
    assert kept_sets(sampling.keep_top_k(logits, 1)) == [{1, 2}]


def test_repetition_penalty_lowers_seen_tokens_of_either_sign():
    logits = jnp.asarray([[2.0, -2.0, 1.0]])
    seen = jnp.asarray([[True, True, False]])
    np.testing.assert_allclose(sampling.penalised(logits, seen, 2.0), [[1.0, -4.0, 1.0]])


def test_temperature_zero_is_argmax(logits):
    keys = jax.random.split(jax.random.key(0), BATCH)
    found = sampling.sample(keys, jnp.asarray(logits), SampleConfig(temperature=0.0))
    np.testing.assert_array_equal(found, logits.argmax(-1))


def test_seeds_repeat_and_rows_are_independent(logits):
    config = SampleConfig(temperature=1.0, top_p=1.0)
    keys = jax.random.split(jax.random.key(3), BATCH)
    together = sampling.sample(keys, jnp.asarray(logits), config)
    np.testing.assert_array_equal(together, sampling.sample(keys, jnp.asarray(logits), config))
    alone = [sampling.sample(keys[i : i + 1], logits[i : i + 1], config)[0] for i in range(BATCH)]
    np.testing.assert_array_equal(together, alone)


def test_draws_follow_the_filtered_distribution():
    """Chi-square over 20,000 draws of a small vocabulary; 0.999 quantile of the distribution."""
    number, vocab_size = 20_000, 8
    logits = np.random.default_rng(4).normal(0, 1, (1, vocab_size)).astype(np.float32)
    config = SampleConfig(temperature=0.7, top_k=6, top_p=1.0)
    keys = jax.random.split(jax.random.key(5), number)
    drawn = jax.jit(sampling.sample, static_argnums=2)(
        keys, jnp.tile(jnp.asarray(logits), (number, 1)), config
    )
    observed = np.bincount(np.asarray(drawn), minlength=vocab_size)
    likeliest = np.argsort(-logits[0])[:6]
    expected = softmax(logits[:, likeliest] / 0.7)[0] * number
    assert observed.sum() == observed[likeliest].sum()
    statistic = ((observed[likeliest] - expected) ** 2 / expected).sum()
    assert statistic < 20.5  # five degrees of freedom


@pytest.mark.parametrize(
    "field,value",
    [("temperature", -1.0), ("top_p", 0.0), ("top_p", 1.5), ("min_p", 2.0), ("top_k", -1),
     ("repetition_penalty", 0.0), ("max_new_tokens", 0), ("prompts", ())],
)  # fmt: skip
def test_impossible_settings_are_refused(field, value):
    with pytest.raises(ConfigError, match=rf"sample\.{field}"):
        SampleConfig(**{field: value})
