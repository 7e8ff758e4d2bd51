"""What both TPU kernels of the grouped product are put together from: axes cut into parts, copies
that are started and waited for, and the product itself."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from jgpt.typing import Array


@dataclass(frozen=True)
class Cut:
    """An axis cut into `count` parts of `size`; the last one may begin inside of the one before."""

    count: int
    size: int
    total: int
    step: int
    """What every start is a multiple of."""

    def at(self, index: Any) -> Any:
        """The slice of part `index`."""
        if self.count == 1:
            return pl.ds(0, self.size)
        start = jnp.minimum(index * self.size, self.total - self.size)
        return pl.ds(pl.multiple_of(start, self.step), self.size)


def cut(total: int, limit: int, step: int) -> Cut:
    """As few and as even parts as can be, each of at most `limit` and a multiple of `step`; an axis
    that is no multiple of `step` stays whole."""
    if total % step:
        return Cut(1, total, total, total)
    count = -(-total // limit)
    size = -(-total // (count * step)) * step
    return Cut(-(-total // size), size, total, step)


def part_of(ref: Any, at: Any, axis: int) -> Any:
    """Of a matrix in memory, along one of its axes."""
    return ref.at[at, :] if axis == 0 else ref.at[:, at]


def start_all(copies: Callable[..., list], count: int, *where: Any) -> None:
    """`copies(*where, index)` of every index below `count`."""
    for index in range(count):
        for copy in copies(*where, index):
            copy.start()


def wait_all(copies: list) -> None:
    for copy in copies:
        copy.wait()


def owned_rows(shape: tuple[int, ...], start: Any, low: Array, high: Array) -> Array:
    """Which rows, the first of them number `start`, are from `low` on and before `high`."""
    row = lax.broadcasted_iota(jnp.int32, shape, 0) + start
    return (row >= low) & (row < high)


def dot(a: Array, b: Array, contract: tuple) -> Array:
    """Product over the axes `contract`, accumulated in float32."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return lax.dot_general(
        a, b, (contract, ((), ())), precision=precision, preferred_element_type=jnp.float32
    )
