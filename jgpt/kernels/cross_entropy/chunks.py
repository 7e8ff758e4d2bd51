"""What a backend of the loss does with one chunk of tokens, and the loop over chunks."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from jgpt.typing import Array


class Figures(NamedTuple):
    """Of the scores of a chunk's tokens over this device's part of the vocabulary, each [B, c]."""

    highest: Array
    total: Array
    """sum of exp(score - highest)"""
    chosen: Array
    """score of the target; 0 where another device has it"""
    summed: Array | None
    """sum of the scores; None without label smoothing"""


class Rows(NamedTuple):
    """Each [B, c]: d total / d score = factor * p - constant - pull * [is the target]."""

    normalizer: Array
    """p = exp(score - normalizer)"""
    factor: Array
    pull: Array
    """0 for tokens that do not count, and only for those"""
    constant: Array | None
    chosen: Array
    """score of the target"""


class Totals(NamedTuple):
    """Running sums over chunks, in at least float32."""

    head: Array
    bias: Array | None


class Steps(Protocol):
    """What a backend does with one chunk; frozen and hashable.

    `head` is what `prepare` made of the head [D, V] and the bias [V] or None; targets are counted
    from the first row of this part of the vocabulary and may lie outside.
    """

    tokens: int
    """per chunk and device, at most"""
    flat: bool
    """rows may be joined to one"""
    multiple: int
    """chunks are multiples of this"""
    unrolled: int
    """up to so many chunks are unrolled; above, a loop keeps the program small"""

    def prepare(self, head: Array, bias: Array | None) -> Any: ...

    def zeros(self, head: Any) -> Totals: ...

    def scores(
        self, head: Any, hidden: Array, targets: Array, summed: bool, keep: bool
    ) -> tuple[Figures, Any]:
        """The figures and, if asked to keep it, what `gradients` needs."""

    def gradients(
        self, head: Any, hidden: Array, targets: Array, kept: Any, rows: Rows, totals: Totals
    ) -> tuple[Totals, Array]:
        """(totals with this chunk's, gradient of hidden)."""

    def finish(self, totals: Totals, head: Array) -> Totals:
        """In the shapes of the head and the bias."""


def for_each_chunk(
    steps: Steps, devices: int, arrays: tuple[Array, ...], body: Callable, carry: Any
) -> Any:
    """`carry, out = body(carry, *chunks)` over chunks of axis 1; the carry, and the outs joined.

    Rows are padded with zeros at the end, which weigh nothing; outs are cut to the length.
    """
    batch, length = arrays[0].shape[:2]
    if steps.flat:
        arrays = [x.reshape(1, batch * length, *x.shape[2:]) for x in arrays]
    chunk, count = _chunks(steps, devices, arrays[0].shape)
    missing = count * chunk - arrays[0].shape[1]
    if missing:
        arrays = [jnp.pad(x, [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2)) for x in arrays]

    def step(carry, i):
        chunks = [lax.dynamic_slice_in_dim(x, i * chunk, chunk, 1) for x in arrays]
        return body(carry, *chunks)

    if count <= steps.unrolled:
        outs = []
        for i in range(count):
            carry, out = step(carry, i)
            outs.append(out)
        joined = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *outs)
    else:
        carry, outs = lax.scan(step, carry, jnp.arange(count))
        joined = jax.tree.map(_join, outs)

    def cut(x: Array) -> Array:
        x = x[:, : x.shape[1] - missing] if missing else x
        return x.reshape(batch, length, *x.shape[2:])

    return carry, jax.tree.map(cut, joined)


def _chunks(steps: Steps, devices: int, shape: tuple[int, ...]) -> tuple[int, int]:
    """Positions per chunk of rows [B, S, ...], as even as can be, and how many chunks there are."""
    batch, length = shape[:2]
    limit = max(1, steps.tokens * devices // max(1, batch))
    count = max(1, -(-length // limit))
    chunk = max(1, -(-length // count))
    chunk = -(-chunk // steps.multiple) * steps.multiple
    return chunk, max(1, -(-length // chunk))


def _join(x: Array) -> Array:
    """[n, B, c, ...] to [B, n * c, ...]."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])
