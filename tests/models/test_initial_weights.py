"""Names, statistics and independence of initial weights."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jgpt import models
from jgpt.config import ConfigError
from jgpt.sharding import RULES
from jgpt.trees import leaves_by_path
from tests.models.tiny_models import tiny, tiny_moe

WIDE = tiny(hidden_size=64, intermediate_size=96, vocab_size=200, head_bias=True, **tiny_moe())


def standard_deviations(config):
    params = models.init(config, jax.random.key(3))
    return {path: float(np.std(leaf)) for path, leaf in leaves_by_path(params).items()}


def test_standard_deviations_are_the_stated_ones():
    residual = 0.02 / np.sqrt(2 * WIDE.num_layers)
    for path, std in standard_deviations(WIDE).items():
        if path.endswith(("scale", "bias")):
            assert std == 0.0, path
        else:
            writes = "output/" in path or "down/" in path
            rows = 0.15 if "router" in path else 0.08
            assert std == pytest.approx(residual if writes else 0.02, rel=rows), path


def test_norms_start_at_the_identity_and_biases_at_zero():
    params = leaves_by_path(models.init(WIDE, jax.random.key(0)))
    assert (params["layers_0/attention_norm/scale"] == 1).all()
    assert (params["head/bias"] == 0).all()
    offset = tiny(norm_unit_offset=True)
    assert (models.init(offset, jax.random.key(0))["final_norm"]["scale"] == 0).all()


def test_mup_scales_hidden_matrices_only():
    plain = standard_deviations(WIDE)
    mup = dataclasses.replace(WIDE, mup_base_width=16)
    ratio = 0.25
    for path, std in standard_deviations(mup).items():
        hidden = path.startswith("layers") and path.endswith("kernel")
        assert std == pytest.approx(plain[path] * (ratio**0.5 if hidden else 1.0), rel=1e-5), path
    scales = models.learning_rate_scales(mup, models.abstract_params(mup))
    for path, scale in leaves_by_path(scales).items():
        hidden = path.startswith("layers") and path.endswith("kernel")
        assert scale == (ratio if hidden else 1.0), path


def test_a_parameter_depends_on_the_key_and_its_name_alone():
    one, same = (models.init(tiny(), jax.random.key(0)) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, one, same)
    deeper = models.init(
        tiny(num_layers=3, head_bias=True, scale_residual_init=False), jax.random.key(0)
    )
    for path in ("embedding/table", "head/kernel", "layers_1/attention/query/kernel"):
        np.testing.assert_array_equal(leaves_by_path(one)[path], leaves_by_path(deeper)[path])
    other = leaves_by_path(models.init(tiny(), jax.random.key(1)))
    drawn = [leaf for path, leaf in leaves_by_path(one).items() if path.endswith("kernel")]
    drawn += [leaf for path, leaf in other.items() if path.endswith("kernel")]
    assert len({float(leaf[0, 0]) for leaf in drawn}) == len(drawn), "each draws its own numbers"


def test_scanned_weights_are_the_unrolled_ones_stacked():
    config = tiny(num_layers=3, attention_pattern=("local", "global"), window=4)
    scanned = models.init(dataclasses.replace(config, scan_layers="on"), jax.random.key(0))
    unrolled = models.init(config, jax.random.key(0))
    stacked = models.restack(unrolled, config, True)
    assert jax.tree.structure(stacked) == jax.tree.structure(scanned)
    jax.tree.map(np.testing.assert_array_equal, scanned, stacked)


def test_the_mesh_does_not_change_initial_weights():
    config = tiny()
    mesh = jax.make_mesh((len(jax.devices()),), ("all",))
    sharding = NamedSharding(mesh, PartitionSpec(None, "all"))
    table = jax.jit(
        lambda key: models.init(config, key)["embedding"]["table"], out_shardings=sharding
    )(jax.random.key(0))
    np.testing.assert_array_equal(
        table, models.init(config, jax.random.key(0))["embedding"]["table"]
    )


@pytest.mark.parametrize("scan", ["on", "off"])
def test_every_parameter_names_axes_that_the_sharding_table_knows(scan):
    config = tiny(
        scan_layers=scan,
        position="relative",
        learned_attention_scale=True,
        attention_sinks=True,
        attention_bias=True,
        norm="layernorm",
        **tiny_moe(num_shared_experts=1),
    )
    shapes = leaves_by_path(models.abstract_params(config))
    axes = jax.tree_util.tree_flatten_with_path(
        models.logical_axes(config), is_leaf=lambda x: isinstance(x, tuple)
    )[0]
    assert len(axes) == len(shapes)
    for (_, names), (path, leaf) in zip(axes, shapes.items()):
        assert len(names) == len(leaf.shape), path
        assert set(names) <= {*RULES, None}, path


def test_abstract_parameters_have_the_shapes_of_real_ones():
    config = tiny(param_dtype="bfloat16", **tiny_moe())
    abstract = models.abstract_params(config)
    real = models.init(config, jax.random.key(0))
    assert jax.tree.structure(abstract) == jax.tree.structure(real)
    assert all(
        a.shape == r.shape and a.dtype == r.dtype == "bfloat16"
        for a, r in zip(jax.tree.leaves(abstract), jax.tree.leaves(real))
    )


def test_a_vocabulary_is_required():
    with pytest.raises(ConfigError, match=r"model\.vocab_size"):
        models.init(tiny(vocab_size=0), jax.random.key(0))
