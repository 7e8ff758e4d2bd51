"""The training step: sums, skipping, averages, metrics, sharding."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jgpt.config import MeshConfig
from jgpt.objectives import Loss, Objective, make_objective, prepare_nothing
from jgpt.sharding import batch_sharding, make_mesh, replicated
from jgpt.training.state import state_shardings, variables
from jgpt.training.step import (
    accumulate,
    compile_step,
    make_eval_step,
    make_train_step,
    moe_metrics,
    moving_average,
)
from tests.training.toy_model import (
    apply,
    assert_trees_equal,
    batch_of,
    config_of,
    fast_jit,
    fresh_state,
    initial_params,
    make,
    relative_error,
    router_stats,
)

KEY = jax.random.key(0)


def token_loss(params, batch, key):
    sums, _ = apply({"params": params}, batch, output="cross_entropy")
    return sums.total, {"total": sums.total, "weight": sums.weight}


@pytest.mark.parametrize("microbatches", [2, 8])
def test_accumulated_sums_equal_the_full_batch_with_unequal_masks(microbatches):
    params, batch = initial_params(0), batch_of(1)
    run = fast_jit(functools.partial(accumulate, token_loss), static_argnums=3)
    full, full_sums = run(params, batch, KEY, 1)
    gradients, sums = run(params, batch, KEY, microbatches)
    assert relative_error(gradients, full) < 1e-6
    assert relative_error(sums, full_sums) < 1e-6


def test_mean_of_means_would_be_wrong_here():
    """The batch of the test above does tell sums and one division from a mean of means."""
    params, batch = initial_params(0), batch_of(1)
    gradient = fast_jit(jax.grad(lambda p, b: token_loss(p, b, None)[0] / b["loss_weights"].sum()))
    parts = [gradient(params, {k: v[i::4] for k, v in batch.items()}) for i in range(4)]
    mean_of_means = jax.tree.map(lambda *g: sum(g) / 4, *parts)
    assert relative_error(mean_of_means, gradient(params, batch)) > 0.1


def test_a_step_over_microbatches_equals_a_step_over_the_batch():
    results = []
    for microbatches in (1, 4):
        config = config_of(train={"microbatches": microbatches}, objective={"z_loss": 0.01})
        step, state = make(config)
        for i in range(3):
            state, metrics = step(state, batch_of(i))
        results.append((state.params, metrics))
    assert relative_error(results[1][0], results[0][0]) < 1e-5
    assert relative_error(results[1][1], results[0][1]) < 1e-5


def test_microbatches_are_rows_that_lie_on_one_device():
    seen = []

    def loss(params, batch, key):
        seen.append(batch["x"].shape)
        return jnp.sum(params * batch["x"]), batch["x"]

    batch = {"x": jnp.arange(8.0)}
    _, total = accumulate(loss, jnp.ones(()), batch, KEY, 4)
    assert seen[0] == (2,)
    np.testing.assert_array_equal(total, [0 + 1 + 2 + 3, 4 + 5 + 6 + 7])


def test_each_step_and_microbatch_draws_its_own_random_numbers():
    drawn = []

    def noisy(apply, variables, batch, key):
        noise = jax.random.uniform(key)
        total = jnp.sum(variables["params"]["head"]["kernel"]) * 0
        one = jnp.ones(())
        return Loss(total, one, {"noise": (noise, one), "square": (noise**2, one)}, 0 * one)

    config = config_of(train={"microbatches": 2})
    step, state = make(config, objective=Objective(noisy, prepare_nothing))
    for i in range(4):
        mean, square = (float(step(state, batch_of(i))[1][name]) for name in ("noise", "square"))
        assert square - mean**2 > 1e-6  # two microbatches, two numbers
        assert float(step(state, batch_of(9))[1]["noise"]) == mean  # the batch has no part in it
        drawn.append(mean)
        state, _ = step(state, batch_of(i))
    assert len(set(drawn)) == 4


@pytest.mark.parametrize("bad", [np.inf, np.nan, 1e30, "no targets"])
def test_a_non_finite_step_changes_nothing_but_the_counters(bad):
    """1e30 gives a finite loss whose gradient's norm is infinite."""

    def breakable(variables, batch, **kwargs):
        sums, aux = apply(variables, batch, **kwargs)
        broken = jnp.sum(variables["params"]["embedding"]["table"]) * batch["broken"].max()
        return dataclasses.replace(sums, total=sums.total + broken), aux

    good = batch_of(0) | {"broken": np.zeros(8, np.float32)}
    broken = {
        **good,
        "broken": np.full(8, 0 if bad == "no targets" else bad, np.float32),
        "loss_weights": good["loss_weights"] * (bad != "no targets"),
    }
    step, state = make(config_of(optimizer={"ema_decay": 0.9}), breakable)
    before, _ = step(state, good)
    state = before
    for i in range(1, 4):
        state, metrics = step(state, broken)
        assert metrics["skipped"] == metrics["consecutive_skipped"] == i
        assert metrics["update_norm"] == 0
    counters = ("step", "skipped", "consecutive_skipped")
    unchanged = {name: getattr(before, name) for name in counters}
    assert_trees_equal(dataclasses.replace(state, **unchanged), before)
    assert state.step == before.step + 3
    state, metrics = step(state, good)
    assert metrics["skipped"] == 3 and metrics["consecutive_skipped"] == 0
    assert relative_error(state.params, before.params) > 0


