"""Initial values of adapters beyond those of `jgpt.layers.initialization`."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jgpt.typing import Array


@dataclass(frozen=True)
class Uniform:
    """Draws from between -bound and bound."""

    bound: float

    def __call__(self, key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        return jax.random.uniform(key, shape, dtype, -self.bound, self.bound)


@dataclass(frozen=True)
class Columns:
    """`value` in the first `count` entries of the last axis, 0 in the others."""

    count: int
    value: float

    def __call__(self, key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        used = jnp.arange(shape[-1]) < self.count
        return jnp.broadcast_to(jnp.where(used, self.value, 0.0), shape).astype(dtype)


def kaiming_uniform(fan_in: int, slope: float = math.sqrt(5)) -> Uniform:
    """He et al. 2015 for a leaky ReLU; with torch's default slope sqrt(5), +-1/sqrt(fan_in)."""
    return Uniform(math.sqrt(6 / ((1 + slope**2) * fan_in)))
