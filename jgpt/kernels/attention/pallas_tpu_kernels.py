"""The bodies of the two TPU kernels of attention, and the tables of the blocks that they visit.

The grid's last axis walks a flat list of the blocks (row, column) in which the mask can allow
something, row by row; what is not in the list is neither fetched nor computed. Both passes walk the
same list. The backward pass holds the gradients of all keys and values of one key/value head in
VMEM while the rows and query heads that read it go by, so that each score is computed once more and
no partial sums travel through HBM.

Logits are in base 2 inside (times log2 e), since the hardware's exponential is 2**x. Row statistics
of the forward pass are [rows, 128], every lane the same; the backward pass works on transposed
scores [keys, queries], where statistics of queries are one row that broadcasts for nothing.
"""

import functools
import math
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from jgpt.kernels.attention.mask import structure
from jgpt.kernels.attention.schedule import Schedule
from jgpt.typing import Array, Mask

LANES = 128
LOG2_E = math.log2(math.e)
FORBIDDEN = -1e30
DIAGONAL_PARTS = 4
"""Into so many parts a square on the diagonal is cut, which computes 5/8 of it."""
LOWEST = -1e29
"""A row maximum never falls below this, so that 2**(FORBIDDEN - maximum) is 0."""
FIRST, LAST, PARTIAL, RUN, DIAGONAL = 1, 2, 4, 8, 16
"""Bits of a step's kind: the row begins, it ends, the block needs its mask, there is work, and the
block is a square on the diagonal of a causal mask, of which the upper half is left out."""


@dataclass(frozen=True)
class Static:
    """What is known when the program is made.

    `mask` has no arrays, `prefix` says that it had prefix lengths, `keys` counts no padding.
    """

    schedule: Schedule
    mask: Mask
    prefix: bool
    keys: int
    group: int
    softcap: float
    vmem_bytes: int
    interpret: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Steps:
    """Tables over the P steps of the walk, n = B where they depend on the batch row, else 1."""

    rows: Array
    """[P] int32: block of queries."""
    columns: Array
    """[n, P] int32: block of keys to have in VMEM; the last one again where there is no work."""
    kinds: Array
    """[n, P] int32: bits FIRST, LAST, PARTIAL, RUN, DIAGONAL."""
    prefixes: Array
    """[n] int32: prefix lengths; 0 where there are none."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Extras:
    """Scalars and ids that go with q, k and v."""

    scale: Array
    """[1] float32"""
    sinks: Array | None
    """[H] float32"""
    slopes: Array | None
    """[H] float32: ALiBi's."""
    q_segments: Array | None
    """[B, S] int32"""
    kv_segments: Array | None
    """[B, T] int32"""


def make_steps(static: Static, extras: Extras, prefix_lengths: Array | None) -> Steps:
    """The walk over the schedule's blocks; segments and prefixes rule out more of them at run time.

    A row of blocks without any still gets one step without work, which writes its zeros.
    """
    rows, columns, kinds = [], [], []
    for i, (row, partial) in enumerate(zip(static.schedule.rows, static.schedule.partial)):
        steps = [
            RUN | PARTIAL * part | DIAGONAL * (_halved(static) and part and i == j)
            for j, part in zip(row, partial)
        ] or [0]
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


def _halved(static: Static) -> bool:
    """Whether blocks on the diagonal have nothing above it."""
    schedule = static.schedule
    return static.mask.causal and not static.prefix and schedule.query_block == schedule.key_block


def _meetings(
    static: Static, extras: Extras, prefix_lengths: Array | None, rows: Array, columns: Array
) -> Array | None:
    """[B, P] bool: False where a block has nothing to compute; None where all have."""
    meet = []
    if extras.q_segments is not None:
        schedule, top = static.schedule, jnp.iinfo(jnp.int32).max
        batch = len(extras.q_segments)
        q = extras.q_segments.reshape(batch, -1, schedule.query_block)
        k = extras.kv_segments.reshape(batch, -1, schedule.key_block)
        least = jnp.where(k == 0, top, k).min(-1)[:, columns]
        meet.append((q.min(-1)[:, rows] <= k.max(-1)[:, columns]) & (least <= q.max(-1)[:, rows]))
    if prefix_lengths is not None and static.mask.causal:
        schedule = static.schedule
        behind = columns * schedule.key_block < (rows + 1) * schedule.query_block
        meet.append(behind | (columns * schedule.key_block < prefix_lengths[:, None]))
    return functools.reduce(jnp.logical_and, meet) if meet else None


