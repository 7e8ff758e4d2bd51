"""The bodies of the three GPU kernels of attention (Dao 2023, section 3.1).

- forward: a block of queries stays, blocks of keys and values go by under an online softmax;
- dq: the same walk, scores recomputed from the saved log-sum-exp;
- dk and dv: a block of keys and values stays, blocks of queries go by, for each query head that
  reads this key/value head. Scores are transposed there, [keys, queries], so that the products
  with dout and q take them from registers, as the left operand.

The backward pass computes scores twice (seven products instead of five) and in exchange needs no
atomic sums: equal inputs give equal gradients. Logits are in base 2 inside (times log2 e), since
the hardware's exponential is 2**x. Arrays are whole in memory and masked where read: rows past the
end and columns past the width are 0, so nothing is padded outside.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton

from jgpt.kernels.attention.mask import structure
from jgpt.kernels.attention.pallas_gpu_walk import Tile
from jgpt.typing import Array, Mask

LOG2_E = math.log2(math.e)
FORBIDDEN = -1e30
LOWEST = -1e29
"""A row maximum never falls below this, so that 2**(FORBIDDEN - maximum) is 0."""


@dataclass(frozen=True)
class Static:
    """What is known when the program is made; `mask` has no arrays."""

    mask: Mask
    queries: int
    keys: int
    width: int
    value_width: int
    group: int
    softcap: float
    forward: Tile
    dq: Tile
    dkv: Tile
    interpret: bool


def _dot(static: Static, a: Array, b: Array, contract: tuple[int, int]) -> Array:
    """Product over one axis of each, accumulated in float32.

    float32 operands go through tensor cores in three TF32 products, which keeps 21 bits.
    """
    precision: Any = None
    if a.dtype == jnp.float32:
        exact = lax.Precision.HIGHEST
        precision = exact if static.interpret else lax.DotAlgorithmPreset.TF32_TF32_F32_X3
    dimensions = (((contract[0],), (contract[1],)), ((), ()))
    return lax.dot_general(
        a, b, dimensions, precision=precision, preferred_element_type=jnp.float32
    )


def _inside(start: Array, block: int, length: int) -> Array | None:
    """[block] bool: which of the positions from `start` on exist; None where all must."""
    return None if length % block == 0 else start + jnp.arange(block) < length


def _cells(inside: Array | None, block: int, padded: int, width: int) -> Array | None:
    """[block, padded] bool: which entries of a block of rows exist; None where all do."""
    columns = None if width == padded else jnp.arange(padded)[None] < width
    if inside is None:
        return None if columns is None else jnp.broadcast_to(columns, (block, padded))
    rows = jnp.broadcast_to(inside[:, None], (block, padded))
    return rows if columns is None else rows & columns


def _load(ref: Any, index: tuple, mask: Array | None, other: int = 0) -> Array:
    """`ref[index]`, `other` where the mask is False."""
    return ref[index] if mask is None else pltriton.load(ref.at[index], mask=mask, other=other)


@dataclass(frozen=True)
class _Span:
    """A block of positions of a sequence, and how to read what belongs to them."""

    start: Array
    block: int
    length: int

    def rows(self, ref: Any, width: int, head: Array | None = None) -> Array:
        """[block, padded width] of a whole sequence [length, (heads,) padded width]."""
        index = (pl.ds(self.start, self.block), *(() if head is None else (head,)), slice(None))
        inside = _inside(self.start, self.block, self.length)
        return _load(ref, index, _cells(inside, self.block, ref.shape[-1], width))

    def entries(self, ref: Any, head: Array | None = None, other: int = 0) -> Array:
        """[block] of a whole sequence [(heads,) length]."""
        index = (*(() if head is None else (head,)), pl.ds(self.start, self.block))
        return _load(ref, index, _inside(self.start, self.block, self.length), other)

    def own(self, ref: Any, width: int | None = None) -> Array:
        """The program's own block, [block, padded width] or [block]."""
        index = (slice(None),) * len(ref.shape)
        return _load(ref, index, self._mask(ref, width))

    def store(self, ref: Any, value: Array, width: int | None = None) -> None:
        """Writes the program's own block, less what does not exist."""
        pltriton.store(ref, value.astype(ref.dtype), mask=self._mask(ref, width))

    def _mask(self, ref: Any, width: int | None) -> Array | None:
        inside = _inside(self.start, self.block, self.length)
        return inside if width is None else _cells(inside, self.block, ref.shape[-1], width)


