"""The mixture-of-experts layer: dispatches against a plain float64 layer, drops, padding."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import meta

from jgpt.config import ConfigError, ModelConfig, MoEConfig
from jgpt.layers import dispatch
from jgpt.layers.moe import MoE, group_size
from jgpt.layers.router import (
    Routing,
    balance_loss,
    router_metrics,
    update_selection_bias,
    z_loss,
)

B, S, D, F, E, K = 2, 24, 16, 12, 4, 2
ROUTERS = {
    "softmax": {},
    "softmax as it is, scaled": {"renormalize": False, "routed_scale": 2.5},
    "sigmoid with bias and shared experts": {
        "router": "sigmoid",
        "selection_bias": True,
        "num_shared_experts": 2,
    },
}
DISPATCHES = {
    "dense": {"dispatch": "dense"},
    "dropless": {"dispatch": "dropless"},
    "capacity": {"dispatch": "capacity", "capacity_factor": E / K},
}


def model(dtype="float32", attention="causal", **moe):
    return ModelConfig(
        hidden_size=D,
        intermediate_size=F,
        init_std=0.3,
        dtype=dtype,
        attention=attention,
        ffn_pattern=("moe",),
        moe=MoEConfig(num_experts=E, top_k=K, **moe),
    )


@functools.cache
def initial(num_shared_experts=0):
    """Parameters, an input and an output gradient; the same for every dispatch."""
    config = model(dispatch="dense", num_shared_experts=num_shared_experts)
    x, dy = np.random.default_rng(0).standard_normal((2, B, S, D)).astype(np.float32)
    params = meta.unbox(jax.jit(MoE(config).init)(jax.random.key(1), x)["params"])
    return params, jnp.asarray(x), jnp.asarray(dy)


def run(config, params, x, dy, mask=None, bias=None):
    """(y, stats) and the gradients of sum(y * dy) + balance + z with respect to params and x."""
    mask = jnp.ones(x.shape[:2], bool) if mask is None else mask
    return _run(config, params, x, dy, mask, bias)


@functools.partial(jax.jit, static_argnames="config")
def _run(config, params, x, dy, mask, bias):
    def objective(params, x):
        y, stats = MoE(config).apply({"params": params}, x, token_mask=mask, selection_bias=bias)
        total = jnp.sum(y * dy) + 3.0 * balance_loss(stats) + 0.5 * z_loss(stats)
        return total, (y, stats)

    gradients, out = jax.grad(objective, argnums=(0, 1), has_aux=True)(params, x)
    return out, gradients


def plain_objective(params, x, dy, bias, moe):
    """The same in straightforward float64: all experts, a 0/1 choice, sums over tokens."""
    tokens = x.reshape(-1, D)
    logits = tokens @ params["router"]["kernel"]
    if moe.router == "sigmoid":
        scores = 1 / (1 + jnp.exp(-logits))
    else:
        scores = jnp.exp(logits) / jnp.sum(jnp.exp(logits), axis=1, keepdims=True)
    best = jnp.argsort(-(scores + bias), axis=1)[:, :K]
    chosen = jnp.sum(jnp.eye(E)[best], axis=1)
    weights = scores * chosen
    if moe.renormalize:
        weights = weights / jnp.sum(weights, axis=1, keepdims=True)

    def swiglu(gate, up, down):
        gated = tokens @ gate
        return (gated / (1 + jnp.exp(-gated)) * (tokens @ up)) @ down

    y = 0.0
    for e in range(E):
        kernels = [params[name]["kernel"][e] for name in ("gate", "up", "down")]
        y += moe.routed_scale * weights[:, e, None] * swiglu(*kernels)
    if moe.num_shared_experts:
        y += swiglu(*[params["shared"][name]["kernel"] for name in ("gate", "up", "down")])
    probabilities = scores / jnp.sum(scores, axis=1, keepdims=True)
    balance = E * jnp.sum(jnp.mean(chosen / K, axis=0) * jnp.mean(probabilities, axis=0))
    z = jnp.mean(jnp.log(jnp.sum(jnp.exp(logits), axis=1)) ** 2)
    return jnp.sum(y * dy.reshape(-1, D)) + 3.0 * balance + 0.5 * z, y.reshape(x.shape)


def relative_error(got, want):
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    return np.abs(got - want).max() / np.abs(want).max()


@pytest.mark.parametrize(
    ("router", "dispatch"),
    [(router, "dropless") for router in ROUTERS]
    + [("sigmoid with bias and shared experts", name) for name in ("dense", "capacity")],
)
def test_value_and_every_gradient_equal_a_plain_float64_layer(router, dispatch):
    config = model(**ROUTERS[router], **DISPATCHES[dispatch])
    params, x, dy = initial(config.moe.num_shared_experts)
    bias = jnp.array([0.3, -0.2, 0.0, 0.1]) if config.moe.selection_bias else None
    (y, stats), gradients = run(config, params, x, dy, None, bias)
    assert float(stats.dropped) == 0
    assert float(jnp.sum(stats.assignments)) == B * S * K
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: np.asarray(a, np.float64), (params, x, dy))
        objective = functools.partial(
            plain_objective,
            dy=wide[2],
            bias=0.0 if bias is None else np.asarray(bias, np.float64),
            moe=config.moe,
        )
        gradient = jax.jit(jax.grad(objective, argnums=(0, 1), has_aux=True))
        want, want_y = gradient(*wide[:2])
    assert relative_error(y, want_y) < 1e-5
    for (path, got), expected in zip(
        jax.tree.leaves_with_path(gradients), jax.tree.leaves(want), strict=True
    ):
        assert relative_error(got, expected) < 2e-5, jax.tree_util.keystr(path)


@pytest.mark.parametrize("dispatch", ["dense", "dropless", "capacity", "expert_choice"])
def test_padding_changes_nothing(dispatch):
    """Other contents of padding, or none: same outputs, figures and gradients; it comes out 0."""
    if dispatch == "expert_choice":
        config = model(router="expert_choice", attention="bidirectional")
    else:
        config = model(dispatch=dispatch, capacity_factor=0.5)
    params, x, dy = initial()
    lengths = jnp.array([S - 9, S])
    mask = jnp.arange(S) < lengths[:, None]
    dy = dy * mask[..., None]
    other = jnp.where(mask[..., None], x, 5.0 * x[:, ::-1] + 1.0)
    (y, stats), (dparams, dx) = run(config, params, x, dy, mask)
    (y2, stats2), (dparams2, dx2) = run(config, params, other, dy, mask)
    assert float(stats.tokens) == int(lengths.sum())
    if dispatch == "capacity":
        assert float(stats.dropped) > 0
    for got, want in zip(
        jax.tree.leaves((y2, stats2, dparams2, dx2)), jax.tree.leaves((y, stats, dparams, dx))
    ):
        np.testing.assert_allclose(got, want, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(y)[~np.asarray(mask)], 0)
    np.testing.assert_array_equal(np.asarray(dx)[~np.asarray(mask)], 0)


def test_slots_go_to_the_first_tokens_and_the_rest_is_counted():
    experts = jnp.array([[0, 1], [0, 2], [3, 3], [0, 1], [1, 0], [1, 0]])  # expert 3: nowhere
    routing = Routing(experts, 0.1 + jnp.arange(12.0).reshape(6, 2))
    slots, dropped = dispatch.assign_slots(routing, num_experts=3, group_size=6, num_slots=2)
    np.testing.assert_array_equal(slots.tokens[0], [[0, 1], [0, 3], [1, 6]])
    np.testing.assert_allclose(slots.weights[0], [[0.1, 2.1], [1.1, 7.1], [3.1, 0.0]], rtol=1e-6)
    assert float(dropped) == 5


def test_capacity_is_rounded_up_and_never_more_than_the_group():
    assert dispatch.slots_per_expert(256, 2, 8, 1.25) == 80
    assert dispatch.slots_per_expert(10, 2, 8, 1.25) == 4
    assert dispatch.slots_per_expert(10, 2, 2, 2.0) == 10
    assert dispatch.slots_per_expert(1, 2, 8, 1.0) == 1


def test_dropping_looks_neither_at_later_tokens_nor_at_other_rows():
    config = model(dispatch="capacity", capacity_factor=0.5)
    params, x, dy = initial()
    (y, stats), _ = run(config, params, x, dy)
    assert 0 < float(stats.dropped) < B * S * K
    half = S // 2
    (later, _), _ = run(config, params, x.at[:, half:].set(x[::-1, half:]), dy)
    np.testing.assert_allclose(later[:, :half], y[:, :half], atol=1e-6)
    (swapped, _), _ = run(config, params, x[::-1], dy)
    np.testing.assert_allclose(swapped[::-1], y, atol=1e-6)


def test_a_token_whose_experts_are_full_comes_out_zero():
    config = model(dispatch="capacity", capacity_factor=0.5)
    params, x, dy = initial()
    same = jnp.broadcast_to(x[:, :1], x.shape)
    (y, stats), _ = run(config, params, same, dy)
    slots = dispatch.slots_per_expert(S, K, E, 0.5)
    assert float(stats.dropped) == B * K * (S - slots)
    np.testing.assert_array_equal(y[:, slots:], 0)
    assert bool(jnp.all(jnp.any(y[:, :slots] != 0, axis=2)))


def test_groups_are_rows_unless_asked_and_must_fill_the_batch():
    assert group_size(0, length=24, num_tokens=48) == 24
    assert group_size(16, length=24, num_tokens=48) == 16
    assert group_size(256, length=1, num_tokens=8) == 8
    with pytest.raises(ConfigError, match=r"moe\.group_size \(7\)"):
        group_size(7, length=24, num_tokens=48)


def test_expert_choice_fills_every_expert_evenly_and_equals_dense():
    options = {"router": "expert_choice", "attention": "bidirectional"}
    params, x, dy = initial()
    (y, stats), gradients = run(model(**options), params, x, dy)
    np.testing.assert_array_equal(stats.assignments, B * S * K / E)
    assert float(router_metrics(stats)["max_load"]) == 1.0
    (want, _), expected = run(model(dispatch="dense", **options), params, x, dy)
    assert relative_error(y, want) < 1e-5
    for got, want in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected)):
        assert relative_error(got, want) < 1e-5
    routed = jax.nn.softmax(x[0] @ params["router"]["kernel"], axis=1)
    slots = dispatch.choose_tokens(routed[None], jnp.ones((1, S), bool), S * K // E)
    best = np.argsort(-np.asarray(routed).T, axis=1)[:, : S * K // E]
    np.testing.assert_array_equal(np.sort(slots.tokens[0], axis=1), np.sort(best, axis=1))


def test_bfloat16_layers_stay_bfloat16_and_near_float32():
    params, x, dy = initial()
    (want, _), _ = run(model(), params, x, dy)
    for name in ("dropless", "capacity"):
        config = model("bfloat16", **DISPATCHES[name])
        (y, stats), _ = run(config, params, x.astype(jnp.bfloat16), dy)
        assert y.dtype == jnp.bfloat16
        assert stats.probabilities.dtype == jnp.float32
        error = np.abs(np.asarray(y, np.float32) - np.asarray(want))
        assert np.median(error) < 0.02 * np.abs(np.asarray(want)).max()


def test_no_product_of_dropless_is_larger_than_a_block():
    """In the compiled program: `dense` multiplies E * T rows, `dropless` blocks of a few hundred.

    That the blocks' rows add up to what is needed: test_grouped_matmul.py.
    """

    def most_rows(dispatch):
        config = dataclasses.replace(model(dispatch=dispatch), hidden_size=32)
        x = jax.ShapeDtypeStruct((8, 256, 32), jnp.float32)
        params = jax.eval_shape(MoE(config).init, jax.random.key(0), x)
        layer = jax.jit(lambda params, x: MoE(config).apply(params, x)[0])
        text = layer.lower(params, x).compile().as_text()
        shapes = re.findall(r"= f32\[([\d,]+)\]\S* dot\(", text)
        sizes = [[int(n) for n in shape.split(",")] for shape in shapes]
        return max(int(np.prod(size[:-1])) for size in sizes if size[-1] != E)

    assert most_rows("dense") >= E * 8 * 256
    assert most_rows("dropless") <= 512


@jax.jit
def train(balance_coefficient, bias_rate):
    """Loads [E] at the end of a small regression whose router starts out preferring expert 0."""
    config = model(dispatch="dense", renormalize=False, selection_bias=True)
    config = dataclasses.replace(config, moe=dataclasses.replace(config.moe, top_k=1))
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (1, 64, D)).at[..., 0].set(1.0)
    target = jnp.tanh(x @ jax.random.normal(keys[1], (D, D)))
    params = meta.unbox(MoE(config).init(keys[2], x)["params"])
    kernel = 0.1 * params["router"]["kernel"]
    params["router"]["kernel"] = kernel.at[0].set(jnp.array([1.0, 0.0, 0.0, 0.0]))
    optimizer = optax.adam(0.02)

    def loss(params, bias):
        y, stats = MoE(config).apply({"params": params}, x, selection_bias=bias)
        error = jnp.mean((y - target) ** 2)
        return error + balance_coefficient * balance_loss(stats), (error, stats.assignments)

    def step(carry, _):
        params, state, bias = carry
        gradients, (error, assignments) = jax.grad(loss, has_aux=True)(params, bias)
        updates, state = optimizer.update(gradients, state)
        bias = update_selection_bias(bias, assignments, bias_rate)
        return (optax.apply_updates(params, updates), state, bias), (error, assignments)

    start = (params, optimizer.init(params), jnp.zeros(E))
    _, (errors, loads) = jax.lax.scan(step, start, length=150)
    last = jnp.mean(loads[-20:], axis=0)
    return last / jnp.sum(last), errors[-1] / errors[0]


def test_routing_collapses_without_balancing_and_not_with_either_kind():
    collapsed, learned = train(0.0, 0.0)
    assert collapsed.max() > 0.6
    assert collapsed.min() < 0.05
    assert learned < 0.7
    for balanced, learned in (train(0.3, 0.0), train(0.0, 0.02)):
        assert balanced.max() < 0.4
        assert learned < 0.7
