"""A product with a frozen, packed weight that lies in parts on the devices of a mesh.

The compiler cannot cut a kernel of ours, and of a packed weight it would gather what a kernel has
unpacked. So each device runs the product by itself. An axis of the mesh that cuts the tokens too
(`fsdp`) has its parts of the packed weight gathered, a few bits per weight; along any other
(`tensor`) a device keeps its part: of the outputs it makes its own, and over parts of the inputs
the products are summed, in float32.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from jgpt.sharding import RULES
from jgpt.typing import Array, PyTree

Axes = tuple[str, ...]
UNCUT = PartitionSpec()
"""Of a weight that lies whole on every device."""


def over_mesh(
    function: Callable[[Array, Any], Array],
    x: Array,
    weight: PyTree,
    cut: PartitionSpec,
    contracted: int,
) -> Array:
    """`function(x, weight)` of all tokens and the whole weight.

    Args:
        function: x [T, n] and weight to [T, m] in float32 or wider.
        x: [..., n]; rows lie over the mesh as `sharding.RULES` says, where it divides them.
        weight: its arrays are [out, ...] and [.., in or blocks of it]; an axis of size 1 stays.
        cut: how the weight [out, in] lies over the mesh.
        contracted: the weight's axis that is summed over: 1 for x [..., in], 0 for [..., out].

    Returns:
        [..., m].

    Raises:
        ValueError: the mesh does not divide the weight.
    """
    mesh = jax.sharding.get_abstract_mesh()
    names = {n for n, size in mesh.shape.items() if size > 1}
    if not names or any(mesh._name_to_type[n] == AxisType.Manual for n in names):
        return _flat(function, x, weight)
    rows = _row_axes(mesh, x.shape[:-1])
    gathered, kept = _split(mesh, cut, {axis for axes in rows for axis in axes})
    whole = [g + k for g, k in zip(gathered, kept)]

    def place(leaf: Array) -> PartitionSpec:
        for size, axes in zip(leaf.shape, whole):
            parts = math.prod(mesh.shape[a] for a in axes)
            if size > 1 and size % parts:
                raise ValueError(
                    f"a packed array {leaf.shape} cannot be cut into {parts} parts along mesh axes "
                    f"{', '.join(axes)}; choose sizes that divide, in whole blocks"
                )
        return PartitionSpec(*(axes if n > 1 else None for n, axes in zip(leaf.shape, whole)))

    def complete(leaf: Array, place: PartitionSpec) -> Array:
        for axis, (axes, entry) in enumerate(zip(gathered, place)):
            if axes and entry:
                leaf = lax.all_gather(leaf, axes, axis=axis, tiled=True)
        return leaf

    def one(x: Array, weight: PyTree) -> Array:
        y = _flat(function, x, jax.tree.map(complete, weight, places))
        return lax.psum(y, kept[contracted]) if kept[contracted] else y

    places = jax.tree.map(place, weight)
    return jax.shard_map(
        one,
        in_specs=(PartitionSpec(*rows, kept[contracted]), places),
        out_specs=PartitionSpec(*rows, kept[1 - contracted]),
        check_vma=False,
    )(x, weight)


def _flat(function: Callable[[Array, Any], Array], x: Array, weight: PyTree) -> Array:
    y = function(x.reshape(-1, x.shape[-1]), weight)
    return y.reshape(*x.shape[:-1], y.shape[-1])


def _row_axes(mesh: AbstractMesh, leading: tuple[int, ...]) -> list[Axes]:
    """Mesh axes that cut each leading axis; those that do not divide it are left out."""
    found = []
    for index, size in enumerate(leading):
        # flat tokens [T, n] have no axis of their own for the length
        name = "batch" if index == 0 else "length" if index == 1 else None
        own: Axes = ()
        for axis in RULES[name] if name else ():
            parts = mesh.shape.get(axis, 1) * math.prod(mesh.shape[a] for a in own)
            if mesh.shape.get(axis, 1) > 1 and size % parts == 0:
                own += (axis,)
        found.append(own)
    return found


def _split(mesh: AbstractMesh, cut: PartitionSpec, used: set[str]) -> tuple[list[Axes], list[Axes]]:
    """Of the weight's two axes: mesh axes to gather along, and those whose part is kept."""
    gathered, kept = [], []
    for entry in (*cut, None, None)[:2]:
        axes = (entry,) if isinstance(entry, str) else tuple(entry or ())
        axes = tuple(a for a in axes if mesh.shape.get(a, 1) > 1)
        mixed = used.intersection(axes)
        gathered.append(axes if mixed else ())
        kept.append(() if mixed else axes)
    return gathered, kept
