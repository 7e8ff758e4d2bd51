"""The mesh and the table from logical to mesh axes: placement, and every refusal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jgpt import sharding
from jgpt.config import ConfigError, MeshConfig


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


def test_batches_are_cut_along_their_rows():
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, expert=2))
    assert sharding.batch_parts(mesh) == 8
    rows = np.arange(32).reshape(16, 2)
    placed = sharding.device_batch(mesh, {"inputs": rows})["inputs"]
    assert {s.data.shape for s in placed.addressable_shards} == {(2, 2)}
    np.testing.assert_array_equal(placed, rows)
