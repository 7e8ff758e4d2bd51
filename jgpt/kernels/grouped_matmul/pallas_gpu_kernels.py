"""The two GPU kernels of the grouped product, and the table that tells programs their rows."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton

from jgpt.typing import Array

BAND = 8
"""Tiles of rows that are walked together, so that what they read is still in the L2 cache."""
WHOLE = pl.BlockSpec(memory_space=pl.ANY)


class Tile(NamedTuple):
    """Of the result, and of the axis that is summed over; powers of 2."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


def row_tiles(group_sizes: Array, num_rows: int, height: int) -> Array:
    """[tiles, 3] int32: group, first row and end of the group's rows, for each tile of rows.

    Rows past the last group form a group of their own, number E, whose tiles are written as zeros.
    The number of tiles is that of the worst sizes; what is left over has no rows.
    """
    group_sizes = group_sizes.astype(jnp.int32)
    sizes = jnp.append(group_sizes, num_rows - group_sizes.sum())
    counts = -(-sizes // height)
    last_tiles, last_rows = jnp.cumsum(counts), jnp.cumsum(sizes)
    tile = jnp.arange(num_rows // height + len(sizes), dtype=jnp.int32)
    group = jnp.searchsorted(last_tiles, tile, side="right").astype(jnp.int32)
    at = jnp.minimum(group, len(group_sizes))
    first = (last_rows - sizes)[at] + (tile - (last_tiles - counts)[at]) * height
    exists = group < len(sizes)
    first, end = (jnp.where(exists, x, num_rows) for x in (first, last_rows[at]))
    return jnp.stack([at, first, end], axis=1).astype(jnp.int32)


def _dot(a: Array, b: Array, contract: tuple[int, int], interpret: bool) -> Array:
    """Product over one axis of each, accumulated in float32.

    float32 operands go through tensor cores in three TF32 products, which keeps 21 bits.
    """
    precision: Any = None
    if a.dtype == jnp.float32:
        exact = lax.Precision.HIGHEST
        precision = exact if interpret else lax.DotAlgorithmPreset.TF32_TF32_F32_X3
    dimensions = (((contract[0],), (contract[1],)), ((), ()))
    return lax.dot_general(
        a, b, dimensions, precision=precision, preferred_element_type=jnp.float32
    )


def _inside(start: Array, size: int, end: int | Array) -> Array | None:
    """[size] bool: which of the positions from `start` on lie before `end`; None where all must."""
    if isinstance(end, int) and end % size == 0:
        return None
    return start + jnp.arange(size) < end


def _both(rows: Array | None, columns: Array | None, shape: tuple[int, int]) -> Array | None:
    parts = [] if rows is None else [jnp.broadcast_to(rows[:, None], shape)]
    parts += [] if columns is None else [jnp.broadcast_to(columns[None], shape)]
    return None if not parts else parts[0] if len(parts) == 1 else parts[0] & parts[1]


def _load(ref: Any, index: tuple, mask: Array | None) -> Array:
    """`ref[index]`, 0 where the mask is False."""
    return ref[index] if mask is None else pltriton.load(ref.at[index], mask=mask, other=0)


def _in_bands(program: Array, rows: int, columns: int) -> tuple[Array, Array]:
    """(row, column) of a tile: bands of BAND rows of tiles, each walked column by column."""
    first = lax.div(program, BAND * columns) * BAND
    height = jnp.minimum(rows - first, BAND)
    within = lax.rem(program, BAND * columns)
    return first + lax.rem(within, height), lax.div(within, height)


def products(
    name: str,
    tile: Tile,
    group_sizes: Array,
    terms: list[tuple[Array, tuple[Array, ...]]],
    finish: Callable[..., tuple[Array, ...]],
    results: int,
    transposed: bool = False,
    interpret: bool = False,
) -> list[Array]:
    """Grouped products, added up term by term in registers, then `finish`ed.

    Args:
        name: of the kernel.
        tile: what a program computes.
        group_sizes: [E].
        terms: each is rows [N, a] and weights [E, a, b]; the product with the i-th of them is added
            to sum i. With `transposed`, weights are [E, b, a].
        finish: takes the float32 sums of a tile and gives its results; zeros must give zeros.
        results: how many it gives.
        transposed: see there.
        interpret: runs on any device.

    Returns:
        `results` arrays [N, b] in the rows' dtype, 0 past the last group.
    """
    (first_rows, first_weights), sums = terms[0], len(terms[0][1])
    (num_rows, depth), num_groups = first_rows.shape, len(group_sizes)
    width = first_weights[0].shape[1 if transposed else 2]
    tiles = row_tiles(group_sizes, num_rows, tile.rows)
    across = pl.cdiv(width, tile.columns)
    operands, layout = jax.tree.flatten(terms)

    def kernel(tiles_ref, *refs):
        inputs, outputs = refs[: len(operands)], refs[len(operands) :]
        row, column = _in_bands(pl.program_id(0), len(tiles), across)
        group, first, end = (tiles_ref[row, i] for i in range(3))
        at_column = column * tile.columns
        columns = _inside(at_column, tile.columns, width)
        rows = _inside(first, tile.rows, end)

        def weights(ref: Any, at: Array, inner: Array | None) -> Array:
            if transposed:
                here = pl.ds(at_column, tile.columns), pl.ds(at, tile.depth)
                mask = _both(columns, inner, (tile.columns, tile.depth))
            else:
                here = pl.ds(at, tile.depth), pl.ds(at_column, tile.columns)
                mask = _both(inner, columns, (tile.depth, tile.columns))
            return _load(ref, (group, *here), mask)

        # rows of no group are written as zeros, without a step
        steps = jnp.where(group < num_groups, jnp.int32(pl.cdiv(depth, tile.depth)), jnp.int32(0))
        zero = jnp.zeros((tile.rows, tile.columns), jnp.float32)
        totals = (zero,) * sums
        for rows_ref, weight_refs in jax.tree.unflatten(layout, inputs):

            def step(n, totals, rows_ref=rows_ref, weight_refs=weight_refs):
                at = n * tile.depth
                inner = _inside(at, tile.depth, depth)
                mask = _both(rows, inner, (tile.rows, tile.depth))
                a = _load(rows_ref, (pl.ds(first, tile.rows), pl.ds(at, tile.depth)), mask)
                contract = 1, int(transposed)
                return tuple(
                    total + _dot(a, weights(ref, at, inner), contract, interpret)
                    for total, ref in zip(totals, weight_refs, strict=True)
                )

            totals = lax.fori_loop(0, steps, step, totals)
        mask = _both(rows, columns, zero.shape)
        for ref, value in zip(outputs, finish(*totals), strict=True):
            at = ref.at[pl.ds(first, tile.rows), pl.ds(at_column, tile.columns)]
            pltriton.store(at, value.astype(ref.dtype), mask=mask)

    kernel.__name__ = name  # what profiles and dumps call it
    return pl.pallas_call(
        kernel,
        grid=(len(tiles) * across,),
        in_specs=[WHOLE] * (1 + len(operands)),
        out_specs=[WHOLE] * results,
        out_shape=[jax.ShapeDtypeStruct((num_rows, width), first_rows.dtype)] * results,
        compiler_params=pltriton.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
        interpret=interpret,
        name=name,
    )(tiles, *operands)


def transposed_product(
    tile: Tile,
    x: Array,
    dy: Array,
    group_sizes: Array,
    dtype: jax.typing.DTypeLike,
    interpret: bool = False,
) -> Array:
    """x^T dy of each group's rows, [E, D, F] in `dtype`: a program for each tile walks the rows.

    Args:
        tile: of the result, rows of it along D.
        x: [N, D].
        dy: [N, F].
        group_sizes: [E].
        dtype: of the result; sums are float32.
        interpret: runs on any device.
    """
    width, value_width, groups = x.shape[1], dy.shape[1], len(group_sizes)
    down, across = pl.cdiv(width, tile.rows), pl.cdiv(value_width, tile.columns)
    ends = jnp.cumsum(group_sizes).astype(jnp.int32)
    bounds = jnp.stack([ends - group_sizes.astype(jnp.int32), ends], axis=1)

    def kernel(bounds_ref, x_ref, dy_ref, out_ref):
        group = pl.program_id(1)
        row, column = _in_bands(pl.program_id(0), down, across)
        at_row, at_column = row * tile.rows, column * tile.columns
        rows = _inside(at_row, tile.rows, width)
        columns = _inside(at_column, tile.columns, value_width)
        start, end = bounds_ref[group, 0], bounds_ref[group, 1]

        def step(n, total):
            at = start + n * tile.depth
            inner = _inside(at, tile.depth, end)
            mask = _both(inner, rows, (tile.depth, tile.rows))
            a = _load(x_ref, (pl.ds(at, tile.depth), pl.ds(at_row, tile.rows)), mask)
            mask = _both(inner, columns, (tile.depth, tile.columns))
            b = _load(dy_ref, (pl.ds(at, tile.depth), pl.ds(at_column, tile.columns)), mask)
            return total + _dot(a, b, (0, 0), interpret)

        zero = jnp.zeros((tile.rows, tile.columns), jnp.float32)
        steps = lax.div(end - start + (tile.depth - 1), tile.depth)
        total = lax.fori_loop(0, steps, step, zero)
        at = out_ref.at[group, pl.ds(at_row, tile.rows), pl.ds(at_column, tile.columns)]
        pltriton.store(at, total.astype(dtype), mask=_both(rows, columns, zero.shape))

    kernel.__name__ = "grouped_matmul_dw"
    return pl.pallas_call(
        kernel,
        grid=(down * across, groups),
        in_specs=[WHOLE] * 3,
        out_specs=WHOLE,
        out_shape=jax.ShapeDtypeStruct((groups, width, value_width), dtype),
        compiler_params=pltriton.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
        interpret=interpret,
        name="grouped_matmul_dw",
    )(bounds, x, dy)
