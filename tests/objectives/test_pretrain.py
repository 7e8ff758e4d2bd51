"""Pretraining: cross-entropy sums, the z-loss, and what a mixture of experts adds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgpt import models
from jgpt.config import ConfigError, from_config_dict
from jgpt.layers.router import balance_loss, z_loss
from jgpt.objectives import OBJECTIVES, make_objective

VOCAB = 24


def config_of(z=0.0, balance=0.01, router_z=0.001, experts=4, dtype="float32"):
    return from_config_dict(
        {
            "model": {
                "vocab_size": VOCAB,
                "num_layers": 2,
                "hidden_size": 8,
                "num_heads": 2,
                "intermediate_size": 12,
                "ffn_pattern": ("dense", "moe") if experts else ("dense",),
                "dtype": dtype,
                "moe": {
                    "num_experts": experts,
                    "balance_coefficient": balance,
                    "z_coefficient": router_z,
                },
            },
            "objective": {"z_loss": z},
        }
    )


def batch_of(seed, rows=3, length=8):
    rng = np.random.default_rng(seed)
    batch = {
        name: rng.integers(0, VOCAB, (rows, length)).astype(np.int32)
        for name in ("inputs", "targets")
    }
    batch["loss_weights"] = rng.integers(0, 2, (rows, length)).astype(np.float32)
    return batch


fast_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def random_params(model):
    """Large enough for predictions far from uniform."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.5 * rng.normal(size=leaf.shape), leaf.dtype),
        models.abstract_params(model),
    )


@functools.cache
def evaluated(config, key=None):
    """(loss, logits) of random parameters on a batch."""
    params = random_params(config.model)
    apply = functools.partial(models.apply, config.model)
    batch = batch_of(0)

    @fast_jit
    def run(params):
        variables = {"params": params}
        return (
            make_objective(config).loss(apply, variables, batch, key),
            apply(variables, batch, output="logits")[0],
        )

    return run(params)


def test_loss_is_the_sum_of_weighted_cross_entropies():
    loss, logits = evaluated(config_of(z=0.3))
    batch, x = batch_of(0), np.asarray(logits, np.float64)
    lse = np.log(np.exp(x).sum(-1))
    nll = lse - np.take_along_axis(x, batch["targets"][..., None], -1)[..., 0]
    w = batch["loss_weights"]
    expected = {
        "loss": (w * nll).sum(),
        "z": (w * lse**2).sum(),
        "accuracy": (w * (x.argmax(-1) == batch["targets"])).sum(),
    }
    assert loss.metrics.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(loss.metrics[name][0], value, rtol=1e-4)
        assert loss.metrics[name][1] == w.sum()
    np.testing.assert_allclose(loss.total, (w * (nll + 0.3 * lse**2)).sum(), rtol=1e-4)
    assert loss.weight == w.sum()


def test_router_losses_are_added_with_their_coefficients():
    loss, _ = evaluated(config_of(balance=0.5, router_z=0.25))
    assert loss.router.assignments.shape == (1, 4)
    expected = 0.5 * balance_loss(loss.router) + 0.25 * z_loss(loss.router)
    assert expected > 0.4  # balance is at least about 1
    np.testing.assert_allclose(loss.extra, expected, rtol=1e-6)
    np.testing.assert_allclose(loss.objective, loss.total + loss.weight * expected, rtol=1e-6)


def test_a_dense_model_adds_nothing():
    loss, _ = evaluated(config_of(experts=0))
    assert loss.router is None and loss.extra == 0 and loss.objective == loss.total


def test_router_losses_reach_the_router():
    def gradient(balance, router_z):
        config = config_of(balance=balance, router_z=router_z)
        apply = functools.partial(models.apply, config.model)
        params = random_params(config.model)

        def minimised(params):
            loss = make_objective(config).loss(apply, {"params": params}, batch_of(1), None)
            return loss.extra

        return fast_jit(jax.grad(minimised))(params)["layers_1"]["moe"]["router"]["kernel"]

    assert jnp.abs(gradient(0.1, 0.0)).max() > 1e-7
    assert jnp.abs(gradient(0.0, 0.1)).max() > 1e-7
    assert jnp.abs(gradient(0.0, 0.0)).max() == 0


def test_sums_are_float32_when_the_model_computes_in_bfloat16():
    loss, _ = evaluated(config_of(dtype="bfloat16"))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(loss))


def test_prepare_hands_the_batch_on():
    batch = batch_of(0)
    prepared = make_objective(config_of()).prepare(None, None, batch, None)
    assert len(prepared) == 1 and prepared[0] is batch


def test_unknown_objectives_are_refused():
    with pytest.raises(ConfigError, match=r"objective.name is 'pretrian'; choose one of pretrain"):
        make_objective(from_config_dict({"objective": {"name": "pretrian"}}))
    assert "pretrain" in OBJECTIVES
