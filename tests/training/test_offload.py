"""Optimizer state in host memory: the same updates, and it stays there."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgpt.config import CheckpointConfig, Config, ConfigError, MeshConfig, OptimizerConfig
from jgpt.sharding import make_mesh, replicated, shardings
from jgpt.training.checkpoints import Checkpoints
from jgpt.training.offload import offloaded, on_host
from jgpt.training.optimizer import make_optimizer
from jgpt.training.state import abstract_state, init_state, state_shardings
from tests.training.toy_model import assert_trees_equal

AXES = {"layers_0": {"kernel": ("embed", "mlp"), "bias": ("mlp",)}}


def draw(key):
    kernel, bias = jax.random.split(key)
    return {
        "layers_0": {
            "kernel": jax.random.normal(kernel, (8, 4)),
            "bias": jax.random.normal(bias, 4),
        }
    }


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_updates_are_those_of_state_on_the_device_and_the_state_stays_on_the_host(name):
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    optimizer = make_optimizer(
        OptimizerConfig(name=name), 10, jax.eval_shape(draw, jax.random.key(0))
    )
    fresh = functools.partial(init_state, draw, optimizer)
    shapes = jax.eval_shape(fresh, jax.random.key(0))
    of_params = shardings(mesh, AXES, shapes.params)
    device = state_shardings(shapes, of_params, replicated(mesh)).opt_state
    host = on_host(mesh, device)
    kinds = {place.memory_kind for place in jax.tree.leaves(host) if any(place.spec)}
    assert kinds == {"pinned_host"}

    def run(optimizer, places):
        def step(params, state, key):
            def update(params, state):
                updates, state = optimizer.update(draw(key), state, params)
                return jax.tree.map(jnp.add, params, updates), state

            return jax.lax.cond(jnp.array(True), update, lambda *same: same, params, state)

        out = (of_params, places)
        step = jax.jit(step, in_shardings=(*out, None), out_shardings=out, donate_argnums=(0, 1))
        state = jax.jit(fresh, out_shardings=None)(jax.random.key(0))
        params = jax.device_put(state.params, of_params)
        moments = jax.device_put(state.opt_state, places)
        for i in range(3):
            params, moments = step(params, moments, jax.random.key(i + 1))
        assert jax.tree.map(lambda x: x.sharding, moments) == places
        return params, moments

    want = run(optimizer, device)
    got = run(offloaded(optimizer, host), host)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_checkpoint_gives_state_back_to_the_memory_it_came_from(tmp_path):
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    optimizer = make_optimizer(OptimizerConfig(), 10, jax.eval_shape(draw, jax.random.key(0)))
    shapes = jax.eval_shape(functools.partial(init_state, draw, optimizer), jax.random.key(0))
    places = state_shardings(shapes, shardings(mesh, AXES, shapes.params), replicated(mesh))
    places = dataclasses.replace(places, opt_state=on_host(mesh, places.opt_state))
    rng = np.random.default_rng(0)
    state = jax.tree.map(
        lambda leaf, place: jax.device_put(rng.normal(size=leaf.shape).astype(leaf.dtype), place),
        shapes,
        places,
    )
    keeper, config = Checkpoints(tmp_path, CheckpointConfig(), ""), Config()
    keeper.save(state, {}, config, {}, 1)
    keeper.wait()
    restored = keeper.restore_latest(abstract_state(shapes, places), config).state
    keeper.close()
    assert_trees_equal(restored, state)
    assert jax.tree.map(lambda leaf: leaf.sharding, restored) == places


def test_a_platform_without_host_memory_is_refused():
    kind = types.SimpleNamespace(kind="device")
    device = types.SimpleNamespace(device_kind="abacus", addressable_memories=lambda: [kind])
    mesh = types.SimpleNamespace(local_devices=[device])
    with pytest.raises(ConfigError, match=r"optimizer\.offload: abacus has no pinned_host memory"):
        on_host(mesh, {})
