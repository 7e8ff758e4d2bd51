"""How an attention kernel lies on the mesh that is set: the compiler cannot cut a kernel itself."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
from jax.sharding import AxisType, PartitionSpec

from jgpt.sharding import RULES
from jgpt.typing import Array, Bias, Mask


class Cut(NamedTuple):
    """Mesh axes of batch rows and of heads."""

    batch: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    needed: bool = False
    reason: str = ""
    """Why they cannot lie there."""


def cut(kernel: str, batch: int, kv_heads: int) -> Cut:
    """Batch rows and heads over the axes that `RULES` names; nothing to do without a mesh, on one
    device, or where a `shard_map` has cut already. `kernel` is named in reasons."""
    mesh = jax.sharding.get_abstract_mesh()
    sizes = {name: size for name, size in mesh.shape.items() if size > 1}
    manual = [n for n in sizes if mesh._name_to_type[n] == AxisType.Manual]
    if not sizes or len(manual) == len(sizes):
        return Cut()
    if manual:
        return Cut(reason=f"{kernel} cannot be cut where {manual} are cut already")
    rows = tuple(n for n in RULES["batch"] if n in sizes)
    heads = tuple(n for n in RULES["heads"] if n in sizes)
    other = set(sizes) - {*rows, *heads}
    if other:
        return Cut(reason=f"{kernel} is not cut over {sorted(other)}")
    for what, size, axes in (("rows", batch, rows), ("key/value heads", kv_heads, heads)):
        parts = math.prod(sizes[n] for n in axes)
        if size % parts:
            return Cut(reason=f"{size} {what} cannot be cut into {parts} for {kernel}")
    return Cut(rows, heads, True)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Inputs:
    """Every array of a call, as `attention_with_logsumexp` takes them."""

    q: Array
    k: Array
    v: Array
    scale: Array
    """float32"""
    bias: Bias | None
    sinks: Array | None
    mask: Mask
    known: tuple[Array, Array] | None = None


def on_every_device(
    kernel: str, run: Callable[[Inputs], tuple[Array, Array]], inputs: Inputs
) -> tuple[Array, Array]:
    """`run(inputs)`, on a mesh of each device's own rows and heads."""
    lies = cut(kernel, inputs.q.shape[0], inputs.k.shape[2])
    if not lies.needed:
        return run(inputs)
    rows, heads = lies.batch or None, lies.heads or None
    tokens = PartitionSpec(rows, None, heads)
    specs = Inputs(
        q=tokens,
        k=tokens,
        v=tokens,
        scale=PartitionSpec(),
        bias=jax.tree.map(lambda x: PartitionSpec(*[None] * (x.ndim - 1), heads), inputs.bias),
        sinks=None if inputs.sinks is None else PartitionSpec(heads),
        mask=jax.tree.map(lambda x: PartitionSpec(rows if len(x) > 1 else None), inputs.mask),
        known=jax.tree.map(lambda x: tokens, inputs.known),
    )
    placed = jax.shard_map(run, in_specs=(specs,), out_specs=(tokens, tokens), check_vma=False)
    return placed(inputs)
