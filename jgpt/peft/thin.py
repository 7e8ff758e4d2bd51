"""Products with a thin matrix, one side a rank: the other side's activations are never copied."""

import jax
import jax.numpy as jnp

from jgpt.kernels.matmul import input_gradient, matmul, product, weight_gradient
from jgpt.typing import Array

THIN = 4
"""A matrix is thin where it has so many times as many rows as columns."""


def thin_matmul(x: Array, w: Array) -> Array:
    """`jgpt.kernels.matmul.matmul` of x [..., D] and an adapter's matrix w [D, F]: [..., F].

    The gradient of w is `x^T dy`, for which a CPU needs the left operand in rows. Of a thin w that
    would be a transposed copy of x, more work than the product; so it is the transpose of `dy^T x`.
    """
    return _thin(x, w) if w.shape[0] >= THIN * w.shape[1] else matmul(x, w)


@jax.custom_vjp
def _thin(x: Array, w: Array) -> Array:
    return product(x, w.astype(x.dtype)).astype(x.dtype)


def _forward(x: Array, w: Array) -> tuple[Array, tuple[Array, Array]]:
    return _thin(x, w), (x, w)


def _backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, w = saved
    dx = input_gradient(dy, w.astype(x.dtype)).astype(x.dtype)
    dw = weight_gradient(dy, x, jnp.promote_types(x.dtype, w.dtype))
    # Without the barrier XLA makes the transpose of this product a product of x transposed.
    return dx, jax.lax.optimization_barrier(dw).T.astype(w.dtype)


_thin.defvjp(_forward, _backward)
