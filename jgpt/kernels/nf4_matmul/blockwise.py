"""The product with an NF4 weight by groups of its rows: one group at a time is dequantised."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax

from jgpt.kernels.matmul import input_gradient, product
from jgpt.kernels.nf4_matmul.format import Nf4, dequantized, whole_scales
from jgpt.typing import Array

WEIGHTS = 2**21
"""In a group, at most, but one row at least."""


def supports(x: Array, packed: Nf4) -> str:
    """It can do everything."""
    return ""


def forward(x: Array, packed: Nf4) -> Array:
    """x [T, in] times the transposed weight: [T, out] in at least float32."""

    def part(carry, weight, start):
        return carry, input_gradient(x, weight)

    _, outs = _for_each_group(packed, x.dtype, part, ())
    return jnp.concatenate(outs, axis=1)


def backward(dy: Array, packed: Nf4) -> Array:
    """dy [T, out] times the weight: [T, in] in at least float32."""

    def part(total, weight, start):
        own = lax.dynamic_slice_in_dim(dy, start, len(weight), 1)
        return total + product(own, weight), None

    dtype = jnp.promote_types(dy.dtype, jnp.float32)
    zeros = jnp.zeros((len(dy), packed.shape[1]), dtype)
    return _for_each_group(packed, dy.dtype, part, zeros)[0]


def _for_each_group(
    packed: Nf4, dtype: jnp.dtype, part: Callable, carry: Array | tuple
) -> tuple[Array, list[Array]]:
    """`carry, out = part(carry, weight [n, in], first row)`; the carry, and the outs [T, n]."""
    rows, width = packed.shape
    size = min(rows, max(1, WEIGHTS // width))
    count = rows // size
    scales = whole_scales(packed)

    def step(carry, start, size):
        codes = lax.dynamic_slice_in_dim(packed.codes, start, size)
        own = lax.dynamic_slice_in_dim(scales, start, size)
        return part(carry, dequantized(codes, own).astype(dtype), start)

    carry, outs = lax.scan(lambda c, i: step(c, i * size, size), carry, jnp.arange(count))
    joined = []
    if outs is not None:
        joined.append(jnp.moveaxis(outs, 0, 1).reshape(outs.shape[1], -1))
    if rows % size:
        carry, out = step(carry, count * size, rows % size)
        joined.append(out)
    return carry, joined
