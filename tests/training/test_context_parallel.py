"""Rows cut over devices: pretraining on packed documents equals one device on every mesh."""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest

from jgpt import models, sharding
from jgpt.config import ConfigError, MeshConfig, from_config_dict
from jgpt.models import order
from jgpt.objectives import make_objective
from jgpt.training.assembly import placed
from jgpt.training.setup import set_up
from jgpt.training.workdir import Workdir

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


quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""With a compiler that does not optimise: many small programs, each run once."""


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


@functools.cache
def on_one_device(config, *, packed):
    run = loss_and_gradients(config, make_objective(config))
    batch = make_batch(packed=packed, prefix=config.model.attention == "prefix")
    return quick_jit(run)(random_params(config.model), batch)


def compare(model, sizes, *, packed):
    """The worst relative error over loss and gradients, and the program."""
    config = make_config(**model)
    run = loss_and_gradients(config, make_objective(config))
    batch = make_batch(packed=packed, prefix=config.model.attention == "prefix")
    params = random_params(config.model)
    count = int(np.prod(list(sizes.values())))
    mesh = sharding.make_mesh(MeshConfig(**{"data": 1, **sizes}), jax.devices()[:count])
    places = sharding.shardings(mesh, models.logical_axes(config.model), params)
    with placed(mesh):
        arguments = jax.device_put(params, places), sharding.device_batch(mesh, batch)
        compiled = quick_jit(run).lower(*arguments).compile()
        got = compiled(*arguments)
    return worst(got, on_one_device(config, packed=packed)), compiled.as_text()


@pytest.mark.parametrize(
    ("mesh", "packed"), [*((mesh, True) for mesh in MESHES), ("context 4, data 2", False)]
)
def test_loss_and_gradients_are_those_of_one_device(mesh, packed):
    error, _ = compare({}, MESHES[mesh], packed=packed)
    assert error < 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_model(name):
    error, _ = compare(MODELS[name], MESHES["context 4, data 2"], packed=True)
    assert error < 1e-5


def test_log_probabilities_come_in_the_rows_own_order():
    config = make_config()
    batch, params = make_batch(packed=True), random_params(config.model)
    mesh = sharding.make_mesh(MeshConfig(data=1, context=4), jax.devices()[:4])

    def run(params, batch):
        return models.apply(config.model, {"params": params}, batch, output="token_logps")[0]

    want = quick_jit(run)(params, batch)
    with placed(mesh):
        got = quick_jit(run)(params, sharding.device_batch(mesh, batch))
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_the_order_is_zigzag_where_it_helps_and_only_there():
    model, batch = make_config().model, make_batch(packed=True)

    def devices(output="cross_entropy", training=True, **changes):
        return order.wanted(dataclasses.replace(model, **changes), batch, output, training=training)

    assert devices() == 0
    with placed(sharding.make_mesh(MeshConfig(data=2, context=4))):
        assert devices() == 4
        assert devices(output="logits") == 0
        assert devices(attention="bidirectional") == 0
        assert devices(attention_backend="blockwise") == 0
        assert devices(attention_dropout=0.1) == 0
        assert devices(attention_dropout=0.1, training=False) == 4
        batch = {n: x[:, :-4] for n, x in batch.items()}
        assert devices() == 0


def test_nothing_but_ids_and_weights_is_gathered_along_rows():
    _, text = compare({}, {"context": 4}, packed=True)
    gathers = re.findall(r"= (\w+)\[([\d,]*)\][^=]* all-gather\(", text)
    shapes = {(kind, tuple(map(int, shape.split(",")))) for kind, shape in gathers}
    assert shapes <= {("s32", (ROWS, LENGTH)), ("f32", (ROWS, LENGTH))}
    assert "collective-permute" in text
    assert "all-to-all" not in text


def test_rows_that_cannot_be_cut_are_refused(tmp_path):
    config = from_config_dict(
        {"mesh": {"data": 2, "context": 4}, "data": {"sequence_length": 100, "batch_size": 8}}
    )
    with pytest.raises(ConfigError, match=r"sequence_length \(100\) cannot be cut into 8 chunks"):
        set_up(config, Workdir(tmp_path))
