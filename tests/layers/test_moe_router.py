"""The router: what it chooses, what it counts, and the losses that keep it balanced."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgpt.config import ModelConfig, MoEConfig
from jgpt.layers.router import (
    Router,
    balance_loss,
    choose_experts,
    router_loss,
    router_metrics,
    router_scores,
    router_stats,
    update_selection_bias,
    z_loss,
)
from jgpt.typing import RouterStats

E, K, T = 8, 2, 40
MOE = MoEConfig(num_experts=E, top_k=K)


def logits(seed=0, tokens=T):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((tokens, E)), jnp.float32)


@functools.partial(jax.jit, static_argnames="moe")
def stats_of(logits, moe=MOE, mask=None, selection_bias=None):
    mask = jnp.ones(len(logits), bool) if mask is None else mask
    scores = router_scores(logits, moe)
    routing = choose_experts(scores, mask, moe, selection_bias)
    assignments = jnp.sum(routing.experts[..., None] == jnp.arange(E), axis=(0, 1))
    return router_stats(logits, scores, assignments, mask)


def even(layers=()):
    full = jnp.full((*layers, E), T * K / E)
    scalar = jnp.full(layers, float(T))
    return RouterStats(full, full / K, scalar, scalar, 0 * scalar, scalar, 0 * scalar)


@pytest.mark.parametrize("layers", [(), (1,), (3,)])
def test_balance_is_exactly_one_per_layer_at_uniform_routing(layers):
    assert float(balance_loss(even(layers))) == max(1, sum(layers))
    assert float(router_metrics(even(layers))["balance"]) == 1.0


def test_balance_is_the_number_of_experts_when_one_takes_all():
    one = jnp.zeros(E).at[3].set(float(T))
    stats = RouterStats(one, one, *[jnp.asarray(float(T))] * 5)
    assert float(balance_loss(stats)) == E
    assert float(router_metrics(stats)["max_load"]) == E


def test_losses_equal_their_formulas_in_float64():
    x = np.asarray(logits(1), np.float64)
    exponentials = np.exp(x)
    p = exponentials / exponentials.sum(1, keepdims=True)
    counts = np.bincount(np.argsort(-p, axis=1)[:, :K].ravel(), minlength=E)
    stats = stats_of(logits(1))
    balance = E * np.sum(counts / (T * K) * p.mean(0))
    z = np.mean(np.log(exponentials.sum(1)) ** 2)
    entropy = np.mean(-np.sum(p * np.log(p), axis=1))
    np.testing.assert_allclose(balance_loss(stats), balance, rtol=1e-6)
    np.testing.assert_allclose(z_loss(stats), z, rtol=1e-6)
    np.testing.assert_allclose(router_metrics(stats)["entropy"], entropy, rtol=1e-6)
    want = MOE.balance_coefficient * balance + MOE.z_coefficient * z
    np.testing.assert_allclose(router_loss(stats, MOE), want, rtol=1e-6)


def test_sums_over_parts_add_up_but_the_product_is_taken_over_the_whole():
    parts = [stats_of(logits(s) + 3.0 * s * jnp.eye(E)[s]) for s in (0, 1)]
    whole = stats_of(jnp.concatenate([logits(0), logits(1) + 3.0 * jnp.eye(E)[1]]))
    total = jax.tree.map(jnp.add, *parts)
    for got, want in zip(jax.tree.leaves(total), jax.tree.leaves(whole)):
        np.testing.assert_allclose(got, want, rtol=1e-5)
    mean_of_parts = sum(float(balance_loss(p)) for p in parts) / 2
    assert abs(mean_of_parts - float(balance_loss(whole))) > 1e-3


def test_mixtral_in_transformers_reports_k_times_this_over_pooled_layers():
    """Their `load_balancing_loss_func`: layers concatenated, the k choices summed, not averaged."""
    layers = [logits(3), logits(4) + 2.0 * jnp.eye(E)[0]]
    pooled = np.concatenate(layers).astype(np.float64)
    p = np.exp(pooled) / np.exp(pooled).sum(1, keepdims=True)
    chosen = np.eye(E)[np.argsort(-p, axis=1)[:, :K]]
    theirs = E * np.sum(chosen.mean(0) * p.mean(0)[None])
    pooled_stats = jax.tree.map(jnp.add, *[stats_of(x) for x in layers])
    np.testing.assert_allclose(K * balance_loss(pooled_stats), theirs, rtol=1e-6)


def test_the_balance_loss_moves_probability_away_from_busy_experts():
    x = logits(5) + 2.0 * jnp.eye(E)[2]
    gradient = jax.grad(lambda x: balance_loss(stats_of(x)))(x)
    assert float(gradient[:, 2].min()) > 0
    assert float(jnp.abs(gradient).max()) > 0


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("router", ["softmax", "sigmoid"])
def test_selection_bias_enters_the_selection_only(router, renormalize):
    moe = MoEConfig(E, K, router=router, renormalize=renormalize, routed_scale=2.5)
    bias = jnp.zeros(E).at[6].set(10.0)
    x, mask = logits(6), jnp.ones(T, bool)

    def chosen(x, bias):
        return choose_experts(router_scores(x, moe), mask, moe, bias)

    routing = chosen(x, bias)
    assert bool(jnp.all(jnp.any(routing.experts == 6, axis=1)))
    scores = np.take_along_axis(np.asarray(router_scores(x, moe)), np.asarray(routing.experts), 1)
    if renormalize:
        scores = scores / scores.sum(1, keepdims=True)
    np.testing.assert_allclose(routing.weights, 2.5 * scores, rtol=1e-6)
    gradient = jax.grad(lambda b: jnp.sum(chosen(x, b).weights ** 2))(bias)
    np.testing.assert_array_equal(gradient, 0)


def test_the_bias_of_busy_experts_falls_and_that_of_idle_ones_rises():
    assignments = jnp.array([[9.0, 1.0, 5.0, 5.0], [5.0, 5.0, 5.0, 5.0]])
    moved = update_selection_bias(jnp.ones((2, 4)), assignments, 0.25)
    np.testing.assert_array_equal(moved, [[0.75, 1.25, 1, 1], [1, 1, 1, 1]])


def test_sigmoid_probabilities_are_normalised_in_the_figures():
    stats = stats_of(logits(7), MoEConfig(E, K, router="sigmoid"))
    np.testing.assert_allclose(jnp.sum(stats.probabilities), T, rtol=1e-6)


def test_padding_is_neither_routed_nor_counted():
    mask = jnp.arange(T) % 3 != 0
    x = logits(8)
    routing = choose_experts(router_scores(x, MOE), mask, MOE)
    assert bool(jnp.all((routing.experts == E) == ~mask[:, None]))
    padded, kept = stats_of(x, mask=mask), stats_of(x[mask])
    for got, want in zip(jax.tree.leaves(padded), jax.tree.leaves(kept)):
        np.testing.assert_allclose(got, want, rtol=1e-6)
    assert float(padded.tokens) == int(mask.sum())
    nobody = stats_of(x, mask=jnp.zeros(T, bool))
    assert all(bool(jnp.all(jnp.isfinite(v))) for v in router_metrics(nobody).values())


def test_logits_are_float32_in_a_bfloat16_model():
    config = ModelConfig(
        hidden_size=64, dtype="bfloat16", ffn_pattern=("moe",), moe=MoEConfig(num_experts=E)
    )
    x = jax.random.normal(jax.random.key(0), (T, 64), jnp.bfloat16)
    params = Router(config).init(jax.random.key(1), x)
    got = Router(config).apply(params, x)
    (kernel,) = jax.tree.leaves(params)
    want = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, atol=1e-6 * np.abs(want).max())


def test_jitter_is_for_training_and_stays_in_its_bounds():
    config = ModelConfig(
        hidden_size=64, ffn_pattern=("moe",), moe=MoEConfig(num_experts=E, jitter=0.1)
    )
    router, x = Router(config), jnp.ones((T, 64))
    params = jax.tree.map(jnp.ones_like, router.init(jax.random.key(0), x))
    np.testing.assert_allclose(router.apply(params, x), 64.0, rtol=1e-6)
    jittered = router.apply(params, x, False, rngs={"jitter": jax.random.key(1)})
    assert 0.1 < float(jnp.std(jittered)) < 2.0
    assert 64 * 0.9 < float(jittered.min()) < float(jittered.max()) < 64 * 1.1


@pytest.mark.parametrize("router", ["softmax", "sigmoid"])
def test_experts_come_from_the_best_groups(router):
    """Against loops: a group's worth is its best expert, or its best two with a sigmoid router."""
    moe = MoEConfig(num_experts=12, top_k=3, num_groups=4, top_groups=2, router=router)
    generator = np.random.default_rng(3)
    scores = generator.random((40, 12)).astype(np.float32)
    bias = generator.normal(0, 0.3, 12).astype(np.float32) if router == "sigmoid" else None
    routing = choose_experts(jnp.asarray(scores), jnp.ones(40, bool), moe, bias)
    for t in range(40):
        seen = scores[t] if bias is None else scores[t] + bias
        best = 2 if router == "sigmoid" else 1
        worth = [np.sort(seen[g * 3 : g * 3 + 3])[-best:].sum() for g in range(4)]
        groups = np.argsort(worth)[-2:]
        inside = [e for e in range(12) if e // 3 in groups]
        expected = sorted(inside, key=lambda e: -seen[e])[:3]
        assert list(routing.experts[t]) == expected
        weights = scores[t, expected] / scores[t, expected].sum()
        np.testing.assert_allclose(routing.weights[t], weights, rtol=1e-5)
