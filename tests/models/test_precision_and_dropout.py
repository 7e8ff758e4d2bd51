"""bfloat16 against float32, and what randomness there is in training."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgpt import models
from jgpt.models.transformer import layer_key
from tests.models.tiny_models import (
    forward,
    random_tokens,
    random_variables,
    relative_error,
    tiny,
    tiny_moe,
)

BATCH = {"inputs": random_tokens(2, 10)}


@pytest.mark.parametrize("overrides", [{}, {"norm": "layernorm", "ffn": "gelu"}, tiny_moe()])
def test_bfloat16_is_close_to_float32(overrides):
    config = tiny(num_layers=1, **overrides)
    variables = random_variables(config)
    half = dataclasses.replace(config, dtype="bfloat16")
    exact, _ = forward(config)(variables, BATCH)
    logits, _ = forward(half)(variables, BATCH)
    assert logits.dtype == jnp.float32
    assert 1e-4 < relative_error(logits, exact) < 0.05
    hidden = jax.eval_shape(lambda v: models.apply(half, v, BATCH, output="hidden")[0], variables)
    assert hidden.dtype == jnp.bfloat16


def test_gradients_of_a_bfloat16_model_are_those_of_the_float32_weights():
    config = tiny(num_layers=1, dtype="bfloat16")
    batch = BATCH | {"targets": BATCH["inputs"], "loss_weights": np.ones((2, 10), np.float32)}
    variables = random_variables(config)

    def loss(params):
        return models.apply(config, {"params": params}, batch, output="cross_entropy")[0].total

    gradients = jax.jit(jax.grad(loss))(variables["params"])
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize("rate", ["attention_dropout", "residual_dropout", "embedding_dropout"])
def test_dropout_acts_in_training_only_and_follows_its_key(rate):
    plain = tiny(num_layers=1)
    variables = random_variables(plain)
    config = dataclasses.replace(plain, **{rate: 0.3})
    run = forward(config, "hidden")
    one, again, other = (run(variables, BATCH, jax.random.key(k))[0] for k in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert relative_error(one, other) > 0.01
    evaluated, _ = forward(plain, "hidden")(variables, BATCH)
    assert relative_error(one, evaluated) > 0.01
    np.testing.assert_allclose(run(variables, BATCH)[0], evaluated, rtol=1e-6)


def test_every_layer_drops_other_entries():
    keys = [layer_key(jax.random.key(0), index) for index in range(-1, 8)]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == len(keys)
    assert layer_key(None, 3) is None


def test_router_jitter_follows_its_key():
    config = tiny(num_layers=1, **tiny_moe(jitter=0.3))
    variables = random_variables(config)
    run = forward(config, "hidden")
    one, again, other = (run(variables, BATCH, jax.random.key(k))[0] for k in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert relative_error(one, other) > 0.01
