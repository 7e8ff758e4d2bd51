"""The body of the TPU kernel that multiplies rows by rows, for the gradient of the matrices.

It walks the visits and moves its data as the kernel in `pallas_tpu_rows` does.
"""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jgpt.kernels.grouped_matmul.pallas_tpu_parts import Cut, dot, owned_rows, start_all, wait_all
from jgpt.kernels.grouped_matmul.pallas_tpu_visits import (
    FIRST_OF_GROUP,
    FIRST_OF_TILE,
    LAST_OF_GROUP,
)
from jgpt.typing import Array


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
        start_all(row_copies, 1, jnp.int32(0))

    def visit(step: Any, early: bool) -> None:
        group, tile, kind = refs["groups"][step], refs["tiles"][step], refs["kinds"][step]
        low, high = refs["lows"][step], refs["highs"][step]
        slot, new_tile = tile % 2, kind & FIRST_OF_TILE > 0
        first, last = kind & FIRST_OF_GROUP > 0, kind & LAST_OF_GROUP > 0
        whole = high - low == plan.tile

        @pl.when(new_tile & (tile < owned_tiles))
        def _rows_arrived():
            wait_all(row_copies(tile))

        @pl.when(new_tile & (tile + 1 < owned_tiles))
        def _fetch_rows():
            start_all(row_copies, 1, tile + 1)

        def products(piece: Any, part: Any) -> list[Array]:
            """[piece, F] of all rows of the tile, or of one part of them."""
            at = pl.ds(0, plan.tile) if part is None else plan.some.at(part)

            def read(buffer: Any, columns: Any) -> Array:
                found = buffer[slot, at, columns]
                if part is None:
                    return found
                owned = owned_rows(found.shape, at.start, low, high)
                return jnp.where(owned, found, jnp.zeros_like(found))

            left = read(buffers[0], plan.pieces.at(piece))
            return [dot(left, read(b, slice(None)), ((0,), (0,))) for b in buffers[1:]]

        if not early:

            @pl.when(last & (group > 0))
            def _the_one_before_left():
                for piece in range(plan.pieces.count):
                    wait_all(result_copies(group - 1, piece))

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
        wait_all(result_copies(refs["groups"][num_visits - 1], piece))