@dataclass(frozen=True)
class _Side:
    """The queries or the keys of a block of scores, [n, 1] or [1, n]."""

    index: Array
    """int32; -1 for an empty slot of a cache."""
    segments: Array | None


def _side(refs: dict, name: str, span: _Span, axis: int) -> _Side:
    """`name` is q or kv, `axis` the one along which they lie."""

    def along(x: Array) -> Array:
        return x[:, None] if axis == 0 else x[None, :]

    index, segments = refs[f"{name}_positions"], refs[f"{name}_segments"]
    index = span.start + jnp.arange(span.block) if index is None else span.entries(index, other=-1)
    return _Side(along(index), None if segments is None else along(span.entries(segments)))


@dataclass(frozen=True)
class _Scores:
    """What makes logits of products."""

    static: Static
    scale: Array
    slope: Array | None
    """ALiBi's."""
    prefix: Array | None
    cached: bool
    """Keys have positions of their own."""

    def logits(
        self, products: Array, query: _Side, key: _Side, masked: bool
    ) -> tuple[Array, Array | None]:
        """Base-2 logits of the products q . k, and the softcap's derivative there."""
        cap, bent = self.static.softcap, None
        if cap:
            tanh = _tanh(products * (self.scale * (1 / cap)))
            logits, bent = tanh * (cap * LOG2_E), 1 - tanh * tanh
        else:
            logits = products * (self.scale * LOG2_E)
        if self.slope is not None:
            logits -= (self.slope * LOG2_E) * _distance(query, key)
        allowed = self._allowed(query, key) if masked else []
        if allowed:
            logits = jnp.where(functools.reduce(jnp.logical_and, allowed), logits, FORBIDDEN)
        return logits, bent

    def _allowed(self, query: _Side, key: _Side) -> list[Array]:
        static = self.static
        parts = structure(static.mask, query.index, key.index, self.prefix)
        parts.append(key.index >= 0 if self.cached else key.index < static.keys)
        if query.segments is not None:
            parts += [query.segments == key.segments, key.segments != 0]
        return parts


def _scores(static: Static, refs: dict, head: Array | int = 0) -> _Scores:
    slopes, prefix = refs["slopes"], refs["prefix"]
    return _Scores(
        static=static,
        scale=refs["scale"][0],
        slope=None if slopes is None else slopes[head],
        prefix=None if prefix is None else prefix[0],
        cached=refs["kv_positions"] is not None,
    )


def _tanh(x: Array) -> Array:
    """From the hardware's exponential; its own tanh keeps only 11 bits."""
    return 1 - 2 / (1 + jnp.exp2(x * (2 * LOG2_E)))


def _distance(query: _Side, key: _Side) -> Array:
    return abs(query.index - key.index).astype(jnp.float32)


def _walk(refs: dict, visit: Callable[[Array, bool, Any], Any], state: Any) -> Any:
    """`state = visit(block, masked, state)` for the blocks of this program's line, in turn."""
    bounds, order = [refs["bounds"][i] for i in range(4)], refs["order"]
    for begin, end, wanted, masked in zip(
        bounds[:3], bounds[1:], refs["loops"], (True, False, True)
    ):

        def one_block(n, state, masked=masked):
            return visit(n if order is None else order[n], masked, state)

        if wanted:
            state = lax.fori_loop(begin, end, one_block, state)
    return state


