"""Matrix product with float32 accumulation, and the forms of its gradients that are fast.

What XLA's CPU backend does with a product depends on how it is written (jax 0.10, Zen 4, GFLOP/s
per core; see `experiments/benchmarks/matmul.py`):

- float32 runs at 75 to 97, close to what the core can do, in every form;
- bfloat16 operands run at 140 to 170 where the result is asked for in float32 and the left operand
  is contracted over its last axis, and at 60 to 85 otherwise: `x @ w` rounded at once, `dy @ w.T`,
  and the weight gradient, which contracts rows. That one gets a transposed copy of x, which costs
  little and saves half.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

from jgpt.typing import Array


def product(x: Array, w: Array) -> Array:
    """x [..., D] @ w [D, F] in at least float32: [..., F]."""
    return _dot(x, w, (x.ndim - 1,), (0,))


def input_gradient(dy: Array, w: Array) -> Array:
    """dy [..., F] @ w [D, F] transposed, in at least float32: [..., D]."""
    return _dot(dy, w, (dy.ndim - 1,), (1,))


def weight_gradient(x: Array, dy: Array, dtype: jnp.dtype | None = None) -> Array:
    """x [..., D] transposed @ dy [..., F], summed over rows in at least float32: [D, F].

    On a mesh each device's part is summed so, and parts are added up in `dtype`, which is that of
    the result; by default, and on one device, at least float32.
    """
    if jax.sharding.get_abstract_mesh().size > 1:
        rows = tuple(range(x.ndim - 1))  # flattening could mix a sharded batch and length
        return _dot(x, dy, rows, rows, dtype)
    transposed = row_major(x.reshape(-1, x.shape[-1]).T)
    return _dot(transposed, dy.reshape(-1, dy.shape[-1]), (1,), (0,))


def row_major(x: Array) -> Array:
    """`x`, which on one CPU is copied into rows where it is a transposed view of something.

    Nothing but `x` elsewhere: other compilers choose layouts well, and the partitioner would gather
    the whole of an array whose layout is constrained.
    """
    if jax.sharding.get_abstract_mesh().size > 1:
        return x
    layout = Layout(major_to_minor=tuple(range(x.ndim)))
    return lax.platform_dependent(
        x, cpu=lambda x: with_layout_constraint(x, layout), default=lambda x: x
    )


def _dot(
    a: Array,
    b: Array,
    contract_a: tuple[int, ...],
    contract_b: tuple[int, ...],
    dtype: jnp.dtype | None = None,
) -> Array:
    dtype = dtype or jnp.promote_types(a.dtype, jnp.float32)
    return lax.dot_general(a, b, ((contract_a, contract_b), ((), ())), preferred_element_type=dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _matmul(x: Array, w: Array, out_dtype: jnp.dtype) -> Array:
    return product(x, w.astype(x.dtype)).astype(out_dtype)


def _forward(x: Array, w: Array, out_dtype: jnp.dtype):
    return _matmul(x, w, out_dtype), (x, w)


def _backward(out_dtype: jnp.dtype, saved: tuple[Array, Array], dy: Array):
    x, w = saved
    dy = dy.astype(x.dtype)
    dx = input_gradient(dy, w.astype(x.dtype)).astype(x.dtype)
    return dx, weight_gradient(x, dy, jnp.promote_types(x.dtype, w.dtype)).astype(w.dtype)


_matmul.defvjp(_forward, _backward)


def matmul(x: Array, w: Array, *, out_dtype: jnp.dtype | None = None) -> Array:
    """`x @ w`, accumulated in float32 (float64 for float64) whatever the inputs.

    Args:
        x: [..., D]; its dtype is that of the multiplications.
        w: [D, F], cast to x's dtype; its gradient is rounded once, to w's own dtype.
        out_dtype: of the result; x's when None.

    Returns:
        [..., F]. Differentiable in reverse mode only (`jax.grad`, `jax.vjp`; not `jax.jvp`).

    Raises:
        ValueError: shapes that do not fit.
    """
    if w.ndim != 2 or x.ndim < 1 or x.shape[-1] != w.shape[0]:
        raise ValueError(f"matmul needs x [..., D] and w [D, F], not {x.shape} and {w.shape}")
    return _matmul(x, w, jnp.dtype(out_dtype or x.dtype))
