"""The bodies of the TPU kernels of the grouped product.

`rows_kernel` multiplies tiles of rows by their groups' matrices: the product, its input gradient
(the same with each matrix read along its other axis) and the gated forms, which differ in what is
read and in what becomes of the sums. `weights_kernel` multiplies rows by rows, for the gradient of
the matrices. Both walk the visits of `pallas_tpu_visits` in one loop and move their data
themselves, double-buffered, because what has to be on the chip next depends on the data:

- A group's matrix is fetched once, while the group before it is computed, and stays for all of the
  group's tiles. Every multiplication has the whole contracted axis on the chip, so no sum travels.
- A tile's rows are fetched once; while two groups share a tile, it stays.
- The first matrix arrives in pieces, and each finished piece of a result leaves at once, so that
  the matrix unit waits little at both ends.

Two kernels in one file of over 400 lines, to be read side by side: they move data the same way.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jgpt.kernels.grouped_matmul.pallas_tpu_visits import (
    FIRST_OF_GROUP,
    FIRST_OF_TILE,
    LAST_OF_GROUP,
    LAST_OF_TILE,
    ODD,
)
from jgpt.typing import Array

PREPARED_ROWS = 16
"""Rows that are prepared at once: few enough for their numbers to stay in registers."""


UNROLLED = 4
"""Up to so many arrivals are written out one after the other."""


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


def _part(ref: Any, at: Any, axis: int) -> Any:
    return ref.at[at, :] if axis == 0 else ref.at[:, at]


def _start(copies: Callable[..., list], count: int, *where: Any) -> None:
    for index in range(count):
        for copy in copies(*where, index):
            copy.start()


def _wait(copies: list) -> None:
    for copy in copies:
        copy.wait()


def _owned(shape: tuple[int, ...], start: Any, low: Array, high: Array) -> Array:
    row = lax.broadcasted_iota(jnp.int32, shape, 0) + start
    return (row >= low) & (row < high)


@dataclass(frozen=True)
class RowsPlan:
    """What is known when a program is made."""

    tile: int
    """Rows of a tile."""
    some: Cut
    """Of a tile's rows, where only some of them are to compute."""
    chunks: Cut
    """Of the result's columns: what of a group's matrix is on the chip at once."""
    pieces: Cut
    """Of a chunk: what is multiplied at once."""
    arrivals: Cut
    """Of a chunk: what is waited for, and in the first visit multiplied, at once."""
    transposed: bool
    """Matrices are [columns of the result, contracted axis]."""
    finish: Callable[..., tuple[Array, ...]]
    """Makes results of the sums (float32), one for each matrix."""
    prepare: Callable[..., tuple[Array, ...]] | None = None
    """Makes, of what was fetched of a tile, the rows for each matrix, which are results too; None:
    what was fetched is multiplied by every matrix."""


