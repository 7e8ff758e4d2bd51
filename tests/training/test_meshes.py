"""A training loss over meshes of eight devices: packed data, loss and gradients of one device."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgpt import models, sharding
from jgpt.config import MeshConfig, from_config_dict
from jgpt.objectives import make_objective

ROWS, LENGTH, VOCABULARY = 8, 16, 32
DENSE = {"vocab_size": VOCABULARY, "num_layers": 2, "hidden_size": 16, "num_heads": 4,
         "num_kv_heads": 2, "intermediate_size": 32, "init_std": 0.2}  # fmt: skip
MOE = {
    **DENSE,
    "ffn_pattern": ("dense", "moe"),
    "moe": {"num_experts": 4, "top_k": 2, "intermediate_size": 8, "num_shared_experts": 1,
            "backend": "reference", "balance_coefficient": 0.3, "z_coefficient": 0.1},
}  # fmt: skip
CASES = [
    ("data 8", DENSE, {}),
    ("fsdp 8", DENSE, {"scan_layers": "on", "remat": "full"}),
    ("fsdp 4 tensor 2", DENSE, {}),
    ("data 2 fsdp 2 tensor 2", DENSE, {"remat": "full"}),
    ("fsdp 8", MOE, {}),
    ("data 2 expert 4", MOE, {"scan_layers": "on"}),
    ("fsdp 2 expert 4", MOE, {"scan_layers": "on", "remat": "full"}),
    ("fsdp 2 expert 2 tensor 2", MOE, {"remat": "dots"}),
]
EVERY_TIME = (2, 7)
"""Cases that are no `slow` tests: most of the time goes to the compiler."""


def config_of(model):
    return from_config_dict(
        {"model": model, "data": {"sequence_length": LENGTH, "batch_size": ROWS}}
    )


def batch():
    """Rows of two or three documents and padding, which weighs nothing."""
    rng = np.random.default_rng(0)
    ends = np.sort(rng.integers(1, LENGTH, (ROWS, 3)), axis=1)
    place = np.arange(LENGTH)
    segments = 1 + (place >= ends[:, :1]) + (place >= ends[:, 1:2])
    segments = np.where(place < ends[:, 2:], segments, 0)
    starts = np.concatenate([np.zeros((ROWS, 1), int), ends[:, :2]], axis=1)
    positions = place - np.take_along_axis(starts, np.maximum(segments - 1, 0), axis=1)
    return {
        "inputs": rng.integers(0, VOCABULARY, (ROWS, LENGTH), np.int32),
        "targets": rng.integers(0, VOCABULARY, (ROWS, LENGTH), np.int32),
        "loss_weights": (rng.random((ROWS, LENGTH)) * (segments > 0)).astype(np.float32),
        "positions": positions.astype(np.int32),
        "segment_ids": segments.astype(np.int32),
        "characters": np.ones((ROWS, LENGTH), np.int32),
    }


def loss_and_gradients(config):
    objective = make_objective(config)
    apply = functools.partial(models.apply, config.model)

    def total(params, batch):
        loss = objective.loss(apply, {"params": params}, batch, jax.random.key(0))
        return loss.objective / loss.weight, loss.metrics

    step = jax.value_and_grad(total, has_aux=True)
    return jax.jit(step, compiler_options={"xla_backend_optimization_level": 0})


def sizes(mesh):
    words = mesh.split()
    return {"data": 1} | dict(zip(words[::2], map(int, words[1::2])))


@pytest.mark.parametrize(
    ("mesh", "model", "how"),
    [
        pytest.param(
            *case,
            id=f"{'moe' if case[1] is MOE else 'dense'}, {case[0]}, {case[2]}",
            marks=() if i in EVERY_TIME else pytest.mark.slow,
        )
        for i, case in enumerate(CASES)
    ],
)
def test_loss_and_gradients_are_those_of_one_device(mesh, model, how):
    config = config_of({**model, "scan_layers": "off", **how})
    params = models.init(config.model, jax.random.key(0))
    (want_loss, _), want = loss_and_gradients(config)(params, batch())
    mesh = sharding.make_mesh(MeshConfig(**sizes(mesh)))
    places = sharding.shardings(mesh, models.logical_axes(config.model), params)
    sharding.check_use(mesh, places, params)
    with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.linen_rules()):
        arguments = jax.device_put(params, places), sharding.device_batch(mesh, batch())
        (loss, _), got = loss_and_gradients(config)(*arguments)
    np.testing.assert_allclose(loss, want_loss, rtol=1e-5)
    for (path, a), b in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(want), strict=True):
        error = jnp.linalg.norm(np.asarray(a) - np.asarray(b)) / jnp.linalg.norm(b)
        assert error < 1e-5, f"{jax.tree_util.keystr(path)}: {error}"
