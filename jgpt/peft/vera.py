"""VeRA: one frozen random pair for all layers, scaled by two vectors of each (Kopiczko, Blankevoort
and Asano 2024, section 3).

    y = W x + b * (B (d * (A x)))

A [in, r] and B [r, out] are drawn once, for the largest input and output there are, and cut to each
site's size; they are frozen, and kept with the adapters. d [r] begins at 0.1 (`peft.vera_initial`)
and b [out] at 0: these are trained, some thousand numbers per site, so that r can be large (256).

A and B are uniform in +-sqrt(6 / fan_in) (He et al. 2015). The paper's b is initially 0 and its d
0.1 or so; there is no alpha.
"""

from typing import Any

import jax.numpy as jnp

from jgpt.config import PeftConfig
from jgpt.layers.initialization import Constant
from jgpt.peft.initial import kaiming_uniform
from jgpt.peft.lora import QUERY_AND_VALUE
from jgpt.peft.method import Call, Leaf, Leaves, Method, Target, add
from jgpt.typing import Array


def leaves(target: Target) -> dict[str, Leaf]:
    """`vera_d` [r] and `vera_b` [out]."""
    out, axis = target.site.matrix[1], target.site.matrix_axes[1]
    return {
        "vera_d": Leaf((target.width,), (None,), Constant(target.settings.vera_initial)),
        "vera_b": Leaf((out,), (axis,), Constant(0.0)),
    }


def shared(targets: tuple[Target, ...]) -> dict[str, Leaf]:
    """`projection_a` [largest in, r] and `projection_b` [r, largest out]."""
    fan_in, out = (max(t.site.matrix[i] for t in targets) for i in (0, 1))
    rank = max(t.width for t in targets)
    first, second = kaiming_uniform(fan_in, slope=0.0), kaiming_uniform(rank, slope=0.0)
    return {
        "projection_a": Leaf((fan_in, rank), (None, None), first, trained=False),
        "projection_b": Leaf((rank, out), (None, None), second, trained=False),
    }


def projections(shared: Leaves, fan_in: int, rank: int, out: int) -> tuple[Array, Array]:
    """A [..., in, r] and B [..., r, out] of one site."""
    a, b = shared["projection_a"], shared["projection_b"]
    return a[..., :fan_in, :rank], b[..., :rank, :out]


def call(call: Call, x: Array, *rest: Any) -> Array:
    d, scale = call.leaves["vera_d"], call.leaves["vera_b"]
    a, b = projections(call.shared, x.shape[-1], d.shape[-1], scale.shape[-1])
    h = call.product(call.dropped(x), a)
    h = call.product(h * call.lookup(d).astype(h.dtype), b)
    return add(call.base(x, *rest), h * call.lookup(scale).astype(h.dtype))


def update(leaves: Leaves, fan_in: int) -> Array:
    """The matrix [in, out] that is added; `leaves` with the shared ones."""
    d, scale = leaves["vera_d"], leaves["vera_b"]
    a, b = projections(leaves, fan_in, d.shape[0], scale.shape[0])
    return ((a * d) @ (b * scale)).astype(jnp.float32)


def merge(kind: str, weight: Array, leaves: Leaves, settings: PeftConfig) -> Array:
    return weight + update(leaves, weight.shape[0])


def unmerge(kind: str, weight: Array, leaves: Leaves, settings: PeftConfig) -> Array:
    return weight - update(leaves, weight.shape[0])


VERA = Method(
    kinds=("linear",),
    targets=QUERY_AND_VALUE,
    leaves=leaves,
    shared=shared,
    call=call,
    merge=merge,
    unmerge=unmerge,
    default_rank=256,
)
