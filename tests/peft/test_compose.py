"""Sums of adapters are sums of updates; rows with adapters of their own are as if each were alone.

Everything is compared with updates built in numpy, or with one adapter at a time.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgpt import models, peft
from jgpt.config import ConfigError, ModelConfig, PeftConfig
from jgpt.peft import compose, compose_rules, compose_stack
from jgpt.trees import map_with_path

MODEL = ModelConfig(
    vocab_size=32,
    num_layers=2,
    hidden_size=16,
    num_heads=2,
    intermediate_size=24,
    scan_layers="off",
)
SCANNED = dataclasses.replace(MODEL, scan_layers="on")
TOKENS = np.random.default_rng(0).integers(1, 32, (3, 6), np.int32)
QUERY = "layers_0/attention/query"
WIDE = PeftConfig(method="lora", targets=(r"attention/(query|value)$", "embedding"), rank=4)
NARROW = PeftConfig(method="rslora", targets=(r"attention/(query|key)$",), rank=2, alpha=6.0)
UNEVEN = PeftConfig(method="lora", targets=("query$",), rank=3, rank_pattern=("layers_1/.*=1",))


@functools.cache
def params():
    return models.init(MODEL, jax.random.key(0))


def pair(settings, seed, model=MODEL):
    """A method with random leaves."""
    fitted = peft.make_peft(settings, model)
    like = models.restack(params(), model, model.scan_layers == "on")
    _, adapters = peft.init(fitted, like, jax.random.key(seed))
    generator = np.random.default_rng(seed)

    def noise(path, leaf):
        return jnp.asarray(0.3 * generator.standard_normal(leaf.shape), leaf.dtype)

    return fitted, adapters._replace(trained=map_with_path(noise, adapters.trained))


def logits(pair, tokens=TOKENS, **batch):
    fitted, adapters = pair
    apply = peft.bind(fitted, functools.partial(models.apply, fitted.model))
    own = models.restack(params(), fitted.model, fitted.model.scan_layers == "on")
    variables = {"params": own, "adapters": adapters.trained, "constants": adapters.constants}
    return jax.jit(lambda v, b: apply(v, b)[0])(variables, {"inputs": tokens, **batch})


def updates(pair):
    return {path: np.asarray(f.product) for path, f in compose.factors(*pair).items()}


def error(found, expected):
    return float(abs(found - expected).max() / abs(expected).max())


def weighted(pairs, weights):
    total = {}
    for one, weight in zip(pairs, weights, strict=True):
        for path, update in updates(one).items():
            total[path] = total.get(path, 0) + weight * update
    return total


@pytest.mark.parametrize("model", [MODEL, SCANNED], ids=["unrolled", "scanned"])
def test_cat_is_the_weighted_sum_of_updates_also_with_negative_weights(model):
    pairs = [pair(WIDE, 1, model), pair(NARROW, 2, model), pair(UNEVEN, 3, model)]
    weights = (0.7, -1.3, 0.4)
    combined = compose.combine(pairs, weights)
    expected = weighted(pairs, weights)
    found = updates(combined)
    assert found.keys() == expected.keys()
    assert max(error(found[path], expected[path]) for path in expected) < 1e-5
    if model is MODEL:

        @jax.jit
        def one_after_the_other(merged):
            for one, weight in zip(pairs, weights, strict=True):
                constants = jax.tree.map(lambda s, w=weight: s * w, one[1].constants)
                merged = peft.merge(one[0], merged, one[1]._replace(constants=constants))
            return models.apply(MODEL, {"params": merged}, {"inputs": TOKENS})[0]

        assert error(logits(combined), one_after_the_other(params())) < 1e-4


def test_an_adapter_less_itself_is_nothing():
    one = pair(NARROW, 1)
    found = updates(compose.combine([one, one], (1.0, -1.0)))
    assert max(abs(update).max() for update in found.values()) < 1e-6


def test_svd_is_the_nearest_of_its_rank():
    pairs, weights = [pair(WIDE, 1), pair(NARROW, 2)], (0.5, 2.0)
    expected = weighted(pairs, weights)[QUERY]
    found = updates(compose.combine(pairs, weights, "svd", rank=3))[QUERY]
    assert np.linalg.matrix_rank(found, tol=1e-4) == 3
    values = np.linalg.svd(expected, compute_uv=False)
    assert error(np.linalg.norm(found - expected), np.linalg.norm(values[3:])) < 1e-4
    whole = updates(compose.combine(pairs, weights, "svd", rank=6))[QUERY]
    assert error(whole, expected) < 1e-4


def test_linear_is_not_the_sum():
    pairs = [pair(WIDE, 1), pair(WIDE, 2)]
    found = updates(compose.combine(pairs, (1.0, 1.0), "linear"))[QUERY]
    assert error(found, weighted(pairs, (1.0, 1.0))[QUERY]) > 0.1
    with pytest.raises(ConfigError, match="different rank"):
        compose.combine([pair(WIDE, 1), pair(NARROW, 2)], (1.0, 1.0), "linear")


def test_ties_keeps_the_largest_and_averages_those_that_agree():
    tensors = jnp.array([[5.0, -3.0, 0.1, 2.0], [4.0, 6.0, -0.2, -1.0]])
    rule = compose_rules.choose("ties", 0.5, "total", jax.random.key(0))
    found = rule(tensors, jnp.array([1.0, 0.5]), 0)
    # Kept: 5 -3 | 4 6. Elected: + + . .; 5 and 4/2 agree at first, 6/2 alone at second.
    np.testing.assert_allclose(found, [(5 + 2) / 2, 3.0, 0.0, 0.0])


def test_dare_is_unbiased_and_prunes_that_many():
    tensors = jnp.ones((1, 20_000))
    rule = compose_rules.choose("dare_linear", 0.25, "total", jax.random.key(0))
    found = np.asarray(rule(tensors, jnp.ones(1), 0))
    assert set(np.unique(found)) == {0.0, 4.0}
    assert abs(found.mean() - 1) < 0.05


@pytest.mark.parametrize("way", compose.WAYS)
def test_every_way_gives_adapters_that_run(way):
    combined = compose.combine([pair(WIDE, 1), pair(WIDE, 2)], (0.6, 0.4), way, density=0.7)
    assert np.isfinite(updates(combined)[QUERY]).all()
    assert abs(updates(combined)[QUERY]).max() > 0.01


@pytest.mark.parametrize(
    "settings",
    [
        PeftConfig(method="adalora", targets=("query$",), rank=2),
        PeftConfig(method="vera", targets=(r"attention/(query|value)$", "down$"), rank=5),
        PeftConfig(method="lora_fa", rank=2),
    ],
    ids=lambda settings: settings.method,
)
def test_methods_of_the_family_are_the_same_as_plain_lora(settings):
    one = pair(settings, 4)
    assert error(logits(compose.as_lora(one)), logits(one)) < 1e-5


def test_methods_of_other_families_are_refused():
    with pytest.raises(ConfigError, match="DoRA"):
        compose.factors(*pair(PeftConfig(method="dora"), 1))
    with pytest.raises(ConfigError, match="no product"):
        compose.factors(*pair(PeftConfig(method="ia3"), 1))
    with pytest.raises(ConfigError, match="biases"):
        compose.factors(*pair(PeftConfig(method="lora", bias=True), 1))


@pytest.mark.parametrize("model", [MODEL, SCANNED], ids=["unrolled", "scanned"])
def test_each_row_of_a_batch_has_its_own_adapter(model):
    pairs = [pair(WIDE, 1, model), pair(NARROW, 2, model)]
    stacked = compose_stack.stack(pairs)
    ids = np.array([1, 0, 1], np.int32)
    found = logits(stacked, adapter_ids=ids)
    expected = [logits(one) for one in pairs]
    for row, number in enumerate(ids):
        assert error(found[row], expected[number][row]) < 1e-5
    again = compose_stack.unstack(stacked, 1)
    assert error(logits(again), expected[1]) < 1e-5


def test_stacked_adapters_train_as_if_alone():
    pairs = [pair(WIDE, 1), pair(NARROW, 2)]
    fitted, adapters = compose_stack.stack(pairs)
    apply = peft.bind(fitted, functools.partial(models.apply, MODEL))

    def total(trained):
        variables = {"params": params(), "adapters": trained, "constants": adapters.constants}
        batch = {"inputs": TOKENS, "adapter_ids": np.array([1, 1, 1], np.int32)}
        return (apply(variables, batch)[0] ** 2).mean()

    gradients = jax.jit(jax.grad(total))(adapters.trained)
    of_value = gradients["layers_0"]["attention"]["value"]["lora_b"]
    of_query = gradients["layers_0"]["attention"]["query"]["lora_b"]
    assert not np.any(of_value)  # only the first adapter is there
    assert not np.any(of_query[0])
    assert np.any(of_query[1, :2])
    assert not np.any(of_query[1, 2:])  # columns that the second does not have


def test_a_slot_is_swapped_without_compiling_again():
    stacked = compose_stack.stack([pair(WIDE, 1), pair(NARROW, 2)])
    apply = peft.bind(stacked[0], functools.partial(models.apply, MODEL))
    compilations = []

    @jax.jit
    def run(adapters, ids):
        compilations.append(1)
        variables = {"params": params(), "adapters": adapters[0], "constants": adapters[1]}
        return apply(variables, {"inputs": TOKENS, "adapter_ids": ids})[0]

    ids = np.array([0, 1, 1], np.int32)
    before = run(stacked[1], ids)
    new = pair(UNEVEN, 5)
    swapped = compose_stack.swap(stacked, 1, new)
    after = run(swapped[1], ids)
    assert len(compilations) == 1
    assert error(after[0], before[0]) < 1e-6
    assert error(after[1:], logits(new)[1:]) < 1e-5
    with pytest.raises(ConfigError, match="slot 2"):
        compose_stack.swap(stacked, 2, new)
    with pytest.raises(ConfigError, match="rank 9"):
        compose_stack.swap(stacked, 0, pair(dataclasses.replace(UNEVEN, rank=9), 1))


def test_learned_weights_find_the_mixture():
    straight = PeftConfig(method="lora", targets=("value$", "down$"), rank=2)
    pairs = [pair(straight, seed) for seed in (1, 2, 3)]
    truth = (0.8, -0.5, 0.0)
    goal = logits(compose.combine(pairs[:2], truth[:2]))

    def loss(fitted, adapters):
        apply = peft.bind(fitted, functools.partial(models.apply, MODEL))
        variables = {"params": params(), "adapters": adapters[0], "constants": adapters[1]}
        return ((apply(variables, {"inputs": TOKENS})[0] - goal) ** 2).mean()

    weights, losses = compose_stack.learn_weights(pairs, loss, steps=100, rate=0.1, penalty=0.0)
    assert losses[-1] < 0.02 * losses[0]
    np.testing.assert_allclose(weights, truth, atol=0.1)
