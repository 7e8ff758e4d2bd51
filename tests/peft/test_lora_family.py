"""What each method of the LoRA family computes for one matrix, beside its formula in numpy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgpt import peft
from jgpt.config import ConfigError, ModelConfig, PeftConfig
from jgpt.kernels.matmul import matmul
from jgpt.kernels.nf4_matmul import dequantize, quantize
from jgpt.layers.residual import dropout
from jgpt.peft import dora, hooks, loftq, lora_fa, olora, pissa, starts
from jgpt.peft.method import Call, Target
from jgpt.peft.sites import Site

IN, OUT, RANK, ALPHA = 64, 24, 4, 6.0
SCALE = ALPHA / RANK
MODEL = ModelConfig(
    vocab_size=8, num_layers=2, hidden_size=16, num_heads=2, intermediate_size=40, scan_layers="off"
)


def random(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def target(settings, rank=RANK, width=RANK):
    site = Site("layers_0/ffn/down", "linear", (IN, OUT), (None, None))
    return Target(site, rank, ALPHA, width, settings, ModelConfig())


def site_call(leaves, settings, weight, bias=None, key=None):
    """One use of a linear map whose frozen weight is `weight`."""
    numbers = weight if isinstance(weight, np.ndarray) else dequantize(weight).T
    return Call(
        leaves=leaves,
        settings=settings,
        base=lambda x: matmul(x, numbers) + (0 if bias is None else bias),
        product=matmul,
        lookup=lambda vector: vector,
        rows=lambda table, ids: table[ids],
        kind="linear",
        weight=weight,
        bias=bias,
        key=key,
    )


def lora_leaves(seed=1):
    return {
        "lora_a": random(IN, RANK, seed=seed),
        "lora_b": random(RANK, OUT, seed=seed),
        "scaling": np.full(RANK, SCALE, np.float32),
    }


# --- DoRA ----------------------------------------------------------------------------------------


def dora_by_definition(x, dropped, weight, bias, leaves):
    """`x W`, and the change by magnitude and direction for dropped x; W + s A B is built."""
    adapted = weight + SCALE * leaves["lora_a"] @ leaves["lora_b"]
    ratio = leaves["magnitude"] / jax.lax.stop_gradient(jnp.sqrt((adapted**2).sum(0)))
    change = (ratio - 1) * (dropped @ weight) + ratio * (
        SCALE * dropped @ leaves["lora_a"] @ leaves["lora_b"]
    )
    return x @ weight + bias + change


@pytest.mark.parametrize("kept", ["whole", "nf4"])
def test_dora_is_its_definition_with_the_norm_held_constant(kept):
    """Values and gradients, with dropout; the bias is not rescaled."""
    weight, bias, x = random(IN, OUT), random(OUT), random(5, IN)
    settings = PeftConfig(method="dora", dropout=0.3)
    key = jax.random.key(7)
    leaves = {**lora_leaves(), "magnitude": 1 + abs(random(OUT, seed=3))}
    frozen = quantize(weight.T) if kept == "nf4" else weight
    numbers = np.asarray(dequantize(frozen).T) if kept == "nf4" else weight
    direction = random(5, OUT, seed=4)

    def ours(trained):
        call = site_call({**leaves, **trained}, settings, frozen, bias, key)
        return (dora.call(call, x) * direction).sum()

    def defined(trained):
        dropped = dropout(x, 0.3, key)
        y = dora_by_definition(x, dropped, numbers, bias, {**leaves, **trained})
        return (y * direction).sum()

    trained = {name: leaves[name] for name in ("lora_a", "lora_b", "magnitude")}
    found, expected = jax.value_and_grad(ours)(trained), jax.value_and_grad(defined)(trained)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    for name in trained:
        size = abs(expected[1][name]).max()
        np.testing.assert_allclose(found[1][name], expected[1][name], rtol=0, atol=2e-5 * size)


def test_dora_of_outputs_without_weights_is_no_division_by_zero():
    weight = random(IN, OUT)
    weight[:, 3] = 0
    leaves = {**lora_leaves(), "magnitude": np.ones(OUT, np.float32)}
    leaves["lora_b"][:] = 0
    assert np.isfinite(dora.gain(weight, leaves)).all()


# --- LoRA-FA, LoRA+, rsLoRA ----------------------------------------------------------------------


def test_lora_fa_moves_the_weight_as_near_to_its_gradient_as_a_can():
    """`s A g'` is the projection of the weight's gradient onto what A reaches."""
    leaves, full = lora_leaves(), random(IN, OUT, seed=5)
    own = {"lora_b": SCALE * leaves["lora_a"].T @ full}  # the chain rule's
    found = lora_fa.gradient(own, leaves, PeftConfig())["lora_b"]
    basis, _ = np.linalg.qr(leaves["lora_a"].astype(np.float64))
    moved = SCALE * leaves["lora_a"] @ found
    np.testing.assert_allclose(moved, basis @ basis.T @ full, atol=1e-4)


