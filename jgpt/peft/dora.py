"""DoRA: magnitude and direction per output, the direction with LoRA (Liu et al. 2024, section 4).

    y = m / n (W + s B A) x + bias,    n = ||W + s B A|| over the inputs, one number per output

m [out] begins as n, so that training starts from the model itself. A, B and m are trained; n is
taken for a constant in the backward pass (section 4.3), which saves its memory and costs nothing in
quality. In the forward pass `W x` is computed as it is, and the rest added to it:

    y = W x + bias + (m / n - 1) W x + (m / n) s B A x

With dropout, the update's `W x` and `B A x` see the same dropped x, and the first W x the whole x.

`W + s B A` is not built: `n^2 = |W|^2 + 2 <W, s B A> + |s B A|^2`, per output, needs `A W` [r, out]
and `A A^T` [r, r] only. Keep the adapters in float32 (`peft.dtype`): in bfloat16 m is rounded, and
the model is not quite itself at first. n is lost in a merge, which therefore cannot be undone.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jgpt.config import ConfigError, PeftConfig
from jgpt.layers.initialization import Constant
from jgpt.peft import lora, starts
from jgpt.peft.method import Call, Leaf, Leaves, Start, Target
from jgpt.peft.quantization import restored
from jgpt.typing import Array


def leaves(target: Target) -> dict[str, Leaf]:
    """LoRA's, and `magnitude` [out].

    Raises:
        ConfigError: with `peft.bias`, which would be rescaled too.
    """
    if target.settings.bias:
        raise ConfigError("peft.bias is for LoRA; DoRA has none: set it to False")
    out, axis = target.site.matrix[1], target.site.matrix_axes[1]
    return {**lora.leaves(target), "magnitude": Leaf((out,), (axis,), Constant(1.0))}


def column_norms(
    weight: Array, leaves: Leaves, total: Callable[[Array], Array] = lambda part: part
) -> Array:
    """||W + s A B|| over `in`: [..., out] of a weight [..., in, out]; float32.

    Args:
        total: `Call.total`, where only a part of the inputs is here.
    """
    a = leaves["lora_a"].astype(jnp.float32)
    b = leaves["lora_b"].astype(jnp.float32) * leaves["scaling"][..., None]
    transposed = jnp.swapaxes(a, -1, -2)
    along = jnp.matmul(transposed, weight, precision=lax.Precision.HIGHEST)
    gram = jnp.matmul(transposed, a, precision=lax.Precision.HIGHEST)
    squares = (weight**2).sum(-2) + (b * (2 * along + gram @ b)).sum(-2)
    return jnp.sqrt(jnp.maximum(total(squares), 0.0))


def gain(
    weight: Array, leaves: Leaves, total: Callable[[Array], Array] = lambda part: part
) -> Array:
    """m / n [..., out]; 1 in layers that are not adapted and in outputs that have no weights."""
    fixed = jax.tree.map(lax.stop_gradient, dict(leaves))
    norms = lax.stop_gradient(column_norms(weight, fixed, total))
    adapted = (leaves["scaling"] != 0).any(-1, keepdims=True) & (norms > 0)
    magnitude = leaves["magnitude"].astype(jnp.float32)
    return jnp.where(adapted, magnitude / jnp.where(norms > 0, norms, 1.0), 1.0)


def call(call: Call, x: Array, *rest: Any) -> Array:
    whole, dropped = _base(call, x, *rest)
    weight = lax.stop_gradient(restored(call.weight))
    ratio = call.lookup(gain(weight, call.leaves, call.total))
    bias = 0.0 if call.bias is None else call.bias.astype(jnp.float32)
    delta = lora.delta(call, x).astype(jnp.float32)
    change = (ratio - 1) * (dropped.astype(jnp.float32) - bias) + ratio * delta
    return (whole.astype(jnp.float32) + change).astype(whole.dtype)


def _base(call: Call, x: Array, *rest: Any) -> tuple[Array, Array]:
    """The frozen map of x, and of x as dropout leaves it."""
    if call.key is None or not call.settings.dropout:
        y = call.base(x, *rest)
        return y, y
    if call.kind == "experts":
        return call.base(x, *rest), call.base(call.dropped(x), *rest)
    both = call.base(jnp.stack([x, call.dropped(x)]))  # a dense map may be called once only
    return both[0], both[1]


def merge(kind: str, weight: Array, leaves: Leaves, settings: PeftConfig) -> Array:
    return gain(weight, leaves) * (weight + lora.update(leaves))


def start(settings: PeftConfig) -> Start:
    """LoRA's start, then m from the weight that results."""
    first = starts.choose(settings)

    def begin(target: Target, weight: Array, leaves: dict[str, Array]):
        base, leaves = first(target, weight, leaves) if first else (None, leaves)
        norms = column_norms(weight if base is None else base, leaves)
        return base, {**leaves, "magnitude": norms}

    return begin


DORA = dataclasses.replace(
    lora.LORA,
    kinds=("linear", "experts"),
    leaves=leaves,
    call=call,
    merge=merge,
    unmerge=None,
    merge_bias=None,
    start=start,
)
