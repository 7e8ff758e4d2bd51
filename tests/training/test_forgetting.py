"""Elastic weight consolidation: the information, the penalty, and steps that are held by it."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgpt import models
from jgpt.config import ConfigError, MeshConfig
from jgpt.evals import chunks
from jgpt.peft import Adapters, merge
from jgpt.sharding import batch_parts, device_batch, make_mesh, shardings
from jgpt.training import fisher, forgetting
from jgpt.training.assembly import make_steps, placed
from jgpt.training.state import assembled
from jgpt.training.trainable import make_trainable
from jgpt.trees import leaves_by_path
from tests.training.test_meshes import DENSE, batch, config_of
from tests.training.toy_model import VOCAB, init, relative_error


def toy(variables, batch, *, output, key=None):
    """Three matrices; every token is predicted from the mean of all up to it."""
    p = variables["params"]
    hidden = p["embedding"]["table"][jnp.asarray(batch["inputs"])]
    seen = jnp.cumsum(hidden, 1) / jnp.arange(1, hidden.shape[1] + 1)[:, None]
    hidden = jnp.tanh(seen @ p["layers_0"]["kernel"] + p["layers_0"]["bias"])
    if output == "projection":
        return (hidden, p["head"]["kernel"], None), None
    logps = jax.nn.log_softmax(hidden @ p["head"]["kernel"])
    own = jnp.take_along_axis(logps, jnp.asarray(batch["targets"])[..., None], -1)[..., 0]
    return SimpleNamespace(total=-jnp.sum(own * batch["loss_weights"])), None


def toy_batch(seed, rows=3, length=4):
    """Targets that count weigh a half, which the information does not look at."""
    rng = np.random.default_rng(seed)
    return {
        "inputs": rng.integers(0, VOCAB, (rows, length), np.int32),
        "targets": rng.integers(0, VOCAB, (rows, length), np.int32),
        "loss_weights": np.where(rng.random((rows, length)) < 0.7, 0.5, 0).astype(np.float32),
    }


def slopes(params, data):
    """Gradients of log p of every token of the vocabulary at every place: [B, S, V, ...]."""

    def logps(params):
        (hidden, kernel, _), _ = toy({"params": params}, data, output="projection")
        return jax.nn.log_softmax(hidden @ kernel)

    return jax.jit(jax.jacobian(logps))(params), jnp.exp(logps(params))


def worst(found, wanted):
    return max(jax.tree.leaves(jax.tree.map(relative_error, found, wanted)))


@pytest.mark.parametrize("unit", fisher.UNITS)
def test_the_empirical_information_is_the_mean_of_squared_gradients_of_single_examples(unit):
    params, data = init(jax.random.key(1)), toy_batch(1)
    every, _ = slopes(params, data)
    counts = data["loss_weights"] > 0
    chosen = jax.nn.one_hot(data["targets"], VOCAB) * counts[..., None]
    if unit == "token":
        own = jax.tree.map(lambda g: jnp.einsum("bsv,bsv...->bs...", chosen, g), every)
        wanted = jax.tree.map(lambda g: jnp.sum(g**2, (0, 1)) / counts.sum(), own)
    else:
        own = jax.tree.map(lambda g: jnp.einsum("bsv,bsv...->b...", chosen, g), every)
        wanted = jax.tree.map(lambda g: jnp.sum(g**2, 0) / counts.any(1).sum(), own)
    found, facts = fisher.estimate(
        toy, {"params": params}, [data, data], jax.random.key(0), targets="data", unit=unit
    )
    assert facts["examples"] == 2 * (counts.sum() if unit == "token" else counts.any(1).sum())
    assert worst(found, wanted) < 1e-5


def test_sampled_targets_give_the_information_of_the_models_own_distribution():
    params, data = init(jax.random.key(2)), toy_batch(2)
    every, p = slopes(params, data)
    p = p * (data["loss_weights"] > 0)[..., None]
    exact = jax.tree.map(lambda g: jnp.einsum("bsv,bsv...->...", p, g**2) / p.sum(), every)
    many = {name: np.tile(x, (3000, 1)) for name, x in data.items()}
    found, _ = fisher.estimate(toy, {"params": params}, [many], jax.random.key(3))
    assert worst(found, exact) < 0.1  # 9,000 rows; the data's own targets are off by 0.7


def test_targets_that_are_drawn_do_not_depend_on_how_many_are_drawn_at_a_time(monkeypatch):
    params, data = init(jax.random.key(4)), toy_batch(4)
    draw = functools.partial(fisher.sample_targets, toy, {"params": params}, data)
    whole = draw(jax.random.key(1))
    assert np.any(whole != draw(jax.random.key(2)))
    small = functools.partial(chunks.by_chunks, chunk=6)
    monkeypatch.setattr(fisher, "by_chunks", small)
    np.testing.assert_array_equal(whole, draw(jax.random.key(1)))


@pytest.mark.slow
def test_a_mesh_and_scanned_layers_change_nothing_of_the_information():
    data, model = batch(), config_of(DENSE).model
    data = {name: x[:4] for name, x in data.items()}
    scanned = dataclasses.replace(model, scan_layers="on")
    params = models.init(model, jax.random.key(0))

    def information(model, parts, **options):
        apply = functools.partial(models.apply, model)
        find = functools.partial(fisher.squared_gradients, apply, by_token=False, parts=parts)
        return jax.jit(find, **options)

    one = information(model, 1)({"params": params}, data)
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2), jax.devices()[:4])
    places = shardings(mesh, models.logical_axes(scanned), models.abstract_params(scanned))
    with placed(mesh):
        stacked = jax.device_put(models.restack(params, scanned, True), places)
        find = information(scanned, batch_parts(mesh), out_shardings=places)
        many = jax.device_get(find({"params": stacked}, device_batch(mesh, data)))
    assert worst(models.restack(many, scanned, False), one) < 1e-4


def random_like(tree, seed):
    leaves, form = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return form.unflatten(
        [jax.random.uniform(k, x.shape, jnp.float32) for k, x in zip(keys, leaves, strict=True)]
    )


def test_the_penalty_is_zero_at_the_anchor_and_its_gradient_is_that_of_the_formula():
    params = init(jax.random.key(5))
    anchor = {"fisher": random_like(params, 6), "weights": random_like(params, 7)}
    assert forgetting.penalty(anchor, anchor["weights"], 3.0) == 0
    slope = jax.grad(lambda p: forgetting.penalty(anchor, p, 3.0))(params)
    wanted = jax.tree.map(
        lambda f, p, w: 3.0 * f * (p - w), anchor["fisher"], params, anchor["weights"]
    )
    assert worst(slope, wanted) < 1e-6


WEIGHT = 1e7
CASES = {
    "everything, cut up": ({"fsdp": 4}, {}),
    "top block, scanned": (
        {"data": 1},
        {
            "model": {"scan_layers": "on"},
            "optimizer": {"rules": ("layers_1/: rate=1", ".: freeze")},
        },
    ),
    "adapters": (
        {"data": 1},
        {"peft": {"method": "lora", "rank": 2, "targets": ("all-linear",)}},
    ),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Information of a model, written: (its folder, the parameters, the information)."""
    folder = tmp_path_factory.mktemp("anchor") / "fisher"
    params = models.init(config_of(DENSE).model, jax.random.key(9))
    information = random_like(params, 10)
    forgetting.write_anchor(folder, information, params, {})
    return folder, params, information


