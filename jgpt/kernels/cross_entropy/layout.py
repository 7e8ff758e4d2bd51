"""Where tokens and the head lie on the mesh that is set, and what its devices tell each other.

`sharding.RULES` decides the first. All functions after `find_layout` run under `shard_map`, and do
nothing where the layout has no axes.
"""

import math
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from jgpt.sharding import RULES
from jgpt.typing import Array


class Layout(NamedTuple):
    """Mesh axes, of more than one device each, that cut the arrays of the loss."""

    rows: tuple[str, ...]
    length: tuple[str, ...]
    width: tuple[str, ...]
    """of the head; it is gathered over these, as every weight that is cut along them"""
    vocabulary: tuple[str, ...]
    """of the head, which is never gathered over these"""

    @property
    def tokens(self) -> tuple[str, ...]:
        return self.rows + self.length

    @property
    def shared_rows(self) -> tuple[str, ...]:
        """Axes that cut both rows and vocabulary: every chunk of rows is gathered over them."""
        return tuple(a for a in self.rows if a in self.vocabulary)

    @property
    def summed(self) -> tuple[str, ...]:
        """Axes whose devices see different tokens when chunks have been gathered."""
        return tuple(a for a in self.tokens if a not in self.vocabulary)

    def per_token(self) -> PartitionSpec:
        return PartitionSpec(self.rows or None, self.length or None)

    def head(self) -> PartitionSpec:
        return PartitionSpec(self.width or None, self.vocabulary or None)

    def bias(self) -> PartitionSpec:
        return PartitionSpec(self.vocabulary or None)


NOWHERE = Layout((), (), (), ())
"""One device, or a part that a `shard_map` has cut already."""


def find_layout(rows: int, length: int, width: int, vocabulary: int) -> tuple[Layout, str]:
    """The layout on the mesh that is set, or (NOWHERE, why the loss cannot be cut over it)."""
    mesh = jax.sharding.get_abstract_mesh()
    sizes = {name: size for name, size in mesh.shape.items() if size > 1}
    kinds = {mesh._name_to_type[name] for name in sizes}
    if not sizes or kinds == {AxisType.Manual}:
        return NOWHERE, ""
    if kinds != {AxisType.Auto}:
        return NOWHERE, f"the mesh axes {list(sizes)} are not all left to the compiler"
    rules = {"rows": "batch", "length": "length", "width": "embed", "vocabulary": "vocab"}
    axes = {part: tuple(n for n in RULES[name] if n in sizes) for part, name in rules.items()}
    layout = Layout(**axes)
    unknown = set(sizes).difference(*axes.values())
    if unknown:
        return NOWHERE, f"the loss is not cut over {sorted(unknown)}"
    if set(layout.length) & set(layout.vocabulary) or set(layout.width) - set(layout.summed):
        return NOWHERE, f"the loss has no form for {layout}"
    given = {"rows": rows, "length": length, "width": width, "vocabulary": vocabulary}
    for part, size in given.items():
        parts = math.prod(sizes[n] for n in axes[part])
        if size % parts:
            return NOWHERE, f"{part} of size {size} cannot be cut into {parts}"
    return layout, ""


def psum(x: Any, axes: tuple[str, ...]) -> Any:
    return lax.psum(x, axes) if axes else x


def whole_width(layout: Layout, head: Array) -> Array:
    """This device's columns of the head."""
    return lax.all_gather(head, layout.width, axis=0, tiled=True) if layout.width else head


def own_targets(layout: Layout, targets: Array, columns: int) -> Array:
    """Targets counted from this device's first column of the head."""
    axes = layout.vocabulary
    return targets - lax.axis_index(axes) * columns if axes else targets


def gathered(layout: Layout, chunks: tuple[Array, ...]) -> tuple[Array, ...]:
    """A chunk with the rows of all devices that have other columns of the head."""
    axes = layout.shared_rows
    return tuple(lax.all_gather(x, axes, axis=0, tiled=True) if axes else x for x in chunks)


def own_rows(layout: Layout, x: Array, rows: int) -> Array:
    """This device's own of the gathered rows, where each device has the same value of `x`."""
    axes = layout.shared_rows
    return lax.dynamic_slice_in_dim(x, lax.axis_index(axes) * rows, rows) if axes else x


def reduced_rows(layout: Layout, x: Array) -> Array:
    """This device's own of the gathered rows, the sum of each device's part of `x`."""
    shared = layout.shared_rows
    x = psum(x, tuple(a for a in layout.vocabulary if a not in shared))
    return lax.psum_scatter(x, shared, scatter_dimension=0, tiled=True) if shared else x


def reduced_head(layout: Layout, x: Array) -> Array:
    """The sum over all tokens of the head's gradient, its width cut as the head's is."""
    x = psum(x, tuple(a for a in layout.summed if a not in layout.width))
    if layout.width:
        x = lax.psum_scatter(x, layout.width, scatter_dimension=0, tiled=True)
    return x
