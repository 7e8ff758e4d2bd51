"""What the TPU kernel of decode attention runs: the walk over a row's chunks, their copies, and the
online softmax. Which arrays it gets, and from where, `pallas_tpu.py` says.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jgpt.kernels.attention.pallas_tpu_block import FORBIDDEN, LOG2_E, LOWEST
from jgpt.typing import Array


@dataclass(frozen=True)
class Static:
    """What is known when the program is made."""

    paged: bool
    chunk: int
    """tokens"""
    page: int
    """tokens that are copied at once"""
    softcap: float
    window: int
    batch: int
    kv_heads: int


class Tables(NamedTuple):
    """Scalars that steer the walk, int32. In a cache of slots a chunk is one page."""

    first: Array
    """[B] first chunk of a row"""
    count: Array
    """[B] its chunks"""
    before: Array
    """[B] chunks of all rows before it, whose parity tells the buffer"""
    following: Array
    """[B + 1] the first row from this one on that has chunks, B where there is none"""
    stop: Array
    """[B] tokens of the row; slots up to the last one in use"""
    pages: Array
    """[B, M] pages of the row; [1, 1] and not read for slots"""


def kernel(static: Static, streams: list[str], refs: dict[str, Any]) -> None:
    """One row of the batch."""
    row = pl.program_id(0)
    first, count, before = (refs[name][row] for name in ("first", "count", "before"))

    @pl.when(row == 0)
    def _():
        for name in streams:
            # A chunk's last pages may stay away, and 0 times what lies there must be 0.
            refs[f"{name}_buffer"][...] = jnp.zeros_like(refs[f"{name}_buffer"])
        begin = refs["following"][0]

        @pl.when(begin < static.batch)
        def _():
            _copy(static, streams, refs, begin, refs["first"][begin], 0, "start")

    if refs["sinks"] is None:
        refs["highest"][...] = jnp.full_like(refs["highest"], LOWEST)
        refs["total"][...] = jnp.zeros_like(refs["total"])
    else:
        refs["highest"][...] = refs["sinks"][...]
        refs["total"][...] = jnp.ones_like(refs["total"])
    refs["mixed"][...] = jnp.zeros_like(refs["mixed"])

    def step(i: Array, _: None) -> None:
        buffer = lax.rem(before + i, 2)
        ends = i == count - 1
        next_row = jnp.where(ends, refs["following"][row + 1], row)

        @pl.when(next_row < static.batch)
        def _():
            chunk = jnp.where(ends, refs["first"][next_row], first + i + 1)
            _copy(static, streams, refs, next_row, chunk, 1 - buffer, "start")

        _copy(static, streams, refs, row, first + i, buffer, "wait")
        _compute(static, refs, row, first + i, buffer)

    lax.fori_loop(0, count, step, None)
    total = refs["total"][...]
    inverse = 1 / jnp.where(total == 0, 1, total)
    refs["out"][...] = (refs["mixed"][...] * inverse).astype(refs["out"].dtype)
    known = (refs["highest"][...] + jnp.log2(jnp.where(total == 0, 1, total))) * math.log(2)
    refs["logsumexp"][...] = jnp.where(total == 0, -jnp.inf, known)


def _copy(
    static: Static,
    streams: list[str],
    refs: dict[str, Any],
    row: Array,
    chunk: Array,
    buffer: Array,
    act: str,
) -> None:
    """Starts copying a chunk of a row into a buffer, or waits until it is there."""

    def move(page: Array, source: Any) -> None:
        at = pl.ds(pl.multiple_of(page * static.page, static.page), static.page)
        for stream, name in enumerate(streams):
            copy = pltpu.make_async_copy(
                source(refs[name]),
                refs[f"{name}_buffer"].at[buffer, :, at],
                refs["arrived"].at[buffer, stream],
            )
            getattr(copy, act)()

    if not static.paged:
        start = pl.multiple_of(chunk * static.chunk, static.chunk)
        move(0, lambda ref: ref.at[row, :, pl.ds(start, static.chunk)])
        return
    pages = static.chunk // static.page
    left = (refs["stop"][row] + static.page - 1) // static.page - chunk * pages

    def one(j: Array, _: None) -> None:
        page = refs["pages"][row, chunk * pages + j]
        move(j, lambda ref: ref.at[page])

    lax.fori_loop(0, jnp.minimum(left, pages), one, None)


def _compute(static: Static, refs: dict[str, Any], row: Array, chunk: Array, buffer: Array) -> None:
    """The online softmax over one chunk, head by head."""
    query = refs["query"][...]
    start = chunk * static.chunk
    if static.paged:
        key = start + lax.broadcasted_iota(jnp.int32, (1, static.chunk), 1)
        allowed = (key <= query) & (key < refs["stop"][row])
    else:
        key = refs["positions"][:, pl.ds(pl.multiple_of(start, static.chunk), static.chunk)]
        allowed = (key <= query) & (key >= 0)
    if static.window:
        allowed &= key > query - static.window
    scale = refs["scale"][0] * (1.0 if static.softcap else LOG2_E)
    for head in range(static.kv_heads):
        q, v = refs["q"][head], refs["v_buffer"][buffer, head].astype(refs["q"].dtype)
        s = _dot(q, refs["k_buffer"][buffer, head].astype(q.dtype), 1) * scale
        if refs["k_scales"] is not None:
            s *= refs["k_scales_buffer"][buffer, pl.ds(head, 1)]
        if static.softcap:
            s = jnp.tanh(s / static.softcap) * (static.softcap * LOG2_E)
        if refs["slopes"] is not None:
            s -= refs["slopes"][head] * abs(query - key).astype(jnp.float32)
        s = jnp.where(allowed, s, FORBIDDEN)
        highest = refs["highest"][head]
        new = jnp.maximum(highest, s.max(axis=1, keepdims=True))
        weights, fade = jnp.exp2(s - new), jnp.exp2(highest - new)
        refs["highest"][head] = new
        refs["total"][head] = refs["total"][head] * fade + weights.sum(axis=1, keepdims=True)
        if refs["v_scales"] is not None:
            weights *= refs["v_scales_buffer"][buffer, pl.ds(head, 1)]
        mixed = _dot(weights.astype(v.dtype), v, 0)
        refs["mixed"][head] = refs["mixed"][head] * fade + mixed


def _dot(a: Array, b: Array, axis: int) -> Array:
    """a [R, m] with b summed over its `axis`, in float32."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return lax.dot_general(
        a,
        b,
        (((1,), (axis,)), ((), ())),
        precision=precision,
        preferred_element_type=jnp.float32,
    )
