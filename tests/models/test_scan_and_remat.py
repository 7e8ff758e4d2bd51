"""Scanned, unrolled and rematerialised forms are the same function."""

import jax
import numpy as np
import pytest

from jgpt import models
from jgpt.config import MoEConfig
from jgpt.trees import leaves_by_path
from tests.models.tiny_models import random_tokens, random_variables, relative_error, tiny

MIXED = tiny(
    num_layers=5,
    num_leading_dense=1,
    attention_pattern=("local", "global"),
    window=4,
    ffn_pattern=("moe", "dense"),
    moe=MoEConfig(num_experts=4, router="sigmoid", selection_bias=True, dispatch="dense"),
    residual_dropout=0.2,
)
"""A leading dense layer, and two periods of two."""


def loss_and_gradients(config, variables, scan):
    batch = {"inputs": random_tokens(2, 8)}
    direction = np.random.default_rng(0).standard_normal(config.hidden_size).astype(np.float32)

    def loss(params):
        changed = variables | {"params": params}
        hidden, aux = models.apply(config, changed, batch, output="hidden", key=jax.random.key(5))
        return (hidden @ direction).sum(), aux.router

    params = models.restack(variables["params"], config, scan)
    (total, router), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return total, router, models.restack(gradients, config, False)


@pytest.fixture(scope="module")
def unrolled():
    variables = random_variables(MIXED)
    return variables, loss_and_gradients(MIXED, variables, scan=False)


@pytest.mark.parametrize("remat, scan", [("none", True), ("full", False), ("dots", True)])
def test_value_router_figures_and_gradients_are_the_same(unrolled, remat, scan):
    variables, (total, router, gradients) = unrolled
    config = MIXED.__class__(**MIXED.__dict__ | {"remat": remat})
    found, found_router, found_gradients = loss_and_gradients(config, variables, scan)
    assert relative_error(found, total) < 1e-5
    np.testing.assert_array_equal(found_router.assignments, router.assignments)
    assert router.assignments.shape == (models.num_moe_layers(MIXED), 4)
    expected = leaves_by_path(gradients)
    for path, leaf in leaves_by_path(found_gradients).items():
        if not path.startswith("head"):
            assert relative_error(leaf, expected[path]) < 1e-4, path


def test_layout_of_the_scanned_tree():
    config = MIXED.__class__(**MIXED.__dict__ | {"num_layers": 6})
    stacked = models.restack(random_variables(config)["params"], config, True)
    assert sorted(k for k in stacked if k.startswith("layers")) == [
        "layers",
        "layers_0",
        "layers_5",
    ]
    assert stacked["layers"]["block_0"]["attention"]["query"]["kernel"].shape == (2, 16, 16)
    assert "ffn" in stacked["layers"]["block_0"] and "moe" in stacked["layers"]["block_1"]
    assert MIXED.layer_kind(1) == ("global", "dense")


def test_restack_there_and_back_is_the_identity():
    params = random_variables(MIXED)["params"]
    back = models.restack(models.restack(params, MIXED, True), MIXED, False)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, back, params)


@pytest.mark.parametrize("platform, scan", [("cpu", "off"), ("tpu", "on"), ("gpu", "on")])
def test_auto_scans_everywhere_but_on_cpu(platform, scan):
    assert models.resolve_scan(MIXED, platform).scan_layers == scan
    for asked in ("on", "off"):
        assert models.resolve_scan(tiny(scan_layers=asked), platform).scan_layers == asked
