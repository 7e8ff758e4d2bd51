"""The body of the TPU kernel that multiplies tiles of rows by their groups' matrices: the product,
its input gradient (the same with each matrix read along its other axis) and the gated forms, which
differ in what is read and in what becomes of the sums.

It walks the visits of `pallas_tpu_visits` in one loop and moves its data itself, double-buffered,
because what has to be on the chip next depends on the data; so does `pallas_tpu_weights`:

- A group's matrix is fetched once, while the group before it is computed, and stays for all of the
  group's tiles. Every multiplication has the whole contracted axis on the chip, so no sum travels.
- A tile's rows are fetched once; while two groups share a tile, it stays.
- The first matrix arrives in pieces, and each finished piece of a result leaves at once, so that
  the matrix unit waits little at both ends.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jgpt.kernels.grouped_matmul.pallas_tpu_parts import (
    Cut,
    dot,
    owned_rows,
    part_of,
    start_all,
    wait_all,
)
from jgpt.kernels.grouped_matmul.pallas_tpu_visits import (
    FIRST_OF_GROUP,
    FIRST_OF_TILE,
    LAST_OF_TILE,
    ODD,
)
from jgpt.typing import Array

PREPARED_ROWS = 16
"""Rows that are prepared at once: few enough for their numbers to stay in registers."""
UNROLLED = 4
"""Up to so many arrivals are written out one after the other."""


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
                part_of(part_of(matrix.at[group], source, axis), target, axis),
                part_of(buffer.at[slot], target, axis),
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
                part_of(result.at[tile_at(tile), :], plan.chunks.at(chunk), 1).at[:, at],
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
        start_all(row_copies, plan.some.count, jnp.int32(0))
        start_all(matrix_copies, plan.arrivals.count, refs["groups"][0], jnp.int32(0))

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
            start_all(matrix_copies, plan.arrivals.count, refs["following"][step], 1 - matrix_slot)

        @pl.when(new_tile & (tile + 1 < owned_tiles))
        def _fetch_rows():
            start_all(row_copies, plan.some.count, tile + 1)

        if not arriving:

            @pl.when(some & new_tile)
            def _rows_arrived():
                for part in range(plan.some.count):
                    wait_all(row_copies(tile, part))
                if plan.prepare is not None:
                    prepare(tile, early)

        if not early:

            @pl.when(new_group)
            def _matrix_arrived():
                for arrival in range(plan.arrivals.count):
                    wait_all(matrix_copies(group, matrix_slot, arrival))

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
                part_of(b.at[matrix_slot], columns, axis)[...] for b in refs["matrix_buffers"]
            ]
            results = plan.finish(*(dot(a, b, contract) for a, b in zip(rows, matrices)))
            for result, buffer in zip(results, refs["result_buffers"]):
                result = result.astype(buffer.dtype)
                if part is not None:
                    owned = owned_rows(result.shape, at.start, low, high)
                    result = jnp.where(owned, result, buffer[slot, at, columns])
                buffer[slot, at, columns] = result

        def leave(piece: Any) -> None:
            if not early:

                @pl.when(tile > 0)
                def _the_one_before_left():
                    wait_all(result_copies(tile - 1, piece))

            for copy in result_copies(tile, piece):
                copy.start()

        if early:

            @pl.when(some)
            def _as_it_arrives():
                def column(arrival: Any, first: bool) -> None:
                    wait_all(matrix_copies(group, matrix_slot, arrival))

                    @pl.loop(0, plan.some.count)
                    def part_of(part: Array):
                        if first and arriving:
                            wait_all(row_copies(tile, part))
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
                wait_all(prepared_copies(tile - 1))

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
        wait_all(result_copies(refs["tiles"][num_visits - 1], piece))

    @pl.when((owned_tiles > 0) & (chunk == 0))
    def _prepared_left():
        wait_all(prepared_copies(owned_tiles - 1))
