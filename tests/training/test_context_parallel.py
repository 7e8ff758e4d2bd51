"""Rows cut over devices: pretraining on packed documents equals one device on every mesh."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgpt import models, sharding
from jgpt.config import MeshConfig, from_config_dict
from jgpt.objectives import make_objective
from jgpt.training.setup import placed

ROWS, LENGTH, VOCABULARY = 4, 32, 64
MODEL = {
    "vocab_size": VOCABULARY,
    "num_layers": 2,
    "hidden_size": 32,
    "num_heads": 4,
    "num_kv_heads": 2,
    "intermediate_size": 64,
    "dtype": "float32",
    "scan_layers": "on",
}
MESHES = {
    "context 2": {"context": 2},
    "context 4": {"context": 4},
    "context 8": {"context": 8},
    "context 4, data 2": {"context": 4, "data": 2},
    "context 2, fsdp 4": {"context": 2, "fsdp": 4},
    "context 4, tensor 2": {"context": 4, "tensor": 2},
    "context 2, fsdp 2, tensor 2": {"context": 2, "fsdp": 2, "tensor": 2},
}
MODELS = {
    "windows and sinks": {
        "attention_pattern": ("local", "global"),
        "window": 7,
        "attention_sinks": True,
        "learned_attention_scale": True,
    },
    "alibi": {"position": "alibi", "attention_softcap": 2.0},
    "mixture of experts": {
        "ffn_pattern": ("moe",),
        "moe": {"num_experts": 4, "top_k": 2, "dispatch": "dropless"},
    },
    "prefix": {"attention": "prefix"},
}


@pytest.fixture
def quick_jit():
    """`jax.jit` with a compiler that does not optimise: many small programs, each run once."""
    return functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def make_config(**model):
    return from_config_dict({"model": {**MODEL, **model}, "objective": {"z_loss": 1e-3}})


def make_batch(*, packed, prefix=False):
    """Rows of documents of unequal length with padding behind, or of one document each."""
    rng = np.random.default_rng(7)
    tokens = rng.integers(0, VOCABULARY, (ROWS, LENGTH + 1))
    batch = {
        "inputs": tokens[:, :-1].astype(np.int32),
        "targets": tokens[:, 1:].astype(np.int32),
        "loss_weights": rng.uniform(0.5, 1.5, (ROWS, LENGTH)).astype(np.float32),
    }
    if prefix:
        batch["prefix_lengths"] = rng.integers(1, LENGTH, ROWS).astype(np.int32)
    if not packed:
        return batch
    ids = np.sort(rng.integers(1, 4, (ROWS, LENGTH)), axis=1)
    starts = np.array([[np.argmax(row == i) for i in row] for row in ids])
    ids[:, -3:] = 0
    batch["segment_ids"] = ids.astype(np.int32)
    batch["positions"] = (np.arange(LENGTH) - starts).astype(np.int32)
    batch["loss_weights"] *= ids != 0
    return batch


@functools.cache
def random_params(config):
    """No zeros: scales and sinks have something to get wrong."""
    rng = np.random.default_rng(11)
    shapes = models.abstract_params(config)
    return jax.tree.map(
        lambda x: (rng.standard_normal(x.shape) / 6 + (len(x.shape) < 2)).astype(x.dtype), shapes
    )


def loss_and_gradients(config, objective):
    apply = functools.partial(models.apply, config.model)

    def run(params, batch):
        def loss(params):
            sums = objective.loss(apply, {"params": params}, batch, None)
            return sums.objective / sums.weight

        return jax.value_and_grad(loss)(params)

    return run


def worst(got, want):
    def error(got, want):
        return float(abs(np.asarray(got) - want).max() / max(abs(np.asarray(want)).max(), 1e-9))

    return max(jax.tree.leaves(jax.tree.map(error, got, want)))


def compare(jit, model, sizes, *, packed):
    """The worst relative error over loss and gradients, and the program."""
    config = make_config(**model)
    run = loss_and_gradients(config, make_objective(config))
    batch = make_batch(packed=packed, prefix=config.model.attention == "prefix")
    params = random_params(config.model)
    want = jit(run)(params, batch)
    count = int(np.prod(list(sizes.values())))
    mesh = sharding.make_mesh(MeshConfig(**{"data": 1, **sizes}), jax.devices()[:count])
    places = sharding.shardings(mesh, models.logical_axes(config.model), params)
    with placed(mesh):
        arguments = jax.device_put(params, places), sharding.device_batch(mesh, batch)
        compiled = jit(run).lower(*arguments).compile()
        got = compiled(*arguments)
    return worst(got, want), compiled.as_text()


@pytest.mark.parametrize("packed", [False, True], ids=["one document", "packed"])
@pytest.mark.parametrize("mesh", MESHES)
def test_loss_and_gradients_are_those_of_one_device(mesh, packed, quick_jit):
    error, _ = compare(quick_jit, {}, MESHES[mesh], packed=packed)
    assert error < 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_model(name, quick_jit):
    error, _ = compare(quick_jit, MODELS[name], MESHES["context 4, data 2"], packed=True)
    assert error < 1e-5
