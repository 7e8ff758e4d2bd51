"""One block of scores inside of attention's TPU kernels: its logits, its mask, its bias.

Logits are in base 2 (times log2 e), since the hardware's exponential is 2**x.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jgpt.kernels.attention.mask import structure
from jgpt.kernels.attention.pallas_tpu_steps import (
    DIAGONAL,
    EDGE,
    PARTIAL,
    RUN,
    Static,
    edge,
    halved,
)
from jgpt.typing import Array

LANES, SUBLANES = 128, 8
LOG2_E = math.log2(math.e)
FORBIDDEN = -1e30
DIAGONAL_BANDS = 4
"""Into so many bands a square on the diagonal is cut, which computes 5/8 of it."""
LOWEST = -1e29
"""A row maximum never falls below this, so that 2**(FORBIDDEN - maximum) is 0."""


@dataclass(frozen=True)
class Block:
    """A rectangle of scores; `query_axis` is 0, or 1 for transposed scores.

    `queries` and `keys` are slices of the block that is in VMEM; ids and positions, of the
    rectangle, are columns [n, 1] along axis 0 and rows [1, n] along axis 1.
    """

    static: Static
    row: Array
    column: Array
    prefix: Array
    scale: Array
    slope: Array | None
    distances: Any
    """Ref of a relative bias: [1, S + T] by index of axis 1 minus index of axis 0."""
    ids: tuple[Array, Array] | None
    """Segment ids of queries and keys."""
    positions: tuple[Array, Array] | None
    query_axis: int
    queries: slice
    keys: slice
    opens: bool = True
    """Whether it is the first piece of its queries in the block."""

    @property
    def size(self) -> tuple[int, int]:
        """Queries and keys."""
        return self.queries.stop - self.queries.start, self.keys.stop - self.keys.start

    @property
    def shape(self) -> tuple[int, int]:
        return self.size[::-1] if self.query_axis else self.size

    def part(self, queries: slice, keys: slice, opens: bool = True) -> "Block":
        """The rectangle of these rows and columns."""
        cut = functools.partial(self._cut, queries=queries, keys=keys)
        ids, positions = cut(self.ids), cut(self.positions)
        return replace(self, queries=queries, keys=keys, ids=ids, positions=positions, opens=opens)

    def _cut(self, pair: tuple[Array, Array] | None, queries: slice, keys: slice) -> Any:
        if pair is None:
            return None
        of_queries, of_keys = pair
        if self.query_axis:
            return of_queries[:, queries], of_keys[keys]
        return of_queries[queries], of_keys[:, keys]

    def parts(self, cut: int) -> list["Block"]:
        """Pieces in the order of computing; where the block is cut (DIAGONAL, EDGE), those that
        have a pair key <= query, or key > query.

        A band of queries (in the backward pass, of keys) is finished before the next one.
        """
        blocks, (queries, keys) = self.static.blocks, self.size
        rows, columns = blocks.backward_part if self.query_axis else blocks.forward_part
        if cut:
            band = max(LANES, queries // DIAGONAL_BANDS // LANES * LANES)
            rows, columns = (
                (rows, min(columns, band)) if self.query_axis else (min(rows, band), columns)
            )
        pieces = []
        if self.query_axis:
            for of_keys in _runs(0, keys, columns):
                first = of_keys.start if cut == DIAGONAL else 0
                last = of_keys.stop if cut == EDGE else queries
                pieces += [self.part(run, of_keys) for run in _runs(first, last, rows)]
        else:
            for of_queries in _runs(0, queries, rows):
                first = of_queries.start if cut == EDGE else 0
                last = of_queries.stop if cut == DIAGONAL else keys
                runs = _runs(first, last, columns)
                pieces += [self.part(of_queries, run, run.start == first) for run in runs]
        return pieces

    def within(self, cut: int) -> "Block":
        """Without the parts of the mask that allow all of a block that is cut."""
        mask = self.static.mask
        if cut == DIAGONAL and mask.window >= max(self.size):
            mask = replace(mask, window=0)
        if cut == EDGE:
            mask = replace(mask, causal=False)
        return replace(self, static=replace(self.static, mask=mask))

    def below_diagonal(self) -> bool:
        """Whether a piece of a block on the diagonal needs no mask."""
        mask = self.static.mask
        plain = self.ids is None and not (mask.window or mask.block_size)
        return plain and self.keys.stop <= self.queries.start + 1

    def first_key(self) -> Array:
        schedule = self.static.schedule
        return (self.column + self.static.first_column) * schedule.key_block + self.keys.start

    def first_query(self) -> Array:
        return self.row * self.static.schedule.query_block + self.queries.start

    def _indices(self) -> tuple[Array, Array]:
        """Of queries and of keys, in shapes that broadcast."""
        if self.positions is not None:
            return self.positions
        query = lax.broadcasted_iota(jnp.int32, self.shape, self.query_axis)
        key = lax.broadcasted_iota(jnp.int32, self.shape, 1 - self.query_axis)
        return query + self.first_query(), key + self.first_key()

    def distance(self) -> Array:
        """|query index - key index| as float32."""
        query, key = self._indices()
        return abs(query - key).astype(jnp.float32)

    def logits(self, products: Array, masked: bool) -> tuple[Array, Array | None]:
        """Base-2 logits of the products q . k, and the softcap's derivative there."""
        cap, slope = self.static.softcap, None
        if cap:
            tanh = jnp.tanh(products * (self.scale * (1 / cap)))
            logits, slope = tanh * (cap * LOG2_E), 1 - tanh * tanh
        else:
            logits = products * (self.scale * LOG2_E)
        if self.slope is not None:
            logits -= (self.slope * LOG2_E) * self.distance()
        if self.distances is not None:
            window = self.distances[:, self.window()] * LOG2_E
            logits += spread(window, self.shape)
        if masked:
            logits = jnp.where(self._allowed(), logits, FORBIDDEN)
        return logits, slope

    def _allowed(self) -> Array:
        query, key = self._indices()
        static = self.static
        parts = structure(static.mask, query, key, self.prefix if static.prefix else None)
        if self.positions is not None:
            parts.append(key >= 0)
        elif static.keys % static.schedule.key_block:
            parts.append(key < static.keys)
        if self.ids is not None:
            of_queries, of_keys = self.ids
            parts += [of_queries == of_keys, of_keys != 0]
        shape = self.shape
        return functools.reduce(jnp.logical_and, (jnp.broadcast_to(x, shape) for x in parts))

    def window(self) -> Any:
        """The entries of `distances` that this piece reads: one before its least difference, and
        from there as many as it has rows and columns."""
        first = (self.first_query(), self.first_key())
        across, down = first[1 - self.query_axis], first[self.query_axis]
        rows, columns = self.shape
        schedule = self.static.schedule
        start = across - down - rows + self.static.padded[self.query_axis]
        step = math.gcd(rows, columns, schedule.query_block, schedule.key_block, LANES)
        return pl.ds(pl.multiple_of(start, step), rows + columns)


