"""The grouped product as XLA's own `ragged_dot`."""

import jax
import jax.numpy as jnp
from jax import lax

from jgpt.typing import Array

_MATMUL = lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(((1,), (1,)), ((), ())),
    lhs_ragged_dimensions=[0],
    rhs_group_dimensions=[0],
)
_INPUT_GRADIENT = lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(((1,), (2,)), ((), ())),
    lhs_ragged_dimensions=[0],
    rhs_group_dimensions=[0],
)
_WEIGHT_GRADIENT = lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(((0,), (0,)), ((), ())),
    lhs_ragged_dimensions=[0],
    rhs_group_dimensions=[],
)


def supports(platform: str, x: Array, w: Array) -> str:
    del x, w
    if platform == "cpu":
        return "on CPU XLA expands ragged_dot to every group on every row (several times slower)"
    return ""


def _ragged_dot(a: Array, b: Array, group_sizes: Array, dimensions) -> Array:
    accumulator = jnp.promote_types(a.dtype, jnp.float32)
    return lax.ragged_dot_general(a, b, group_sizes, dimensions, preferred_element_type=accumulator)


def _owned(rows: Array, group_sizes: Array) -> Array:
    """`rows`, 0 past the last group: what ragged_dot leaves there differs between platforms."""
    inside = jnp.arange(rows.shape[0]) < jnp.sum(group_sizes)
    return jnp.where(inside[:, None], rows, 0)


def matmul(x: Array, w: Array, group_sizes: Array) -> Array:
    y = _ragged_dot(x, w.astype(x.dtype), group_sizes, _MATMUL)
    return _owned(y, group_sizes).astype(x.dtype)


def input_gradient(dy: Array, w: Array, group_sizes: Array) -> Array:
    dx = _ragged_dot(dy, w.astype(dy.dtype), group_sizes, _INPUT_GRADIENT)
    return _owned(dx, group_sizes).astype(dy.dtype)


def weight_gradient(x: Array, dy: Array, group_sizes: Array, dtype: jax.typing.DTypeLike) -> Array:
    return _ragged_dot(x, dy, group_sizes, _WEIGHT_GRADIENT).astype(dtype)