def _dot(a: Array, b: Array, contract: tuple[int, int]) -> Array:
    """Product over one axis of each, accumulated in float32."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    dimensions = (((contract[0],), (contract[1],)), ((), ()))
    return lax.dot_general(
        a, b, dimensions, precision=precision, preferred_element_type=jnp.float32
    )


def _across(x: Array, width: int) -> Array:
    """[rows, LANES] of equal lanes as [rows, width]."""
    if width % LANES == 0:
        return jnp.tile(x, (1, width // LANES))
    return x[:, :width] if width < LANES else jnp.broadcast_to(x[:, :1], (len(x), width))


@dataclass(frozen=True)
class _Block:
    """One block of scores inside of a kernel; `query_axis` is 0, or 1 for transposed scores."""

    static: Static
    row: Array
    column: Array
    prefix: Array
    scale: Array
    slope: Array | None
    q_segments: Array | None
    kv_segments: Array | None
    query_axis: int
    queries: slice
    keys: slice

    def part(self, queries: slice, keys: slice) -> "_Block":
        """The rectangle of these rows and columns."""
        q_ids, kv_ids = self.q_segments, self.kv_segments
        if q_ids is not None:
            q_ids = q_ids[(slice(None), queries) if self.query_axis else queries]
            kv_ids = kv_ids[keys if self.query_axis else (slice(None), keys)]
        return replace(self, queries=queries, keys=keys, q_segments=q_ids, kv_segments=kv_ids)

    def _indices(self) -> tuple[Array, Array]:
        schedule = self.static.schedule
        shape = (self.queries.stop - self.queries.start, self.keys.stop - self.keys.start)
        shape = shape[::-1] if self.query_axis else shape
        query = lax.broadcasted_iota(jnp.int32, shape, self.query_axis)
        key = lax.broadcasted_iota(jnp.int32, shape, 1 - self.query_axis)
        query += self.row * schedule.query_block + self.queries.start
        return query, key + (self.column * schedule.key_block + self.keys.start)

    def distance(self) -> Array:
        """|query index - key index| as float32."""
        query, key = self._indices()
        return abs(query - key).astype(jnp.float32)

    def logits(self, products: Array, partial: bool) -> tuple[Array, Array | None]:
        """Base-2 logits of the products q . k, and the softcap's derivative there."""
        cap, slope = self.static.softcap, None
        if cap:
            tanh = jnp.tanh(products * (self.scale * (1 / cap)))
            logits, slope = tanh * (cap * LOG2_E), 1 - tanh * tanh
        else:
            logits = products * (self.scale * LOG2_E)
        if self.slope is not None:
            logits -= (self.slope * LOG2_E) * self.distance()
        if partial:
            logits = jnp.where(self._allowed(), logits, FORBIDDEN)
        return logits, slope

    def _allowed(self) -> Array:
        query, key = self._indices()
        static = self.static
        prefix = self.prefix if static.prefix else None
        parts = structure(static.mask, query, key, prefix)
        if static.keys % static.schedule.key_block:
            parts.append(key < static.keys)
        if self.q_segments is not None:
            parts.append(self.q_segments == self.kv_segments)
            parts.append(jnp.broadcast_to(self.kv_segments != 0, query.shape))
        return functools.reduce(jnp.logical_and, parts)


def _block(static: Static, refs: dict, head: Array, query_axis: int) -> tuple[_Block, Array]:
    """The block of this grid step, and its kind."""
    batch, step = pl.program_id(0), pl.program_id(len(refs["grid"]) - 1)
    table = batch if refs["dynamic"] else 0
    segments = refs["q_segments"] is not None
    block = _Block(
        static=static,
        row=refs["rows"][step],
        column=refs["columns"][table, step],
        prefix=refs["prefixes"][table],
        scale=refs["scale"][0],
        slope=refs["slopes"][head] if refs["slopes"] is not None else None,
        q_segments=refs["q_segments"][...] if segments else None,
        kv_segments=refs["kv_segments"][...] if segments else None,
        query_axis=query_axis,
        queries=slice(0, static.schedule.query_block),
        keys=slice(0, static.schedule.key_block),
    )
    return block, refs["kinds"][table, step]


