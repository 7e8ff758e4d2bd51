"""Where arrays live: one table from logical axes to mesh axes, checked strictly.

A parameter names its axes where it is made (`jgpt.layers`); `RULES` alone says which mesh axis cuts
each of them. A config chooses mesh sizes and nothing else. A name missing from the table, or a
dimension that its mesh axes do not divide, is an error at start-up: JAX by itself would replicate
the first silently.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jgpt.config import ConfigError, MeshConfig
from jgpt.trees import leaves_by_path
from jgpt.typing import PyTree

RULES: dict[str, tuple[str, ...]] = {
    # activations
    "batch": ("data", "fsdp", "expert"),
    "length": ("context",),
    "activation_embed": (),
    # parameters
    "vocab": ("tensor",),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "latent": (),
    "mlp": ("tensor",),
    "experts": ("expert",),
    "expert_mlp": ("tensor",),
    "layers": (),
    "norm": (),
    "positions": (),
    "buckets": (),
    "head_count": (),
    "token_types": (),
    "pooled": (),
    "labels": (),
}
"""Logical axis -> the mesh axes that cut it, in order; () is replicated."""


PARAMETER_AXES = ("fsdp", "expert", "tensor")
"""Mesh axes that are there to cut parameters."""


def linen_rules() -> list[tuple[str, tuple[str, ...] | None]]:
    """`RULES` in the form that `flax.linen.logical_axis_rules` takes."""
    return [(name, axes or None) for name, axes in RULES.items()]


def mesh_sizes(config: MeshConfig, num_devices: int) -> dict[str, int]:
    """Size of every mesh axis, with the one that is -1 filled in.

    Raises:
        ConfigError: sizes that cannot use exactly `num_devices` devices.
    """
    sizes = dataclasses.asdict(config)
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) > 1:
        raise ConfigError(f"mesh.{' and mesh.'.join(free)} are -1; only one axis may be")
    for name, size in sizes.items():
        if size < 1 and size != -1:
            raise ConfigError(f"mesh.{name} is {size}; write a positive size, or -1 for the rest")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if num_devices % fixed or (not free and fixed != num_devices):
        written = " x ".join(f"{name} {size}" for name, size in sizes.items())
        raise ConfigError(
            f"mesh ({written}) does not fit {num_devices} devices; set mesh.data to -1 and the "
            "product of the others to a divisor of that"
        )
    for name in free:
        sizes[name] = num_devices // fixed
    return sizes


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over `devices` (default: all). Axes are Auto: the compiler propagates shardings.

    Axes lie along whole dimensions of a TPU's torus where their sizes allow it (16 in 4x4x4); where
    they do not (8 in 4x4x4), axes share a dimension.
    """
    devices = list(jax.devices()) if devices is None else list(devices)
    sizes = mesh_sizes(config, len(devices))
    shape, types = tuple(sizes.values()), (AxisType.Auto,) * len(sizes)
    try:
        return jax.make_mesh(shape, tuple(sizes), devices=devices, axis_types=types)
    except NotImplementedError:
        grid = create_device_mesh(shape, devices, allow_split_physical_axes=True)
        return Mesh(grid, tuple(sizes), axis_types=types)


def spec(axes: Sequence[str | None]) -> PartitionSpec:
    """Partition of an array whose dimensions carry these logical names (None: unnamed).

    Raises:
        ValueError: a name that `RULES` does not have.
    """
    entries = []
    for name in axes:
        if name is not None and name not in RULES:
            raise ValueError(f"logical axis {name!r} is not in sharding.RULES; add it there")
        mesh_axes = RULES[name] if name is not None else ()
        entries.append(mesh_axes[0] if len(mesh_axes) == 1 else mesh_axes or None)
    return PartitionSpec(*entries)


def shardings(mesh: Mesh, logical_axes: PyTree, shapes: PyTree) -> PyTree:
    """A `NamedSharding` for every leaf of `shapes`.

    Args:
        mesh: from `make_mesh`.
        logical_axes: tree like `shapes` whose leaves are tuples of logical names.
        shapes: arrays or `ShapeDtypeStruct`s.

    Raises:
        ValueError: an unknown logical axis, or axes that do not match a leaf's rank.
        ConfigError: a dimension that its mesh axes do not divide.
    """
    names = leaves_by_path(jax.tree.map(_Axes, logical_axes, is_leaf=_is_axes))

    def place(path: str, leaf: Any) -> NamedSharding:
        axes = names[path].names
        if len(axes) != len(leaf.shape):
            raise ValueError(f"{path}: axes {axes} for an array of shape {leaf.shape}")
        partition = spec(axes)
        for size, name, entry in zip(leaf.shape, axes, partition):
            parts = math.prod(mesh.shape[a] for a in _mesh_axes(entry))
            if size % parts:
                raise ConfigError(
                    f"{path}: {name} of size {size} cannot be cut into {parts} parts "
                    f"(mesh.{' x mesh.'.join(_mesh_axes(entry))}); choose sizes that divide"
                )
        return NamedSharding(mesh, partition)

    flat, tree = jax.tree.flatten(shapes)
    paths = leaves_by_path(shapes)
    assert len(flat) == len(paths)
    return jax.tree.unflatten(tree, [place(path, leaf) for path, leaf in paths.items()])