def held_config(folder, changes):
    changes = {**changes, "forgetting": {"ewc": str(folder), "ewc_weight": WEIGHT}}
    config = config_of(DENSE)
    sections = {
        name: dataclasses.replace(getattr(config, name), **values)
        for name, values in changes.items()
    }
    return dataclasses.replace(config, **sections)


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=pytest.mark.slow if "top" in c else ()) for c in CASES]
)
def test_a_step_is_held_to_the_anchor_whatever_it_trains(written, case):
    folder, params, information = written
    sizes, changes = CASES[case]
    config = held_config(folder, changes)
    scanned = config.model.scan_layers == "on"
    mesh = make_mesh(MeshConfig(**sizes), jax.devices()[: int(np.prod(list(sizes.values())))])

    def start(model, places, *_):
        own = models.restack(jax.tree.map(np.asarray, params), model, scanned)
        return {"params": jax.device_put(own, places)}

    def weights(state):
        """Those of the whole model, unrolled."""
        whole = assembled(state.params, state)
        if config.peft.method != "none":
            adapters = Adapters(whole["adapters"], whole["constants"])
            return merge(make_trainable(config).peft, whole["params"], adapters)
        return models.restack(whole["params"], config.model, False)

    with placed(mesh):
        init, _, step, _ = make_steps(config, mesh, start)
        state = init()
        trained = leaves_by_path(state.params)
        for path, leaf in leaves_by_path(state.anchor["fisher"]).items():
            if path in trained:
                assert leaf.sharding == trained[path].sharding
        state, metrics = step(state, device_batch(mesh, batch()))
        assert abs(metrics["penalty"]) < 1e-8, "at the anchor there is none"
        after = weights(jax.device_get(state))
        state, metrics = step(state, device_batch(mesh, batch()))
    slope = jax.tree.map(lambda f, p, w: WEIGHT * f * (p - w), information, after, params)
    moved = jax.tree.map(lambda s, p, w: np.sum(s * (p - w)) / 2, slope, after, params)
    assert relative_error(metrics["penalty"], sum(jax.tree.leaves(moved))) < 1e-4
    if case != "adapters":  # of which the gradient is another one
        norm = np.sqrt(sum(np.sum(np.square(s)) for s in jax.tree.leaves(slope)))
        assert relative_error(metrics["grad_norm"], norm) < 0.05


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"method": "prefix_tuning"}, "peft.method='prefix_tuning'"),
        ({"method": "lora", "quantize": "nf4"}, "peft.quantize='nf4'"),
    ],
)
def test_what_does_not_say_how_far_weights_have_moved_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        make_trainable(held_config("somewhere", {"peft": changes}))


def test_information_of_another_model_and_none_at_all_are_refused(written, tmp_path):
    model = dataclasses.replace(config_of(DENSE).model, intermediate_size=40)
    with pytest.raises(ConfigError, match="is of another model"):
        forgetting.read_anchor(str(written[0]), model, lambda p: p, None, {})
    with pytest.raises(ConfigError, match=r"python -m jgpt\.fisher"):
        forgetting.read_anchor(str(tmp_path), model, lambda p: p, None, {})