def test_a_skipped_step_does_not_advance_the_learning_rate():
    step, state = make(config_of(optimizer={"warmup_steps": 10}))
    masked = batch_of(1) | {"loss_weights": np.zeros((8, 6), np.float32)}
    rates = [float(step(state, batch_of(0))[1]["learning_rate"])]
    state, _ = step(state, batch_of(0))
    state, _ = step(state, masked)
    rates.append(float(step(state, batch_of(2))[1]["learning_rate"]))
    np.testing.assert_allclose(rates, [0.001, 0.002], rtol=1e-6)


def test_metrics_are_what_they_say():
    config = config_of(objective={"z_loss": 0.1}, optimizer={"clip_norm": 0.01})
    step, state = make(config)
    batch = batch_of(2)
    new_state, metrics = step(state, batch)

    def loss(params):
        sums, _ = apply({"params": params}, batch, output="cross_entropy", z_loss=0.1)
        return sums.total, sums

    gradients, sums = fast_jit(jax.grad(loss, has_aux=True))(state.params)
    gradients = jax.tree.map(lambda g: g / sums.weight, gradients)
    change = jax.tree.map(jnp.subtract, new_state.params, state.params)
    expected = {
        "loss": sums.nll / sums.weight,
        "accuracy": sums.correct / sums.weight,
        "z": sums.z / sums.weight,
        "total": sums.total / sums.weight,
        "tokens": sums.weight,
        "grad_norm": optax.global_norm(gradients),
        "update_norm": optax.global_norm(change),
        "param_norm": optax.global_norm(new_state.params),
        "learning_rate": 0.005,
        "skipped": 0,
        "consecutive_skipped": 0,
    }
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        assert metrics[name].dtype == jnp.float32 and metrics[name].shape == ()
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, err_msg=name)
    assert metrics["grad_norm"] > 0.01  # before clipping


def test_what_is_no_sum_is_averaged_by_weight():
    def loss(apply, variables, batch, key):
        x = variables["params"]["head"]["kernel"][0, 0]
        weight = batch["loss_weights"].sum()
        return Loss(0 * x, weight, {}, x * batch["extra"].sum())

    extra, weights = np.array([1.0, 5.0, 2.0, 7.0]), np.array([1.0, 2.0, 3.0, 10.0])
    batch = {"extra": extra, "loss_weights": weights}
    config = config_of(data={"batch_size": 4, "virtual_shards": 4}, train={"microbatches": 4})
    step, state = make(config, objective=Objective(loss, prepare_nothing))
    _, metrics = step(state, batch)
    np.testing.assert_allclose(
        metrics["grad_norm"], np.sum(extra * weights) / weights.sum(), rtol=1e-6
    )


def test_the_moving_average_follows_its_recurrence():
    params = [{"a": jnp.asarray(x)} for x in np.random.default_rng(0).normal(size=(6, 4))]
    ema, expected = params[0], np.asarray(params[0]["a"])
    for count, p in enumerate(params):
        ema = moving_average(ema, p, jnp.asarray(count), 0.3)
        decay = min(0.3, (1 + count) / (10 + count))
        expected = decay * expected + (1 - decay) * np.asarray(p["a"])
    np.testing.assert_allclose(ema["a"], expected, rtol=1e-5)
    assert moving_average({}, params[0], jnp.asarray(0), 0.3) == {}


