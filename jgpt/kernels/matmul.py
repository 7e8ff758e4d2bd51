"""Matrix product with float32 accumulation, and the forms of its gradients that are fast.

Both gradients are `dot_general`s over the operands as they lie in memory: XLA's CPU backend turns
an explicit transpose of an operand into a copy, and loses its fast bfloat16 path with it.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from jgpt.typing import Array


def _accumulator(dtype) -> jnp.dtype:
    return jnp.promote_types(dtype, jnp.float32)


def _dot(a: Array, b: Array, contract: tuple[tuple[int, ...], tuple[int, ...]]) -> Array:
    return lax.dot_general(a, b, (contract, ((), ())), preferred_element_type=_accumulator(a.dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _matmul(x: Array, w: Array, out_dtype: jnp.dtype) -> Array:
    return _dot(x, w.astype(x.dtype), ((x.ndim - 1,), (0,))).astype(out_dtype)


def _forward(x, w, out_dtype):
    return _matmul(x, w, out_dtype), (x, w)


def _backward(out_dtype, saved, dy):
    x, w = saved
    dy = dy.astype(x.dtype)
    dx = _dot(dy, w.astype(x.dtype), ((dy.ndim - 1,), (1,)))
    rows = tuple(range(x.ndim - 1))
    dw = _dot(x, dy, (rows, rows))
    return dx.astype(x.dtype), dw.astype(w.dtype)


_matmul.defvjp(_forward, _backward)


def matmul(x: Array, w: Array, *, out_dtype: jnp.dtype | None = None) -> Array:
    """`x @ w`, accumulated in float32 whatever the inputs.

    Args:
        x: [..., D], its dtype is that of the multiplications.
        w: [D, F], cast to x's dtype; its gradient comes back in its own, rounded only once.
        out_dtype: of the result; x's when None.

    Returns:
        [..., F]. Differentiable in reverse mode only (`jax.grad`, `jax.vjp`; not `jax.jvp`).
    """
    return _matmul(x, w, jnp.dtype(out_dtype or x.dtype))