LARGE = 64 * 2**20
"""Bytes of a parameter from which it must not lie whole on every device of a mesh that cuts."""


def check_use(mesh: Mesh, places: PyTree, shapes: PyTree) -> None:
    """That the mesh does what it is there for.

    Args:
        mesh: from `make_mesh`.
        places: from `shardings`.
        shapes: of the parameters.

    Raises:
        ConfigError: a mesh axis that cuts no parameter though it is there to, or a large parameter
            that none of them cuts.
    """
    used = {name: set(_cut_by(place)) for name, place in leaves_by_path(places).items()}
    cutting = [axis for axis in PARAMETER_AXES if mesh.shape[axis] > 1]
    for axis in cutting:
        if not any(axis in axes for axes in used.values()):
            raise ConfigError(
                f"mesh.{axis} is {mesh.shape[axis]}, but no parameter of this model is cut along "
                "it; set it to 1, and mesh.data or mesh.fsdp higher"
            )
    for name, leaf in leaves_by_path(shapes).items():
        size = math.prod(leaf.shape) * leaf.dtype.itemsize
        if cutting and size >= LARGE and not used[name].intersection(cutting):
            raise ConfigError(
                f"{name} ({size / 2**20:.0f} MiB) lies whole on every device: none of its axes is "
                f"cut by mesh.{' or mesh.'.join(cutting)}; set mesh.fsdp above 1"
            )


def _cut_by(place: NamedSharding) -> list[str]:
    """Mesh axes that cut an array."""
    return [axis for entry in place.spec for axis in _mesh_axes(entry)]


@dataclasses.dataclass(frozen=True)
class _Axes:
    """Keeps a tuple of names from being taken for a tree node."""

    names: tuple[str | None, ...]


def _is_axes(x: Any) -> bool:
    return isinstance(x, tuple) and all(isinstance(n, str | None) for n in x)


def _mesh_axes(entry: Any) -> tuple[str, ...]:
    if entry is None:
        return ()
    return (entry,) if isinstance(entry, str) else tuple(entry)


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, rank: int = 2) -> NamedSharding:
    """Of the arrays [B, S, ...] of a batch, or [B]: rows and their length cut, the rest whole."""
    cut = math.prod(mesh.shape[axis] for axis in RULES["length"]) > 1
    return NamedSharding(mesh, spec(("batch", "length")[: rank if cut else 1]))


def batch_parts(mesh: Mesh) -> int:
    """How many parts the rows of a batch are cut into."""
    return math.prod(mesh.shape[axis] for axis in RULES["batch"])


@functools.lru_cache
def row_share(mesh: Mesh, process: int | None = None) -> tuple[int, int]:
    """(index, count): a process gives part `index` of `count` of the rows of every batch.

    Processes whose devices hold the same rows (a model cut up over hosts) give the same part.
    Parts are numbered by their first row; where a host's devices hold rows that are not
    neighbours, the rows of a batch lie on the mesh in another order, and are still the same.

    Args:
        mesh: of the run.
        process: its index; None for this one.

    Raises:
        ConfigError: the rows of two processes overlap in part.
    """
    process = jax.process_index() if process is None else process
    rows: dict[int, set[int]] = {}
    places = NamedSharding(mesh, spec(("batch",))).devices_indices_map((batch_parts(mesh),))
    for device, (row,) in places.items():
        part = set(range(*row.indices(batch_parts(mesh))))
        rows[device.process_index] = rows.get(device.process_index, set()) | part
    return _share(rows, process)


def _share(rows: dict[int, set[int]], process: int) -> tuple[int, int]:
    """`row_share` from the rows that each process's devices hold."""
    shares = sorted({tuple(sorted(held)) for held in rows.values()})
    parts = len(set().union(*rows.values()))
    if sum(map(len, shares)) != parts or len(set(map(len, shares))) > 1:
        raise ConfigError(
            f"the {len(rows)} processes cannot share the {parts} parts of a batch evenly "
            "(mesh.data x mesh.fsdp x mesh.expert); choose mesh.tensor and mesh.context so that "
            "they divide a host's devices, or are multiples of them"
        )
    return shares.index(tuple(sorted(rows[process]))), len(shares)


def device_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """This process's rows of a batch as global device arrays."""
    _, count = row_share(mesh)
    return {
        name: jax.make_array_from_process_local_data(
            batch_sharding(mesh, value.ndim), value, (count * value.shape[0], *value.shape[1:])
        )
        for name, value in batch.items()
    }
