"""The train state: where its leaves lie, and what the model is given of it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest

from jgpt import models
from jgpt.config import MeshConfig, ModelConfig, MoEConfig, OptimizerConfig
from jgpt.sharding import make_mesh, replicated, shardings
from jgpt.training.optimizer import make_optimizer, parameter_groups
from jgpt.training.state import (
    abstract_state,
    init_state,
    mirrored_parameter,
    state_shardings,
    variables,
)
from jgpt.trees import leaves_by_path

MODEL = ModelConfig(
    vocab_size=64, num_layers=4, hidden_size=16, num_heads=4, intermediate_size=32,
    ffn_pattern=("dense", "moe"), moe=MoEConfig(num_experts=4), attention_bias=True,
)  # fmt: skip


def test_mirrored_parameter_is_the_longest_match():
    parameters = {"head/kernel", "layers_0/head/kernel", "scale"}
    assert mirrored_parameter("0/mu/head/kernel", parameters) == "head/kernel"
    assert mirrored_parameter("mu/layers_0/head/kernel", parameters) == "layers_0/head/kernel"
    assert mirrored_parameter("1/nu/scale", parameters) == "scale"
    assert mirrored_parameter("1/nu/grandscale", parameters) is None
    assert mirrored_parameter("0/count", parameters) is None


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion", "muon"])
@pytest.mark.parametrize("scan_layers", ["on", "off"])
def test_moments_lie_where_their_parameters_lie(name, scan_layers):
    model = dataclasses.replace(MODEL, scan_layers=scan_layers)
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, expert=2, tensor=2))
    params = models.abstract_params(model)
    optimizer = make_optimizer(OptimizerConfig(name=name), 10, params)
    fresh = functools.partial(
        init_state, functools.partial(models.init, model), optimizer, ema=True,
        selection_bias_shape=(2, 4),
    )  # fmt: skip
    state = jax.eval_shape(fresh, jax.random.key(0))
    places = shardings(mesh, models.logical_axes(model), params)
    placed = state_shardings(state, places, replicated(mesh))
    assert placed.params == places and placed.ema == places
    assert placed.selection_bias == placed.step == replicated(mesh)
    cut = {path for path, place in leaves_by_path(places).items() if place != replicated(mesh)}
    matrices = {
        p for p, group in leaves_by_path(parameter_groups(params)).items() if group == "matrix"
    }
    mirrored = [
        path for path, place in leaves_by_path(placed.opt_state).items()
        if place != replicated(mesh)
    ]  # fmt: skip
    expected = {
        "adamw": 2 * len(cut),
        "lion": len(cut),
        "adafactor": len(cut),  # nothing here is large enough to be factored
        "muon": 2 * len(cut) - len(cut & matrices),
    }[name]
    assert len(mirrored) == expected and expected > 10
    shapes = leaves_by_path(state.opt_state)
    for path, place in leaves_by_path(placed.opt_state).items():
        place.shard_shape(shapes[path].shape)  # raises where the mesh does not divide it


def small_state(**kwargs):
    def init(key):
        return {"kernel": jax.random.normal(key, (3, 3), jnp.bfloat16), "bias": jnp.zeros(3)}

    optimizer = make_optimizer(OptimizerConfig(), 1, jax.eval_shape(init, jax.random.key(0)))
    return init_state(init, optimizer, jax.random.key(0), **kwargs)


def test_the_model_is_given_the_selection_bias_only_where_there_is_one():
    plain, full = small_state(), small_state(selection_bias_shape=(2, 4), ema=True)
    assert variables(plain).keys() == {"params"}
    assert variables(full).keys() == {"params", "selection_bias"}
    assert full.selection_bias.shape == (2, 4)
    assert variables(full)["params"] is full.params
    assert variables(full, use_ema=True)["params"] is full.ema
    assert variables(plain, use_ema=True)["params"] is plain.params
    assert full.ema["kernel"].dtype == jnp.float32
    assert full.params["kernel"].dtype == jnp.bfloat16


def test_no_two_leaves_of_a_fresh_state_share_a_buffer():
    """All of them are donated, and a buffer can be donated only once."""
    leaves = jax.tree.leaves(small_state(ema=True))
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)


def test_the_abstract_state_has_shapes_types_and_places():
    state = small_state()
    here = jax.sharding.SingleDeviceSharding(jax.devices()[1])
    for abstract in (
        abstract_state(state, here),
        abstract_state(state, jax.tree.map(lambda _: here, state)),
    ):
        for leaf, x in zip(jax.tree.leaves(abstract), jax.tree.leaves(state), strict=True):
            assert (leaf.shape, leaf.dtype, leaf.sharding) == (x.shape, x.dtype, here)