def test_the_averaged_weights_are_part_of_the_step():
    step, state = make(config_of(optimizer={"ema_decay": 0.05}))
    new_state, _ = step(state, batch_of(0))
    expected = jax.tree.map(lambda e, p: 0.05 * e + 0.95 * p, state.ema, new_state.params)
    assert relative_error(new_state.ema, expected) < 1e-6
    assert variables(new_state, use_ema=True)["params"] is new_state.ema
    assert variables(new_state)["params"] is new_state.params


def test_selection_bias_is_moved_by_the_whole_batch():
    """Once per step from the sum over microbatches, not once per microbatch."""

    def routed(variables, batch, **kwargs):
        counts = batch["inputs"].sum(-1) * jnp.asarray([[1.0], [0.0]])  # [L=2, rows]
        assignments = jnp.stack([counts.sum(-1), jnp.full(2, 5.0)], axis=-1)
        return apply(variables, batch, router=router_stats(assignments), **kwargs)

    config = config_of(train={"microbatches": 4}, model={"moe": {"bias_update_rate": 0.5}})
    step, state = make(config, routed)
    state = dataclasses.replace(state, selection_bias=jnp.zeros((2, 2)))
    batch = batch_of(0)
    state, metrics = step(state, batch)
    np.testing.assert_array_equal(state.selection_bias, [[-0.5, 0.5], [0.5, -0.5]])
    np.testing.assert_array_equal(
        metrics["router_assignments"], [[batch["inputs"].sum(), 20], [0, 20]]
    )


def test_router_metrics_are_given_over_layers_and_per_layer():
    metrics = moe_metrics(router_stats([[6, 6], [12, 0]]))
    np.testing.assert_allclose(metrics["moe_layers/balance"], [1.0, 2.0], rtol=1e-6)
    np.testing.assert_allclose(metrics["moe/balance"], 1.5, rtol=1e-6)
    np.testing.assert_allclose(metrics["moe/max_load"], 2.0, rtol=1e-6)
    np.testing.assert_allclose(metrics["moe/dropped"], 0.25, rtol=1e-6)
    assert moe_metrics(None) == {}


def test_eight_devices_take_the_same_step_as_one():
    config = config_of(train={"microbatches": 2}, data={"batch_size": 16, "virtual_shards": 16})
    alone, single = make(config)
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    cut = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    places = jax.tree.map(lambda p: cut if p.shape[0] % 4 == 0 else replicated(mesh), single.params)
    shardings = state_shardings(single, places, replicated(mesh))
    optimizer, state = fresh_state(config)
    state = jax.device_put(state, shardings)
    step = make_train_step(make_objective(config), apply, optimizer, config)
    compiled = compile_step(step, shardings, batch_sharding(mesh))
    for i in range(3):
        batch = batch_of(i, rows=16)
        donated = state
        state, metrics = compiled(state, jax.device_put(batch, batch_sharding(mesh)))
        single, expected = alone(single, batch)
        assert donated.params["head"]["kernel"].is_deleted()
    assert relative_error(state.params, single.params) < 1e-5
    assert relative_error(metrics, expected) < 1e-5
    kernel = state.params["layers_0"]["kernel"]
    assert kernel.sharding == cut
    assert jax.tree.map(lambda x: x.sharding, state) == shardings


def test_sums_of_evaluation_batches_add_up():
    params = initial_params(0)
    evaluate = fast_jit(make_eval_step(apply))
    whole = batch_of(4)
    parts = [
        evaluate({"params": params}, {k: v[i : i + 2] for k, v in whole.items()})
        for i in range(0, 8, 2)
    ]
    together = jax.tree.map(lambda *x: sum(x), *parts)
    expected = evaluate({"params": params}, whole)
    assert relative_error(together, expected) < 1e-6
    counted = whole["characters"][whole["loss_weights"] > 0].sum()
    assert 0 < float(expected["characters"]) == counted < whole["characters"].sum()


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion", "muon"])
def test_every_optimizer_learns_a_batch_by_heart(name):
    rate = {"adamw": 0.02, "adafactor": 0.2, "lion": 0.01, "muon": 0.02}[name]
    config = config_of(
        optimizer={"name": name, "learning_rate": rate, "muon_learning_rate": 0.05},
        train={"steps": 120},
    )
    step, state = make(config, donate=True)
    batch = batch_of(0)
    batch["targets"] = (batch["inputs"] * 5 + 3) % 13
    for _ in range(120):
        state, metrics = step(state, batch)
    assert metrics["loss"] < 0.3
