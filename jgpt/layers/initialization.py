"""Initial weights: their standard deviations, and how a parameter is declared.

- Every matrix and table is normal with standard deviation `init_std`; biases start at 0, norms at
  the identity, sinks at 0.
- Matrices that write into the residual stream (attention output, down projections) have it divided
  by `sqrt(2 num_layers)` when `scale_residual_init` is set, so that the stream's variance does not
  grow with depth (GPT-2; Radford et al. 2019, section 2.3).
- muP (`mup_base_width` > 0; Yang et al. 2022, "Tensor Programs V", table 8): matrices between
  hidden layers have it multiplied by `sqrt(mup_base_width / hidden_size)`; the embedding, the
  position table, the head and vectors keep theirs.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from jgpt.config import ModelConfig
from jgpt.typing import Array

Initializer = Callable[[Array, tuple[int, ...], Any], Array]


@dataclass(frozen=True)
class Normal:
    """Draws from a normal distribution around 0."""

    std: float

    def __call__(self, key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        return self.std * jax.random.normal(key, shape, dtype)


@dataclass(frozen=True)
class Constant:
    """The same value everywhere."""

    value: float

    def __call__(self, key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        return jnp.full(shape, self.value, dtype)


@struct.dataclass
class Parameter(nn.LogicallyPartitioned):
    """Flax's box of a value and its logical axes, which also remembers how the value is made.

    Shapes, axes and initialisers of a whole model are read off one abstract `Module.init`.
    """

    initializer: Initializer = struct.field(pytree_node=False, default=Constant(0.0))


def parameter(initializer: Initializer, *axes: str) -> Callable:
    """An `init` for `Module.param`: the initialiser, and the logical name of each axis.

    `jgpt.sharding.RULES` maps the names to the mesh.
    """

    def init(key: Array, shape: tuple[int, ...], dtype: Any) -> Parameter:
        return Parameter(initializer(key, shape, dtype), axes, initializer=initializer)

    return init


def normal(std: float, *axes: str) -> Callable:
    return parameter(Normal(std), *axes)


def zeros(*axes: str) -> Callable:
    return parameter(Constant(0.0), *axes)


def ones(*axes: str) -> Callable:
    return parameter(Constant(1.0), *axes)


def hidden_std(config: ModelConfig, *, residual: bool = False) -> float:
    """Standard deviation of a hidden matrix's initial entries.

    Args:
        residual: whether its output is added to the residual stream.
    """
    std = config.init_std
    if config.mup_base_width:
        std *= math.sqrt(config.mup_base_width / config.hidden_size)
    if residual and config.scale_residual_init:
        std /= math.sqrt(2 * config.num_layers)
    return std