def _runs(first: int, last: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, last)) for start in range(first, last, step)]


def spread(window: Array, shape: tuple[int, int]) -> Array:
    """[1, rows + columns] as [rows, columns], entry (r, c) being window[rows + c - r].

    Rows are doubled, the new ones moved by as many lanes as they lie below the old ones.
    """
    rows, columns = shape
    width = rows + columns
    level = jnp.broadcast_to(window, (min(rows, SUBLANES), width))
    below = lax.broadcasted_iota(jnp.int32, level.shape, 0)
    for step in (1, 2, 4):
        level = jnp.where(below & step > 0, _roll(level, step), level)
    while len(level) < rows:
        level = jnp.concatenate([level, _roll(level, len(level))[: rows - len(level)]])
    return _roll(level, columns)[:, :columns]


def gather(block: Array) -> Array:
    """The sums along diagonals of [rows, columns], [1, rows + columns]: `spread`'s transpose."""
    rows, columns = block.shape
    width = rows + columns
    level = jnp.concatenate([block, jnp.zeros((rows, rows), block.dtype)], axis=1)
    level = _roll(level, width - columns)
    while len(level) > SUBLANES:
        half = SUBLANES
        while 2 * half < len(level):
            half *= 2
        moved = _roll(level[half:], width - half)
        if len(moved) < half:
            moved = jnp.concatenate([moved, jnp.zeros((half - len(moved), width), block.dtype)])
        level = level[:half] + moved
    below = lax.broadcasted_iota(jnp.int32, level.shape, 0)
    for step in (1, 2, 4):
        level = jnp.where(below & step > 0, _roll(level, width - step), level)
    return level.sum(0, keepdims=True)


def _roll(x: Array, lanes: int) -> Array:
    return pltpu.roll(x, lanes % x.shape[1], 1)


def run(
    block: Block,
    kind: Array,
    multiply: Callable[[Block], Any],
    finish: Callable[[Block, bool, Any], None],
) -> None:
    """What a step has to compute, in the forms that the schedule has.

    `finish(part, masked, multiply(part))` for each part, each part's products before the end of
    the part in front of it: the matrix unit then works while the vector unit takes exponentials.
    """
    static = block.static

    def pipeline(cut: int, partial: bool) -> None:
        parts = block.within(cut).parts(cut)
        ahead = multiply(parts[0])
        for part, following in zip(parts, [*parts[1:], None]):
            products = ahead
            ahead = None if following is None else multiply(following)
            masked = partial and not (cut == DIAGONAL and part.below_diagonal())
            finish(part, masked, products)

    def where(partial: bool, cut: int) -> None:
        kinds, wanted = RUN | PARTIAL | DIAGONAL | EDGE, RUN | PARTIAL * partial | cut
        pl.when(kind & kinds == wanted)(functools.partial(pipeline, cut, partial))

    for partial in sorted({part for row in static.schedule.partial for part in row}):
        where(partial, 0)
    if halved(static):
        where(True, DIAGONAL)
    if edge(static):
        where(True, EDGE)
