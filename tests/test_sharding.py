"""The mesh and the table from logical to mesh axes: placement, and every refusal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jgpt import models, sharding
from jgpt.config import ConfigError, LatentConfig, MeshConfig, ModelConfig, MoEConfig


def test_mesh_fills_the_free_axis_with_the_rest_of_the_devices():
    assert sharding.mesh_sizes(MeshConfig(data=-1, fsdp=2, expert=2), 8)["data"] == 2
    assert sharding.mesh_sizes(MeshConfig(data=2, fsdp=-1), 8)["fsdp"] == 4


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MeshConfig(data=3), "does not fit 8 devices"),
        (MeshConfig(data=-1, fsdp=-1), "only one axis"),
        (MeshConfig(data=-1, tensor=3), "does not fit 8 devices"),
        (MeshConfig(data=0), "mesh.data is 0"),
    ],
)
def test_impossible_meshes_are_refused_by_name(config, message):
    with pytest.raises(ConfigError, match=message):
        sharding.mesh_sizes(config, 8)


def test_parameters_are_cut_by_the_table():
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=2, tensor=4))
    shapes = {"a": {"kernel": jax.ShapeDtypeStruct((8, 16), jnp.float32)}, "b": jnp.zeros(3)}
    axes = {"a": {"kernel": ("embed", "mlp")}, "b": ("norm",)}
    placed = sharding.shardings(mesh, axes, shapes)
    assert placed["a"]["kernel"].spec == PartitionSpec("fsdp", "tensor")
    assert placed["b"].spec == PartitionSpec(None)
    array = jax.device_put(np.arange(128.0).reshape(8, 16), placed["a"]["kernel"])
    assert array.addressable_shards[0].data.shape == (4, 4)


def test_unknown_axes_and_indivisible_sizes_are_refused():
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=2, tensor=4))
    with pytest.raises(ValueError, match=r"not in sharding\.RULES"):
        sharding.shardings(mesh, {"a": ("embedd",)}, {"a": jnp.zeros(8)})
    with pytest.raises(ConfigError, match="mlp of size 6 cannot be cut into 4"):
        sharding.shardings(mesh, {"a": ("embed", "mlp")}, {"a": jnp.zeros((8, 6))})
    with pytest.raises(ValueError, match="axes"):
        sharding.shardings(mesh, {"a": ("embed",)}, {"a": jnp.zeros((8, 6))})


def use(mesh, axes, shape, dtype=jnp.float32):
    mesh = sharding.make_mesh(MeshConfig(**{"data": 1, **mesh}))
    shapes = {"a": jax.ShapeDtypeStruct(shape, dtype), "small": jax.ShapeDtypeStruct((8,), dtype)}
    places = sharding.shardings(mesh, {"a": axes, "small": ("embed",)}, shapes)
    sharding.check_use(mesh, places, shapes)


def test_a_mesh_axis_that_cuts_nothing_is_refused_by_name():
    use({"fsdp": 4, "tensor": 2}, ("embed", "mlp"), (8, 8))
    use({"data": 8}, ("embed", "mlp"), (8, 8))
    use({"data": 4, "context": 2}, ("embed", "mlp"), (8, 8))
    with pytest.raises(ConfigError, match=r"mesh\.expert is 2, but no parameter"):
        use({"data": 4, "expert": 2}, ("embed", "mlp"), (8, 8))


def test_a_large_parameter_that_nothing_cuts_is_refused_by_name():
    rows = sharding.LARGE // 4
    use({"data": 8}, ("positions",), (rows,))
    use({"fsdp": 8}, ("positions",), (rows - 1,))
    with pytest.raises(ConfigError, match=r"a \(64 MiB\) lies whole on every device.*mesh\.fsdp"):
        use({"fsdp": 8}, ("positions",), (rows,))
    use({"fsdp": 8}, ("positions",), (rows,), jnp.bfloat16)


def test_every_rule_is_that_of_some_parameter_or_activation():
    """A logical axis that nothing carries would be a rule without effect."""
    small = {"vocab_size": 8, "num_layers": 1, "hidden_size": 8, "num_heads": 2}
    moe = {"ffn_pattern": ("moe",), "moe": MoEConfig(num_experts=2), "attention_sinks": True}
    heads = {"pooling": "cls", "pooler": "tanh", "num_labels": 2, "token_types": 2}
    configs = (
        ModelConfig(**small, **moe, position="learned"),
        ModelConfig(**small, latent=LatentConfig(kv_rank=4)),
        ModelConfig(**small, **heads, attention="bidirectional", position="disentangled"),
    )
    carried = {"batch", "length", "activation_embed", "layers"}
    for config in configs:
        for axes in jax.tree.leaves(
            models.logical_axes(config), is_leaf=lambda x: type(x) is tuple
        ):
            carried.update(axes)
    assert carried - {None} == set(sharding.RULES)


def test_batches_are_cut_along_their_rows():
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, expert=2))
    assert sharding.batch_parts(mesh) == 8
    rows = np.arange(32).reshape(16, 2)
    placed = sharding.device_batch(mesh, {"inputs": rows})["inputs"]
    assert {s.data.shape for s in placed.addressable_shards} == {(2, 2)}
    np.testing.assert_array_equal(placed, rows)
