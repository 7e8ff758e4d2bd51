"""Weight gradients that travel in bfloat16: the same model, gradients a rounding away."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgpt import models, sharding
from jgpt.config import Config, ConfigError, TrainConfig, from_config_dict
from jgpt.training.assembly import placed
from jgpt.training.step import accumulate, in_gradient_dtype
from jgpt.trees import leaves_by_path
from tests.training.toy_model import relative_error

MODEL = {
    "vocab_size": 64,
    "num_layers": 2,
    "hidden_size": 32,
    "num_heads": 4,
    "intermediate_size": 64,
    "dtype": "bfloat16",
    "scan_layers": "on",
}


def config_of(**model):
    data = {"batch_size": 8, "sequence_length": 16}
    return from_config_dict({"model": {**MODEL, **model}, "data": data})


def batch_of(seed):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 64, (2, 8, 16), np.int32)
    weights = rng.uniform(0, 1, (8, 16)).astype(np.float32)
    return {"inputs": tokens[0], "targets": tokens[1], "loss_weights": weights}


def gradients(config, params, batch, dtype, mesh):
    """Summed gradients and loss, with the batch cut over eight devices."""

    def loss(params, batch, key):
        apply = functools.partial(models.apply, config.model)
        sums, _ = apply({"params": params}, batch, output="cross_entropy")
        return sums.total, sums.total

    def run(params, batch):
        weights = in_gradient_dtype(params, dtype)
        return accumulate(loss, weights, batch, jax.random.key(0), 1)

    with placed(mesh):
        batch = jax.device_put(batch, sharding.batch_sharding(mesh))
        return jax.jit(run)(params, batch)


def test_loss_is_equal_and_gradients_are_a_rounding_away():
    config = config_of()
    mesh = sharding.make_mesh(dataclasses.replace(config.mesh, data=2, fsdp=4))
    params, batch = models.init(config.model, jax.random.key(0)), batch_of(1)
    exact, loss = gradients(config, params, batch, "float32", mesh)
    rounded, same_loss = gradients(config, params, batch, "bfloat16", mesh)
    assert float(loss) == float(same_loss), "products use the same rounded weights"
    assert {leaf.dtype for leaf in jax.tree.leaves(rounded)} == {jnp.dtype("float32")}
    error = relative_error(rounded, exact)
    assert 0 < error < 2e-2


def test_kernels_alone_are_cast_and_only_where_there_is_something_to_add_up():
    config = config_of(ffn_pattern=("dense", "moe"), moe={"num_experts": 4})
    params = models.abstract_params(config.model)
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), params)
    assert in_gradient_dtype(params, "bfloat16") is params, "one device rounds nothing"
    mesh = sharding.make_mesh(dataclasses.replace(config.mesh, data=8))
    with placed(mesh):
        cast = leaves_by_path(
            jax.eval_shape(functools.partial(in_gradient_dtype, dtype="bfloat16"), params)
        )
    for path, leaf in cast.items():
        travels = path.endswith("/kernel") and "router" not in path
        assert leaf.dtype == ("bfloat16" if travels else "float32"), path


def test_a_float32_model_is_refused():
    with pytest.raises(ConfigError, match=r"model\.dtype"):
        Config(train=TrainConfig(gradient_dtype="bfloat16"))
