"""Frozen weights in few bits."""

from typing import Any

import jax.numpy as jnp

from jgpt.kernels.nf4_matmul import Nf4, dequantize
from jgpt.typing import Array


def is_quantized(weight: Any) -> bool:
    return isinstance(weight, Nf4)


def restored(weight: Any) -> Array:
    """A kernel [in, out] as numbers, whatever it is kept in."""
    return dequantize(weight).T if is_quantized(weight) else weight.astype(jnp.float32)