def rows_kernel(plan: RowsPlan, refs: dict) -> None:
    """One chunk of columns of all rows.

    `refs`: the tables by their names in Visits; in HBM `rows` [N,K] each, `matrices` [E,K,C] or
    [E,C,K], `results` [N,C] and `prepared` [N,K]; in VMEM their buffers; semaphores.
    """
    chunk = pl.program_id(0)
    num_visits, owned_tiles = refs["counts"][0], refs["counts"][1]
    num_groups = refs["matrices"][0].shape[0]
    axis = 0 if plan.transposed else 1
    contract = ((1,), (1,)) if plan.transposed else ((1,), (0,))

    def matrix_copies(group: Array, slot: Array, arrival: Any) -> list:
        source, target = plan.chunks.at(chunk), plan.arrivals.at(arrival)
        return [
            pltpu.make_async_copy(
                _part(_part(matrix.at[group], source, axis), target, axis),
                _part(buffer.at[slot], target, axis),
                refs["matrix_arrived"].at[slot, i, arrival],
            )
            for i, (matrix, buffer) in enumerate(zip(refs["matrices"], refs["matrix_buffers"]))
        ]

    def row_copies(tile: Array, part: Any) -> list:
        at, slot = plan.some.at(part), tile % 2
        here = pl.ds(pl.multiple_of(tile * plan.tile + at.start, plan.some.step), plan.some.size)
        return [
            pltpu.make_async_copy(
                rows.at[here, :], buffer.at[slot, at, :], refs["rows_arrived"].at[slot, i, part]
            )
            for i, (rows, buffer) in enumerate(zip(refs["rows"], refs["row_buffers"]))
        ]

    def tile_at(tile: Array) -> Any:
        return pl.ds(pl.multiple_of(tile * plan.tile, plan.some.step), plan.tile)

    def result_copies(tile: Array, piece: Any) -> list:
        at, slot = plan.pieces.at(piece), tile % 2
        return [
            pltpu.make_async_copy(
                buffer.at[slot, :, at],
                _part(result.at[tile_at(tile), :], plan.chunks.at(chunk), 1).at[:, at],
                refs["results_left"].at[slot, i, piece],
            )
            for i, (result, buffer) in enumerate(zip(refs["results"], refs["result_buffers"]))
        ]

    def prepared_copies(tile: Array) -> list:
        return [
            pltpu.make_async_copy(buffer, result.at[tile_at(tile), :], refs["prepared_left"].at[i])
            for i, (result, buffer) in enumerate(zip(refs["prepared"], refs["prepared_buffers"]))
        ]

    @pl.when(owned_tiles > 0)
    def _begin():
        _start(row_copies, plan.some.count, jnp.int32(0))
        _start(matrix_copies, plan.arrivals.count, refs["groups"][0], jnp.int32(0))

    def visit(step: Any, early: bool) -> None:
        """`early`: the first one, which begins before everything has arrived."""
        group, tile, kind = refs["groups"][step], refs["tiles"][step], refs["kinds"][step]
        low, high = refs["lows"][step], refs["highs"][step]
        slot, matrix_slot = tile % 2, jnp.where(kind & ODD > 0, 1, 0)
        new_group = (kind & FIRST_OF_GROUP > 0) & (group < num_groups)
        new_tile, done = kind & FIRST_OF_TILE > 0, kind & LAST_OF_TILE > 0
        some, whole = high > low, high - low == plan.tile
        arriving = early and plan.prepare is None

        @pl.when(new_group & (refs["following"][step] < num_groups))
        def _fetch_matrix():
            _start(matrix_copies, plan.arrivals.count, refs["following"][step], 1 - matrix_slot)

        @pl.when(new_tile & (tile + 1 < owned_tiles))
        def _fetch_rows():
            _start(row_copies, plan.some.count, tile + 1)

        if not arriving:

            @pl.when(some & new_tile)
            def _rows_arrived():
                for part in range(plan.some.count):
                    _wait(row_copies(tile, part))
                if plan.prepare is not None:
                    prepare(tile, early)

        if not early:

            @pl.when(new_group)
            def _matrix_arrived():
                for arrival in range(plan.arrivals.count):
                    _wait(matrix_copies(group, matrix_slot, arrival))

        @pl.when(new_tile & ~whole)
        def _clear():
            for buffer in refs["result_buffers"]:
                buffer[slot] = jnp.zeros(buffer.shape[1:], buffer.dtype)

        def store(columns: Any, part: Any) -> None:
            """Results in these columns, of one part of the tile's rows or, for None, of all."""
            at = pl.ds(0, plan.tile) if part is None else plan.some.at(part)
            if plan.prepare is None:
                rows = [refs["row_buffers"][0][slot, at, :]] * len(refs["matrices"])
            else:
                rows = [buffer[at, :] for buffer in refs["prepared_buffers"]]
            matrices = [
                _part(b.at[matrix_slot], columns, axis)[...] for b in refs["matrix_buffers"]
            ]
            results = plan.finish(*(_dot(a, b, contract) for a, b in zip(rows, matrices)))
            for result, buffer in zip(results, refs["result_buffers"]):
                result = result.astype(buffer.dtype)
                if part is not None:
                    owned = _owned(result.shape, at.start, low, high)
                    result = jnp.where(owned, result, buffer[slot, at, columns])
                buffer[slot, at, columns] = result

        def leave(piece: Any) -> None:
            if not early:

                @pl.when(tile > 0)
                def _the_one_before_left():
                    _wait(result_copies(tile - 1, piece))

            for copy in result_copies(tile, piece):
                copy.start()

        if early:

            @pl.when(some)
            def _as_it_arrives():
                def column(arrival: Any, first: bool) -> None:
                    _wait(matrix_copies(group, matrix_slot, arrival))

                    @pl.loop(0, plan.some.count)
                    def _part(part: Array):
                        if first and arriving:
                            _wait(row_copies(tile, part))
                        store(plan.arrivals.at(arrival), part)

                column(0, first=True)
                rest = pl.loop(1, plan.arrivals.count, unroll=plan.arrivals.count <= UNROLLED)
                rest(lambda arrival: column(arrival, first=False))

            @pl.when(done)
            def _leave():
                for piece in range(plan.pieces.count):
                    leave(piece)

        else:

            @pl.loop(0, plan.pieces.count)
            def _piece(piece: Array):
                columns = plan.pieces.at(piece)

                @pl.when(whole)
                def _all():
                    store(columns, None)

                @pl.when(some & ~whole)
                def _parts():
                    first, behind = low // plan.some.size, -(-high // plan.some.size)
                    pl.loop(first, behind)(lambda part: store(columns, part))

                pl.when(done)(lambda: leave(piece))

    def prepare(tile: Array, early: bool) -> None:
        if not early:

            @pl.when((tile > 0) & (chunk == 0))
            def _the_one_before_left():
                _wait(prepared_copies(tile - 1))

        size = min(plan.tile, PREPARED_ROWS)

        @pl.loop(0, plan.tile // size)
        def _rows(index: Array):
            at = pl.ds(pl.multiple_of(index * size, size), size)
            made = plan.prepare(*(buffer[tile % 2, at, :] for buffer in refs["row_buffers"]))
            for rows, buffer in zip(made, refs["prepared_buffers"]):
                buffer[at, :] = rows.astype(buffer.dtype)

        @pl.when(chunk == 0)
        def _leave():
            for copy in prepared_copies(tile):
                copy.start()

    visit(0, early=True)
    lax.fori_loop(1, num_visits, lambda step, _: visit(step, early=False), None)
    for piece in range(plan.pieces.count):
        _wait(result_copies(refs["tiles"][num_visits - 1], piece))

    @pl.when((owned_tiles > 0) & (chunk == 0))
    def _prepared_left():
        _wait(prepared_copies(owned_tiles - 1))


def _dot(a: Array, b: Array, contract: tuple) -> Array:
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return lax.dot_general(
        a, b, (contract, ((), ())), precision=precision, preferred_element_type=jnp.float32
    )


@dataclass(frozen=True)
class WeightsPlan:
    """What is known when a program is made."""

    tile: int
    some: Cut
    """As in RowsPlan."""
    lefts: Cut
    """Of the left rows' columns, which are the results' rows."""
    rights: Cut
    """Of the right rows' columns."""
    pieces: Cut
    """Of a part of `lefts`: what is multiplied at once."""


def weights_kernel(plan: WeightsPlan, refs: dict) -> None:
    """One rectangle of every group's result: left rows transposed times right rows.

    `refs`: the tables, of visits that include empty groups; in HBM `left` [N,D], `rights` [N,F]
    each and `results` [E,D,F]; in VMEM buffers of tiles [2, ...], `sums` in float32 and `finished`
    in the results' dtype; semaphores. Sums of a group that lies in one tile skip `sums`.
    """
    here = plan.lefts.at(pl.program_id(0)), plan.rights.at(pl.program_id(1))
    num_visits, owned_tiles = refs["counts"][0], refs["counts"][1]
    rows = [*refs["left"], *refs["rights"]]
    buffers = [*refs["left_buffer"], *refs["right_buffers"]]
    columns = [here[0], *[here[1]] * len(refs["rights"])]

    def row_copies(tile: Array, _: Any = None) -> list:
        at = pl.ds(pl.multiple_of(tile * plan.tile, plan.some.step), plan.tile)
        return [
            pltpu.make_async_copy(
                source.at[at, of], buffer.at[tile % 2], refs["rows_arrived"].at[tile % 2, i]
            )
            for i, (source, buffer, of) in enumerate(zip(rows, buffers, columns))
        ]

    def result_copies(group: Array, piece: Any) -> list:
        at = plan.pieces.at(piece)
        return [
            pltpu.make_async_copy(
                buffer.at[at, :],
                result.at[group, here[0], here[1]].at[at, :],
                refs["results_left"].at[i, piece],
            )
            for i, (result, buffer) in enumerate(zip(refs["results"], refs["finished"]))
        ]

    @pl.when(owned_tiles > 0)
    def _begin():
        _start(row_copies, 1, jnp.int32(0))

    def visit(step: Any, early: bool) -> None:
        group, tile, kind = refs["groups"][step], refs["tiles"][step], refs["kinds"][step]
        low, high = refs["lows"][step], refs["highs"][step]
        slot, new_tile = tile % 2, kind & FIRST_OF_TILE > 0
        first, last = kind & FIRST_OF_GROUP > 0, kind & LAST_OF_GROUP > 0
        whole = high - low == plan.tile

        @pl.when(new_tile & (tile < owned_tiles))
        def _rows_arrived():
            _wait(row_copies(tile))

        @pl.when(new_tile & (tile + 1 < owned_tiles))
        def _fetch_rows():
            _start(row_copies, 1, tile + 1)

        def products(piece: Any, part: Any) -> list[Array]:
            """[piece, F] of all rows of the tile, or of one part of them."""
            at = pl.ds(0, plan.tile) if part is None else plan.some.at(part)

            def read(buffer: Any, columns: Any) -> Array:
                found = buffer[slot, at, columns]
                if part is None:
                    return found
                owned = _owned(found.shape, at.start, low, high)
                return jnp.where(owned, found, jnp.zeros_like(found))

            left = read(buffers[0], plan.pieces.at(piece))
            return [_dot(left, read(b, slice(None)), ((0,), (0,))) for b in buffers[1:]]

        if not early:

            @pl.when(last & (group > 0))
            def _the_one_before_left():
                for piece in range(plan.pieces.count):
                    _wait(result_copies(group - 1, piece))

        def leave(piece: Any, values: list[Array]) -> None:
            for value, buffer in zip(values, refs["finished"]):
                buffer[plan.pieces.at(piece), :] = value.astype(buffer.dtype)
            for copy in result_copies(group, piece):
                copy.start()

        @pl.loop(0, plan.pieces.count)
        def _piece(piece: Array):
            at = plan.pieces.at(piece)

            @pl.when(whole & first & last)
            def _at_once():
                leave(piece, products(piece, None))

            @pl.when(~(whole & first & last))
            def _step_by_step():
                @pl.when(first)
                def _clear():
                    for total in refs["sums"]:
                        total[at, :] = jnp.zeros((plan.pieces.size, total.shape[1]), total.dtype)

                def add(part: Any) -> None:
                    for value, total in zip(products(piece, part), refs["sums"]):
                        total[at, :] += value

                pl.when(whole)(lambda: add(None))

                @pl.when((high > low) & ~whole)
                def _parts():
                    pl.loop(low // plan.some.size, -(-high // plan.some.size))(add)

                pl.when(last)(lambda: leave(piece, [total[at, :] for total in refs["sums"]]))

    visit(0, early=True)
    lax.fori_loop(1, num_visits, lambda step, _: visit(step, early=False), None)
    for piece in range(plan.pieces.count):
        _wait(result_copies(refs["groups"][num_visits - 1], piece))
