"""The bodies of the two TPU kernels of attention.

Both walk the blocks of `pallas_tpu_steps.py`, part by part (`pallas_tpu_block.run`). The backward
pass holds the gradients of the keys and values of one key/value head in VMEM while the rows and
query heads that read it go by, so that each score is computed once more and no partial sums travel
through HBM.

Row statistics of the forward pass are [rows, 128]: of the maximum, every lane is the same; of the
sum of weights, each lane holds a share, which are added up when a row is done. The backward pass
works on transposed scores [keys, queries], where statistics of queries are one row that broadcasts
for nothing.
"""

import math

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from jgpt.kernels.attention.pallas_tpu_block import (
    FORBIDDEN as FORBIDDEN,
)
from jgpt.kernels.attention.pallas_tpu_block import (
    LANES,
    LOG2_E,
    LOWEST,
    Block,
    gather,
    run,
)
from jgpt.kernels.attention.pallas_tpu_steps import FIRST, LAST, RUN, Static
from jgpt.typing import Array


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


def _shares(weights: Array) -> Array:
    """[rows, n] as [rows, LANES] whose lanes add up to the sum of a row."""
    width = weights.shape[1]
    if width % LANES:
        return jnp.broadcast_to(weights.sum(1, keepdims=True) / LANES, (len(weights), LANES))
    return sum(weights[:, start : start + LANES] for start in range(0, width, LANES))


def _as_row(x: Array) -> Array:
    """[rows, LANES] of equal lanes as [1, rows]: of each square, the diagonal."""
    if len(x) % LANES:
        return x.T[:1]
    squares = x.reshape(-1, LANES, LANES)
    below = lax.broadcasted_iota(jnp.int32, squares.shape, 1)
    across = lax.broadcasted_iota(jnp.int32, squares.shape, 2)
    rows = jnp.where(below == across, squares, 0).sum(1)
    return jnp.concatenate([rows[n : n + 1] for n in range(len(rows))], axis=1)


def _block(static: Static, refs: dict, head: Array, query_axis: int) -> tuple[Block, Array]:
    """The block of this grid step, and its kind."""
    batch, step = pl.program_id(0), pl.program_id(len(refs["grid"]) - 1)
    table = batch if refs["dynamic"] else 0

    def pair(of_queries: str, of_keys: str) -> tuple[Array, Array] | None:
        present = refs[of_queries] is not None
        return (refs[of_queries][...], refs[of_keys][...]) if present else None

    block = Block(
        static=static,
        row=refs["rows"][step],
        column=refs["columns"][table, step],
        prefix=refs["prefixes"][table],
        scale=refs["scale"][0],
        slope=refs["slopes"][head] if refs["slopes"] is not None else None,
        distances=refs["distances"],
        ids=pair("q_segments", "kv_segments"),
        positions=pair("q_positions", "kv_positions"),
        query_axis=query_axis,
        queries=slice(0, static.schedule.query_block),
        keys=slice(0, static.schedule.key_block),
    )
    return block, refs["kinds"][table, step]