def test_lora_fa_on_stacked_layers_leaves_masked_columns_alone():
    two = jax.tree.map(lambda *x: np.stack(x), lora_leaves(1), lora_leaves(2))
    two["scaling"][1, 2:] = 0
    own = {"lora_b": random(2, RANK, OUT)}
    found = lora_fa.gradient(own, two, PeftConfig())["lora_b"]
    assert (found[1, 2:] == 0).all()
    used = {"lora_a": two["lora_a"][1][:, :2], "scaling": two["scaling"][1, :2]}
    alone = lora_fa.gradient({"lora_b": own["lora_b"][1, :2]}, used, PeftConfig())["lora_b"]
    np.testing.assert_allclose(found[1, :2], alone, rtol=1e-4)


def test_a_name_stands_for_settings_that_the_user_may_still_set():
    def rate(**settings):
        fitted = peft.make_peft(PeftConfig(**settings), MODEL)
        return [fitted.method.rates(name, fitted.settings) for name in ("lora_a", "lora_b")]

    assert rate(method="lora") == [1, 1]
    assert rate(method="lora_plus") == [1, 16]
    assert rate(method="lora_plus", rate_ratio=4.0) == [1, 4]
    assert rate(method="lora_plus", rate_ratio=1.0) == [1, 1]
    assert rate(method="dora", rate_ratio=4.0) == [1, 4]
    fitted = peft.make_peft(PeftConfig(method="rslora", rank=16, alpha=8.0), MODEL)
    assert fitted.targets[0].scale == 8 / 4


# --- PiSSA, OLoRA, LoftQ -------------------------------------------------------------------------


def test_pissa_leaves_the_smaller_singular_values_in_the_base():
    weight = random(IN, OUT)
    base, a, b = pissa.split(weight, RANK, SCALE)
    values = np.linalg.svd(weight.astype(np.float64), compute_uv=False)
    found = np.linalg.svd(np.asarray(base, np.float64), compute_uv=False)
    np.testing.assert_allclose(found[: OUT - RANK], values[RANK:], rtol=1e-4)
    np.testing.assert_allclose(base + SCALE * a @ b, weight, atol=1e-5)
    np.testing.assert_allclose((a**2).sum(0), values[:RANK] / SCALE, rtol=1e-4)
    np.testing.assert_allclose((b**2).sum(1), values[:RANK] / SCALE, rtol=1e-4)


def test_olora_begins_with_the_first_of_an_orthonormal_basis():
    weight = random(IN, OUT)
    base, a, b = olora.split(weight, RANK, SCALE)
    np.testing.assert_allclose(b @ b.T, np.eye(RANK), atol=1e-5)
    np.testing.assert_allclose(base + SCALE * a @ b, weight, atol=1e-5)
    base, _, _ = olora.split(weight, RANK, 1.0)  # R is triangular: the first inputs are used up
    np.testing.assert_allclose(base[:RANK], np.zeros((RANK, OUT)), atol=1e-5)


def test_loftq_is_nearer_to_the_weight_than_nf4_is():
    weight = random(IN, OUT)
    alone = np.asarray(dequantize(quantize(weight.T, double=False)).T)
    base, a, b = loftq.split(weight, RANK, SCALE)
    np.testing.assert_array_equal(base, alone)
    np.testing.assert_array_equal(dequantize(quantize(base.T, double=False)).T, base)
    once = np.linalg.norm(base + SCALE * a @ b - weight)
    assert once < 0.9 * np.linalg.norm(alone - weight)
    base, a, b = loftq.split(weight, RANK, SCALE, iterations=5)
    assert np.linalg.norm(base + SCALE * a @ b - weight) < once
    again = PeftConfig(method="loftq", init="loftq", loftq_iterations=5)
    own = {"lora_a": jnp.zeros((IN, RANK)), "lora_b": jnp.zeros((RANK, OUT))}
    started, leaves = starts.choose(again)(target(again), weight, own)
    np.testing.assert_array_equal(started, base)
    np.testing.assert_array_equal(leaves["lora_b"], b)
    with pytest.raises(ConfigError, match="blocks of 64 do not fit 63 inputs"):
        loftq.split(weight[:63], RANK, SCALE)


