"""The product with an NF4 weight as it is defined, with all of it in memory. The specification."""

import jax.numpy as jnp

from jgpt.kernels.nf4_matmul.format import Nf4, dequantize
from jgpt.typing import Array


def supports(x: Array, packed: Nf4) -> str:
    """It can do everything."""
    return ""


def forward(x: Array, packed: Nf4) -> Array:
    """x [T, in] times the transposed weight: [T, out] in at least float32."""
    weight = dequantize(packed).astype(x.dtype)
    return jnp.einsum("ti,oi->to", x, weight, preferred_element_type=_sums(x))


def backward(dy: Array, packed: Nf4) -> Array:
    """dy [T, out] times the weight: [T, in] in at least float32."""
    weight = dequantize(packed).astype(dy.dtype)
    return jnp.einsum("to,oi->ti", dy, weight, preferred_element_type=_sums(dy))


def _sums(x: Array) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)