def forward_kernel(static: Static, refs: dict) -> None:
    head = pl.program_id(1)
    block, kind = _block(static, refs, head, query_axis=0)
    highest, total, mixed = refs["highest"], refs["total"], refs["mixed"]
    lowest, nothing = LOWEST, 0.0
    if refs["sinks"] is not None:
        lowest, nothing = refs["sinks"][head] * LOG2_E, 1 / LANES
    begins = kind & FIRST > 0

    @pl.when(begins & (kind & RUN == 0))
    def _begin():
        highest[...] = jnp.full(highest.shape, lowest, jnp.float32)
        total[...] = jnp.full(total.shape, nothing, jnp.float32)
        mixed[...] = jnp.zeros(mixed.shape, jnp.float32)

    def multiply(part: Block) -> Array:
        return _dot(refs["q"][part.queries, :], refs["k"][part.keys, :], (1, 1))

    def finish(part: Block, masked: bool, products: Array) -> None:
        rows, v = part.queries, refs["v"][part.keys, :]
        logits, _ = part.logits(products, masked)
        old, old_total, old_mixed = highest[rows, :], total[rows, :], mixed[rows, :]
        if part.opens:
            # A row's first block finds what another row has left there. To choose as it is read is
            # for nothing beside the products; to write the beginnings first would not be.
            old = jnp.where(begins, lowest, old)
            old_total = jnp.where(begins, nothing, old_total)
            old_mixed = jnp.where(begins, 0.0, old_mixed)
        new = jnp.maximum(old, logits.max(1, keepdims=True))
        weights = jnp.exp2(logits - _across(new, logits.shape[1]))
        shrink = jnp.exp2(old - new)
        highest[rows, :] = new
        total[rows, :] = old_total * shrink + _shares(weights)
        product = _dot(weights.astype(v.dtype), v, (1, 0))
        mixed[rows, :] = old_mixed * _across(shrink, v.shape[1]) + product

    run(block, kind, multiply, finish)

    @pl.when(kind & LAST > 0)
    def _end():
        sums = jnp.broadcast_to(total[...].sum(1, keepdims=True), total.shape)
        divisor = jnp.where(sums == 0, 1, sums)
        out = refs["out"]
        out[...] = (mixed[...] / _across(divisor, out.shape[1])).astype(out.dtype)
        refs["normalizer"][...] = _as_row(highest[...] + jnp.log2(divisor))


def backward_kernel(static: Static, refs: dict) -> None:
    group, step = pl.program_id(2), pl.program_id(3)
    head = pl.program_id(1) * static.group + group
    block, kind = _block(static, refs, head, query_axis=1)
    dq = refs["dq_sum"]
    dslopes, ddistances = refs["dslopes"], refs["ddistances"]

    @pl.when((group == 0) & (step == 0))
    def _begin_head():
        refs["dk"][...] = jnp.zeros(refs["dk"].shape, jnp.float32)
        refs["dv"][...] = jnp.zeros(refs["dv"].shape, jnp.float32)

    if ddistances is not None:

        @pl.when(step == 0)
        def _begin_distances():
            ddistances[...] = jnp.zeros(ddistances.shape, jnp.float32)

    @pl.when(kind & FIRST > 0)
    def _begin():
        dq[...] = jnp.zeros(dq.shape, jnp.float32)
        if dslopes is not None:
            dslopes[...] = jnp.zeros(dslopes.shape, jnp.float32)

    def multiply(part: Block) -> tuple[Array, Array]:
        rows, columns = part.queries, part.keys
        scores = _dot(refs["k"][columns, :], refs["q"][rows, :], (1, 1))
        return scores, _dot(refs["v"][columns, :], refs["dout"][rows, :], (1, 1))

    def finish(part: Block, masked: bool, products: tuple[Array, Array]) -> None:
        rows, columns = part.queries, part.keys
        q, dout, k = refs["q"][rows, :], refs["dout"][rows, :], refs["k"][columns, :]
        scores, dprobabilities = products
        logits, slope = part.logits(scores, masked)
        probabilities = jnp.exp2(logits - refs["normalizer"][:, rows])
        size, block_size = part.size[1], static.schedule.key_block
        start = part.column * block_size + columns.start
        at = pl.ds(pl.multiple_of(start, math.gcd(columns.start, size, block_size)), size)
        refs["dv"][at, :] += _dot(probabilities.astype(dout.dtype), dout, (1, 0))
        ds = probabilities * (dprobabilities - refs["along"][:, rows])
        if dslopes is not None:
            dslopes[:, rows] -= (ds * part.distance()).sum(0, keepdims=True)
        if ddistances is not None:
            ddistances[:, part.window()] += gather(ds)
        if slope is not None:
            ds *= slope
        ds = ds.astype(q.dtype)
        refs["dk"][at, :] += _dot(ds, q, (1, 0))
        dq[rows, :] += _dot(ds, k, (0, 0))

    run(block, kind, multiply, finish)

    @pl.when(kind & LAST > 0)
    def _end():
        refs["dq"][...] = (dq[...] * refs["scale"][0]).astype(refs["dq"].dtype)