def _run(block: _Block, kind: Array, compute: Any) -> None:
    """`compute(part, partial)` for what a step has to compute, in the forms that the schedule has.

    A square on the diagonal goes in parts, `block.query_axis` of 0 cutting it into rows that end at
    the diagonal, 1 into columns that begin there.
    """
    static, size = block.static, block.queries.stop
    forms = {part for row in static.schedule.partial for part in row}
    wanted = RUN | PARTIAL | DIAGONAL
    for partial in sorted(forms):
        form = RUN | PARTIAL * partial

        @pl.when(kind & wanted == form)
        def _whole(partial=partial):
            compute(block, partial)

    if _halved(static):
        step = -(-size // (DIAGONAL_PARTS * LANES)) * LANES

        @pl.when(kind & wanted == wanted)
        def _diagonal():
            for start in range(0, size, step):
                stop = min(start + step, size)
                if block.query_axis:
                    compute(block.part(slice(start, size), slice(start, stop)), True)
                else:
                    compute(block.part(slice(start, stop), slice(0, stop)), True)


def forward_kernel(static: Static, refs: dict) -> None:
    head = pl.program_id(1)
    block, kind = _block(static, refs, head, query_axis=0)
    highest, total, mixed = refs["highest"], refs["total"], refs["mixed"]

    @pl.when(kind & FIRST > 0)
    def _begin():
        if refs["sinks"] is None:
            highest[...] = jnp.full(highest.shape, LOWEST, jnp.float32)
            total[...] = jnp.zeros(total.shape, jnp.float32)
        else:
            sink = refs["sinks"][head] * LOG2_E
            highest[...] = jnp.full(highest.shape, sink, jnp.float32)
            total[...] = jnp.ones(total.shape, jnp.float32)
        mixed[...] = jnp.zeros(mixed.shape, jnp.float32)

    def compute(part: _Block, partial: bool) -> None:
        rows, columns = part.queries, part.keys
        k, v = refs["k"][columns, :], refs["v"][columns, :]
        logits, _ = part.logits(_dot(refs["q"][rows, :], k, (1, 1)), partial)
        old = highest[rows, :]
        new = jnp.maximum(old, logits.max(1, keepdims=True))
        weights = jnp.exp2(logits - _across(new, logits.shape[1]))
        shrink = jnp.exp2(old - new)
        highest[rows, :] = new
        total[rows, :] = total[rows, :] * shrink + weights.sum(1, keepdims=True)
        product = _dot(weights.astype(v.dtype), v, (1, 0))
        mixed[rows, :] = mixed[rows, :] * _across(shrink, v.shape[1]) + product

    _run(block, kind, compute)

    @pl.when(kind & LAST > 0)
    def _end():
        empty = total[...] == 0
        divisor = jnp.where(empty, 1, total[...])
        out = refs["out"]
        out[...] = (mixed[...] / _across(divisor, out.shape[1])).astype(out.dtype)
        normalizer = jnp.where(empty, 0, highest[...] + jnp.log2(divisor))
        refs["normalizer"][...] = normalizer.T[:1]


def backward_kernel(static: Static, refs: dict) -> None:
    group, step = pl.program_id(2), pl.program_id(3)
    head = pl.program_id(1) * static.group + group
    block, kind = _block(static, refs, head, query_axis=1)
    dq = refs["dq_sum"]
    dslopes = refs["dslopes"]

    @pl.when((group == 0) & (step == 0))
    def _begin_head():
        refs["dk"][...] = jnp.zeros(refs["dk"].shape, jnp.float32)
        refs["dv"][...] = jnp.zeros(refs["dv"].shape, jnp.float32)

    @pl.when(kind & FIRST > 0)
    def _begin():
        dq[...] = jnp.zeros(dq.shape, jnp.float32)
        if dslopes is not None:
            dslopes[...] = jnp.zeros(dslopes.shape, jnp.float32)

    def compute(part: _Block, partial: bool) -> None:
        rows, columns = part.queries, part.keys
        q, dout = refs["q"][rows, :], refs["dout"][rows, :]
        k, v = refs["k"][columns, :], refs["v"][columns, :]
        logits, slope = part.logits(_dot(k, q, (1, 1)), partial)
        probabilities = jnp.exp2(logits - refs["normalizer"][:, rows])
        start = part.column * static.schedule.key_block + columns.start
        size = columns.stop - columns.start
        at = pl.ds(pl.multiple_of(start, math.gcd(size, static.schedule.key_block)), size)
        refs["dv"][at, :] += _dot(probabilities.astype(dout.dtype), dout, (1, 0))
        ds = probabilities * (_dot(v, dout, (1, 1)) - refs["along"][:, rows])
        if dslopes is not None:
            dslopes[:, rows] -= (ds * part.distance()).sum(0, keepdims=True)
        if slope is not None:
            ds *= slope
        ds = ds.astype(q.dtype)
        refs["dk"][at, :] += _dot(ds, q, (1, 0))
        dq[rows, :] += _dot(ds, k, (0, 0))

    _run(block, kind, compute)

    @pl.when(kind & LAST > 0)
    def _end():
        refs["dq"][...] = (dq[...] * refs["scale"][0]).astype(refs["dq"].dtype)
