"""The walk of attention's TPU kernels: which blocks they visit, and the tables that say so.

The grid's last axis walks a flat list of the blocks (row, column) in which the mask can allow
something, row by row; what is not in the list is neither fetched nor computed. Both passes walk the
same list. Segments, prefixes and explicit positions rule out more blocks at run time: those stay in
the list as steps without work, and fetch nothing.
"""

import functools
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jgpt.kernels.attention.schedule import Schedule
from jgpt.typing import Array, Mask

FIRST, LAST, PARTIAL, RUN, DIAGONAL, EDGE = 1, 2, 4, 8, 16, 32
"""Bits of a step's kind: the row begins, it ends, the block needs its mask, there is work, the
block is a square on the diagonal of a causal mask, of which the upper half is left out, and it is a
square on the far edge of a window, of which the lower half is."""


class Blocks(NamedTuple):
    """How scores are cut: blocks are what is fetched, parts what is computed at a time."""

    queries: int
    keys: int
    forward_part: tuple[int, int]
    """Queries and keys of a part; the scores of one part are multiplied while the softmax of the
    one before is taken, so that no unit waits for the other."""
    backward_part: tuple[int, int]


@dataclass(frozen=True)
class Static:
    """What is known when the program is made.

    `mask` has no arrays, `prefix` says that it had prefix lengths, `positions` that indices are
    given, `keys` counts no padding. `longest`: of so many keys the backward pass holds gradients;
    `first_column` is the number of the schedule's column 0.
    """

    schedule: Schedule
    mask: Mask
    prefix: bool
    positions: bool
    keys: int
    group: int
    softcap: float
    blocks: Blocks
    vmem_bytes: int
    longest: int
    interpret: Any
    first_column: int = 0

    @property
    def padded(self) -> tuple[int, int]:
        """Queries and keys in whole blocks, of all columns."""
        schedule = self.schedule
        key_blocks = -(-self.keys // schedule.key_block)
        return len(schedule.rows) * schedule.query_block, key_blocks * schedule.key_block


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Steps:
    """Tables over the P steps of the walk, n = B where they depend on the batch row, else 1."""

    rows: Array
    """[P] int32: block of queries."""
    columns: Array
    """[n, P] int32: block of keys to have in VMEM; the last one again where there is no work."""
    kinds: Array
    """[n, P] int32: bits FIRST, LAST, PARTIAL, RUN, DIAGONAL, EDGE."""
    prefixes: Array
    """[n] int32: prefix lengths; 0 where there are none."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Extras:
    """Scalars, ids and indices that go with q, k and v."""

    scale: Array
    """[1] float32"""
    sinks: Array | None = None
    """[H] float32"""
    slopes: Array | None = None
    """[H] float32: ALiBi's."""
    distances: Array | None = None
    """[H, 1, S + T] float32: what a relative bias adds where key index - query index is x - S."""
    q_segments: Array | None = None
    """[B, S] int32"""
    kv_segments: Array | None = None
    """[B, T] int32"""
    q_positions: Array | None = None
    """[B, S] int32"""
    kv_positions: Array | None = None
    """[B, T] int32, -1 where no query may look."""


def halved(static: Static) -> bool:
    """Whether blocks on the diagonal have nothing above it."""
    schedule, mask = static.schedule, static.mask
    square = schedule.query_block == schedule.key_block
    return mask.causal and square and not (static.prefix or static.positions)


def edge(static: Static) -> int:
    """How many blocks before the diagonal a window's far edge is a diagonal of blocks; else 0."""
    behind, rest = divmod(static.mask.window, static.schedule.key_block)
    return behind if halved(static) and not rest else 0


def spans(static: Static, most: int) -> list[Static]:
    """`static` for runs of whole columns of at most `most` keys each."""
    schedule = static.schedule
    step = max(1, most // schedule.key_block)
    cut = []
    for start in range(0, len(schedule.columns), step):
        stop = min(start + step, len(schedule.columns))
        kept = [
            [(j - start, part) for j, part in zip(row, partial) if start <= j < stop]
            for row, partial in zip(schedule.rows, schedule.partial)
        ]
        made = replace(
            schedule,
            rows=tuple(tuple(j for j, _ in row) for row in kept),
            partial=tuple(tuple(part for _, part in row) for row in kept),
            columns=schedule.columns[start:stop],
        )
        cut.append(replace(static, schedule=made, first_column=start))
    return cut


def make_steps(static: Static, extras: Extras, prefix_lengths: Array | None) -> Steps:
    """The walk over the schedule's blocks.

    A row of blocks without any still gets one step without work, which writes its zeros.
    """
    rows, columns, kinds = [], [], []
    for i, (row, partial) in enumerate(zip(static.schedule.rows, static.schedule.partial)):
        cuts = {}
        if halved(static):
            cuts[i - static.first_column] = DIAGONAL
        if edge(static):
            cuts[i - static.first_column - edge(static)] = EDGE
        steps = [RUN | PARTIAL * part | part * cuts.get(j, 0) for j, part in zip(row, partial)] or [
            0
        ]
        steps[0] |= FIRST
        steps[-1] |= LAST
        rows += [i] * len(steps)
        columns += row or (0,)
        kinds += steps
    rows, columns, kinds = (np.array(x, np.int32) for x in (rows, columns, kinds))
    meet = _meetings(static, extras, prefix_lengths, rows, columns)
    if meet is None:
        tables = jnp.asarray(columns[None]), jnp.asarray(kinds[None])
    else:
        work = meet & (kinds & RUN > 0)
        latest = lax.cummax(jnp.where(work, np.arange(len(rows)), 0), axis=1)
        tables = jnp.asarray(columns)[latest], jnp.where(work, kinds, kinds & ~RUN)
    count = len(tables[0])
    prefixes = jnp.zeros(count, jnp.int32) if prefix_lengths is None else prefix_lengths
    return Steps(jnp.asarray(rows), *tables, prefixes)


def _meetings(
    static: Static, extras: Extras, prefix_lengths: Array | None, rows: Array, columns: Array
) -> Array | None:
    """[B, P] bool: False where a block has nothing to compute; None where all have."""
    schedule, mask = static.schedule, static.mask
    top = jnp.iinfo(jnp.int32).max
    meet = []

    def of_rows(x):
        x = x.reshape(len(x), -1, schedule.query_block)
        return x.min(-1)[:, rows], x.max(-1)[:, rows]

    def of_columns(x, exists):
        x = x.reshape(len(x), -1, schedule.key_block)
        return jnp.where(exists(x), x, top).min(-1)[:, columns], x.max(-1)[:, columns]

    if extras.q_segments is not None:
        q_least, q_most = of_rows(extras.q_segments)
        k_least, k_most = of_columns(extras.kv_segments, lambda x: x != 0)
        meet.append((q_least <= k_most) & (k_least <= q_most))
    if static.positions:
        q_least, q_most = of_rows(extras.q_positions)
        k_least, k_most = of_columns(extras.kv_positions, lambda x: x >= 0)
        meet.append(k_most >= 0)
    else:
        block = schedule.query_block
        q_least, q_most = rows * block, (rows + 1) * block - 1
        k_least = (static.first_column + columns) * schedule.key_block
        k_most = k_least + schedule.key_block - 1
    if mask.causal and (static.positions or static.prefix):
        behind = k_least <= q_most
        meet.append(behind | (k_least < prefix_lengths[:, None]) if static.prefix else behind)
    if mask.window and static.positions:
        meet.append((q_least - k_most < mask.window) & (k_least - q_most < mask.window))
    return functools.reduce(jnp.logical_and, meet) if meet else None