def test_a_start_fills_the_columns_in_use_and_no_others():
    settings = PeftConfig(method="pissa", init="pissa")
    narrow = target(settings, rank=2, width=RANK)
    leaves = lora_leaves()
    begin = starts.choose(settings)
    base, found = begin(narrow, random(IN, OUT), jax.tree.map(jnp.asarray, leaves))
    np.testing.assert_array_equal(found["lora_a"][:, 2:], leaves["lora_a"][:, 2:])
    update = ALPHA / 2 * found["lora_a"][:, :2] @ found["lora_b"][:2]
    np.testing.assert_allclose(base + update, random(IN, OUT), atol=1e-5)


def test_what_was_trained_on_a_changed_base_becomes_plain_lora_on_the_original():
    weight = random(IN, OUT)
    base, a, b = (np.asarray(x) for x in pissa.split(weight, RANK, SCALE))
    scaling = np.full(RANK, SCALE, np.float32)
    started = {"lora_a": a, "lora_b": b, "scaling": scaling}
    trained = lora_leaves()
    found = starts.on_original(trained, started, RANK)
    assert found["lora_a"].shape == (IN, 2 * RANK)
    update = (found["lora_a"] * found["scaling"]) @ found["lora_b"]
    expected = base + SCALE * trained["lora_a"] @ trained["lora_b"]
    np.testing.assert_allclose(weight + update, expected, atol=1e-4)
    settings = PeftConfig(method="pissa", rank=4, alpha=6.0, rank_pattern=("query=2",))
    doubled = starts.doubled(settings, 8)
    fitted = peft.make_peft(doubled, MODEL)
    assert {(t.site.path, t.rank, t.scale) for t in fitted.targets} == {
        (f"layers_{i}/attention/{name}", rank, 1.0)
        for i in range(2)
        for name, rank in (("query", 4), ("value", 8))
    }


def test_a_base_that_others_use_too_is_not_changed():
    model = dataclasses.replace(MODEL, tied_embeddings=True)
    tied = peft.make_peft(PeftConfig(method="pissa", targets=("embedding",)), model)
    params = {"embedding": {"table": jnp.ones((8, 16))}}
    with pytest.raises(ConfigError, match="the head is tied to it"):
        peft.init(tied, params, jax.random.key(0))


# --- VeRA ----------------------------------------------------------------------------------------


def test_vera_has_one_pair_of_projections_for_all_sites():
    fitted = peft.make_peft(PeftConfig(method="vera", targets=("all-linear",)), MODEL)
    shapes = peft.abstract_adapters(fitted)
    assert jax.tree.map(lambda x: x.shape, shapes.constants) == {
        "shared": {"projection_a": (40, 256), "projection_b": (256, 40)}
    }
    _, drawn = peft.init(fitted, {}, jax.random.key(0))
    for name, fan_in in (("projection_a", 40), ("projection_b", 256)):
        values, bound = np.asarray(drawn.constants["shared"][name]), np.sqrt(6 / fan_in)
        assert 0.99 * bound < abs(values).max() <= bound
        np.testing.assert_allclose(values.std(), bound / np.sqrt(3), rtol=0.03)
    d = drawn.trained["layers_1"]["ffn"]["down"]["vera_d"]
    np.testing.assert_allclose(d, np.full(256, 0.1))


# --- hooks ---------------------------------------------------------------------------------------


def test_a_method_without_hooks_has_empty_ones():
    fitted = peft.make_peft(PeftConfig(method="lora"), MODEL)
    _, adapters = peft.init(fitted, {}, jax.random.key(0))
    assert hooks.regulariser(fitted, adapters) == 0
    assert hooks.gradient(fitted, adapters.trained, adapters) is adapters.trained
    state = hooks.init_state(fitted, adapters.trained, 10)
    after = hooks.after_update(fitted, adapters, adapters.trained, state, jnp.int32(1), 10)
    assert after == (adapters.trained, state)


def test_lora_fa_sees_the_gradients_of_a_whole_model():
    fitted = peft.make_peft(PeftConfig(method="lora_fa"), MODEL)
    _, adapters = peft.init(fitted, {}, jax.random.key(0))
    gradients = jax.tree.map(lambda x: jnp.asarray(random(*x.shape)), adapters.trained)
    found = hooks.gradient(fitted, gradients, adapters)
    assert jax.tree.structure(found) == jax.tree.structure(gradients)
    own, site, last = (
        tree["layers_1"]["attention"]["query"] for tree in (gradients, adapters.constants, found)
    )
    expected = lora_fa.gradient(own, site, fitted.settings)
    np.testing.assert_allclose(last["lora_b"], expected["lora_b"])
