"""The grouped product spelled out: one masked product per group. E times the needed work."""

import jax
import jax.numpy as jnp
from jax import lax

from jgpt.typing import Array


def supports(platform: str, x: Array, w: Array) -> str:
    del platform, x, w
    return ""


def membership(group_sizes: Array, num_rows: int, dtype: jnp.dtype) -> Array:
    """[E, N] of 0 and 1: which group owns which row; rows past the last group belong to none."""
    ends = jnp.cumsum(group_sizes)[:, None]
    rows = jnp.arange(num_rows)
    return ((rows >= ends - group_sizes[:, None]) & (rows < ends)).astype(dtype)


def _einsum(equation: str, *operands: Array) -> Array:
    accumulator = jnp.promote_types(operands[0].dtype, jnp.float32)
    return jnp.einsum(
        equation,
        *operands,
        precision=lax.Precision.HIGHEST,
        preferred_element_type=accumulator,
    )


def matmul(x: Array, w: Array, group_sizes: Array) -> Array:
    every = _einsum("nd,edf->enf", x, w.astype(x.dtype))
    owned = membership(group_sizes, x.shape[0], every.dtype)
    return _einsum("enf,en->nf", every, owned).astype(x.dtype)


def input_gradient(dy: Array, w: Array, group_sizes: Array) -> Array:
    every = _einsum("nf,edf->end", dy, w.astype(dy.dtype))
    owned = membership(group_sizes, dy.shape[0], every.dtype)
    return _einsum("end,en->nd", every, owned).astype(dy.dtype)


def weight_gradient(x: Array, dy: Array, group_sizes: Array, dtype: jax.typing.DTypeLike) -> Array:
    owned = membership(group_sizes, x.shape[0], x.dtype)
    return _einsum("end,nf->edf", x * owned[:, :, None], dy).astype(dtype)
