"""Sums over batches, in nats and in bits per raw character."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from jgpt.evals import perplexity


def fake_sums(seed: int) -> dict:
    rng = np.random.default_rng(seed)
    weight = float(rng.integers(10, 50))
    return {
        "nll": jnp.float32(rng.random() * weight),
        "weight": jnp.float32(weight),
        "correct": jnp.float32(rng.integers(0, weight)),
        "characters": jnp.float32(rng.integers(20, 90)),
    }


def test_figures_are_ratios_of_sums_not_means_of_ratios():
    sums = [fake_sums(i) for i in range(5)]
    found = dict(perplexity.make(lambda _, i: sums[i], range(5), emits_unk=False)(None))
    total = {name: sum(float(s[name]) for s in sums) for name in sums[0]}
    loss = total["nll"] / total["weight"]
    assert found["validation_loss"] == pytest.approx(loss)
    assert found["validation_perplexity"] == pytest.approx(math.exp(loss))
    assert found["validation_accuracy"] == pytest.approx(total["correct"] / total["weight"])
    assert found["validation_bits_per_character"] == pytest.approx(
        total["nll"] / total["characters"] / math.log(2)
    )


def test_a_tokenizer_that_loses_characters_gets_no_bits_per_character():
    found = dict(perplexity.make(lambda _, i: fake_sums(i), range(2), emits_unk=True)(None))
    assert "validation_bits_per_character" not in found


def test_the_variables_are_handed_on():
    seen = []
    evaluation = perplexity.make(
        lambda state, batch: seen.append((state, batch)) or fake_sums(0), "ab", emits_unk=False
    )
    list(evaluation("weights"))
    assert seen == [("weights", "a"), ("weights", "b")]