def forward_kernel(static: Static, refs: dict) -> None:
    tile, scores = static.forward, _scores(static, refs)
    rows = _Span(refs["line"] * tile.query_block, tile.query_block, static.queries)
    query = _side(refs, "q", rows, 0)
    q = rows.own(refs["q"], static.width)

    def visit(block, masked, state):
        highest, total, mixed = state
        columns = _Span(block * tile.key_block, tile.key_block, static.keys)
        k = columns.rows(refs["k"], static.width)
        products = _dot(static, q, k, (1, 1))
        logits, _ = scores.logits(products, query, _side(refs, "kv", columns, 1), masked)
        new = jnp.maximum(highest, logits.max(1))
        weights = jnp.exp2(logits - new[:, None])
        shrink = jnp.exp2(highest - new)
        v = columns.rows(refs["v"], static.value_width)
        product = _dot(static, weights.astype(v.dtype), v, (1, 0))
        return new, total * shrink + weights.sum(1), mixed * shrink[:, None] + product

    highest = jnp.full(rows.block, LOWEST, jnp.float32)
    total = jnp.zeros(rows.block, jnp.float32)
    if refs["sinks"] is not None:
        highest = jnp.full(rows.block, refs["sinks"][0] * LOG2_E, jnp.float32)
        total = jnp.ones(rows.block, jnp.float32)
    mixed = jnp.zeros((rows.block, refs["v"].shape[1]), jnp.float32)
    highest, total, mixed = _walk(refs, visit, (highest, total, mixed))
    empty = total == 0
    divisor = jnp.where(empty, 1, total)
    rows.store(refs["out"], mixed / divisor[:, None], static.value_width)
    rows.store(refs["normalizer"], jnp.where(empty, LOWEST, highest + jnp.log2(divisor)))


def dq_kernel(static: Static, refs: dict) -> None:
    tile, scores = static.dq, _scores(static, refs)
    rows = _Span(refs["line"] * tile.query_block, tile.query_block, static.queries)
    query = _side(refs, "q", rows, 0)
    q, dout = rows.own(refs["q"], static.width), rows.own(refs["dout"], static.value_width)
    normalizer, along = rows.own(refs["normalizer"]), rows.own(refs["along"])

    def visit(block, masked, state):
        dq, dslope = state
        columns = _Span(block * tile.key_block, tile.key_block, static.keys)
        key = _side(refs, "kv", columns, 1)
        k = columns.rows(refs["k"], static.width)
        logits, bent = scores.logits(_dot(static, q, k, (1, 1)), query, key, masked)
        probabilities = jnp.exp2(logits - normalizer[:, None])
        v = columns.rows(refs["v"], static.value_width)
        ds = probabilities * (_dot(static, dout, v, (1, 1)) - along[:, None])
        if dslope is not None:
            dslope -= (ds * _distance(query, key)).sum(1)
        if bent is not None:
            ds *= bent
        return dq + _dot(static, ds.astype(k.dtype), k, (1, 0)), dslope

    dslope = None if refs["slopes"] is None else jnp.zeros(rows.block, jnp.float32)
    dq, dslope = _walk(refs, visit, (jnp.zeros(q.shape, jnp.float32), dslope))
    rows.store(refs["dq"], dq * scores.scale, static.width)
    # scores are scale * q . k: a row adds its q times dq, less the scale, to the scale's gradient
    rows.store(refs["dscale"], (dq * q.astype(jnp.float32)).sum(1))
    if dslope is not None:
        rows.store(refs["dslopes"], dslope)


def dkv_kernel(static: Static, refs: dict) -> None:
    tile = static.dkv
    columns = _Span(refs["line"] * tile.key_block, tile.key_block, static.keys)
    key = _side(refs, "kv", columns, 0)
    k, v = columns.own(refs["k"], static.width), columns.own(refs["v"], static.value_width)

    def one_head(head, state):
        scores = _scores(static, refs, head)

        def visit(block, masked, state):
            dk, dv = state
            rows = _Span(block * tile.query_block, tile.query_block, static.queries)
            q = rows.rows(refs["q"], static.width, head)
            products = _dot(static, k, q, (1, 1))
            logits, bent = scores.logits(products, _side(refs, "q", rows, 1), key, masked)
            normalizer = rows.entries(refs["normalizer"], head)
            probabilities = jnp.exp2(logits - normalizer[None, :])
            dout = rows.rows(refs["dout"], static.value_width, head)
            dv += _dot(static, probabilities.astype(dout.dtype), dout, (1, 0))
            along = rows.entries(refs["along"], head)
            ds = probabilities * (_dot(static, v, dout, (1, 1)) - along[None, :])
            if bent is not None:
                ds *= bent
            return dk + _dot(static, ds.astype(q.dtype), q, (1, 0)), dv

        return _walk(refs, visit, state)

    state = jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    # a loop, so that the size of the group does not multiply the code
    dk, dv = lax.fori_loop(0, static.group, one_head, state)
    columns.store(refs["dk"], dk * refs["scale"][0], static.width)
    columns.store(refs["dv"], dv, static.value_width)
