"""A kernel in few bits in the place of a parameter (`jgpt.kernels.quantized`).

It lies where the kernel [in, out] would, and is its transpose. Stacked layers and experts put their
axes in front of every array of it.
"""

from typing import Any

import flax.linen as nn
import jax

from jgpt.kernels import quantized
from jgpt.kernels.int8_matmul import Int8
from jgpt.kernels.nf4_matmul import DoubleScales, Nf4
from jgpt.kernels.quantized import Packed
from jgpt.sharding import spec
from jgpt.typing import Array

Axes = tuple[str | None, ...]


def is_packed(weight: Any) -> bool:
    return isinstance(weight, Packed)


def packed_parameter(module: nn.Module, name: str) -> Packed | None:
    """The module's parameter where it is packed; None where it is whole, or is to be made.

    `nn.Module.param` compares shapes with those that the initialiser would have, and cannot be
    asked for it.
    """
    if not module.has_variable("params", name):
        return None
    value = module.get_variable("params", name)
    return value if is_packed(value) else None


def packed_matmul(x: Array, packed: Packed, axes: Axes) -> Array:
    """`x @ kernel` of a kernel [in, out] whose axes have these logical names.

    Differentiable in x alone.
    """
    return quantized.matmul(x, packed, cut=spec(axes[::-1]))


def unpacked(packed: Packed) -> Array:
    """The kernels [..., in, out] in float32."""
    one = quantized.dequantize
    for _ in range(packed.codes.ndim - 2):
        one = jax.vmap(one)
    return one(packed).swapaxes(-1, -2)


def packed_axes(packed: Packed, axes: Axes) -> Packed:
    """Logical names of every array's axes, in its place.

    Args:
        packed: of arrays or of their shapes.
        axes: of the kernel [..., in, out].
    """
    *stacked, fan_in, out = axes
    whole = (*stacked, out, fan_in)
    if isinstance(packed, Int8):
        return Int8(whole, (*stacked, out, None))
    if isinstance(packed.scales, DoubleScales):
        return Nf4(whole, DoubleScales(whole, (*stacked, None), tuple(stacked)))
    return Nf4(whole, whole)
