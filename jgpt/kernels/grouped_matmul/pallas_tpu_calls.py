"""The `pallas_call`s of the grouped product on TPU: sizes, buffers, semaphores.

What runs is in `pallas_tpu_rows.py` and `pallas_tpu_weights.py`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jgpt.kernels.grouped_matmul.pallas_tpu_parts import Cut, cut
from jgpt.kernels.grouped_matmul.pallas_tpu_rows import RowsPlan, rows_kernel
from jgpt.kernels.grouped_matmul.pallas_tpu_visits import Visits, make_visits
from jgpt.kernels.grouped_matmul.pallas_tpu_weights import WeightsPlan, weights_kernel
from jgpt.typing import Array

LANES = 128
ROW_STEP = 16
"""Rows of a tile in memory of bfloat16; float32 has half of it."""
MIB = 2**20


class Chip(NamedTuple):
    """What a TPU generation wants."""

    tile: int
    """Rows that are multiplied at once where a group has so many."""
    some: int
    """The same where it has less."""
    piece: int
    """Columns of a group's matrix that are multiplied at once."""
    arrival: int
    """The same while the first matrix arrives."""
    weights_piece: int
    """Rows of a matrix's gradient that are made at once."""
    chunks: int
    """Parts of the result's columns at least; cores that share a program each take some."""
    vmem_bytes: int
    """What a kernel may use of the on-chip memory."""
    room: float = 0.8
    """Of that, for what is counted here; the rest is the compiler's, whose own need grows with the
    layer."""


CHIPS = {
    "TPU v5 lite": Chip(512, 256, 1024, 512, 512, 1, 100 * MIB),
    "TPU v5": Chip(512, 256, 1024, 512, 512, 2, 56 * MIB, 0.7),
    "TPU v6 lite": Chip(512, 256, 1024, 512, 512, 1, 100 * MIB),
}
"""By device kind; sizes are limits, smaller problems have smaller ones."""
OTHER_CHIP = Chip(256, 128, 256, 256, 128, 1, 14 * MIB)
"""For kinds that are not in the table: fits every generation's default."""


class RowsSizes(NamedTuple):
    """How a product of rows and matrices is cut; see RowsPlan."""

    tile: int
    some: int
    chunk: int
    piece: int
    arrival: int


class WeightsSizes(NamedTuple):
    """How a product of rows and rows is cut; see WeightsPlan."""

    tile: int
    some: int
    left: int
    right: int
    piece: int


def _up(size: int, step: int) -> int:
    return -(-size // step) * step


def _row_tiles(num_rows: int, chip: Chip) -> list[int]:
    """Rows of a tile, to be tried in turn: as few and as even tiles as can be."""
    limits = [chip.tile, chip.tile // 2, chip.tile // 4]
    return [cut(_up(num_rows, ROW_STEP), limit, ROW_STEP).size for limit in limits]


def rows_sizes(
    chip: Chip,
    num_rows: int,
    inner: int,
    columns: int,
    itemsize: int,
    matrices: int = 1,
    results: int = 1,
    row_arrays: int = 1,
    prepared: int = 0,
    transposed: bool = False,
) -> RowsSizes | None:
    """The largest that fit into the chip's memory; None where even the smallest do not.

    Args:
        chip: the generation.
        num_rows: N.
        inner: the contracted axis.
        columns: of the result.
        itemsize: bytes of an element.
        matrices: multiplied with each tile.
        results: of the size of a tile's result.
        row_arrays: of a tile's rows fetched.
        prepared: of a tile's rows made of them.
        transposed: whether the matrices lie the other way round, and pieces of them are turned.
    """
    inner = _up(inner, LANES)
    for tile in _row_tiles(num_rows, chip):
        parts = max(1, chip.chunks if columns % LANES == 0 and columns > LANES else 1)
        while True:
            chunk = cut(columns, -(-columns // parts), LANES).size
            piece = cut(chunk, chip.piece, LANES).size
            wide = _up(chunk, LANES)
            held = (2 * row_arrays + prepared) * tile * inner + 2 * results * tile * wide
            held = (held + 2 * matrices * inner * wide) * itemsize
            sums = 2 * matrices * tile * _up(piece, LANES) * 4
            sums += transposed * inner * _up(piece, LANES) * itemsize
            if held + sums <= chip.room * chip.vmem_bytes:
                return RowsSizes(tile, min(chip.some, tile), chunk, piece, chip.arrival)
            if columns % LANES or chunk <= LANES:
                break
            parts = -(-columns // (chunk - LANES))
    return None


def weights_sizes(
    chip: Chip, num_rows: int, left: int, right: int, itemsize: int, out_itemsize: int, rights: int
) -> WeightsSizes | None:
    """The largest that fit into the chip's memory; None where even the smallest do not.

    Args:
        chip: the generation.
        num_rows: N.
        left: D.
        right: F.
        itemsize: bytes of an element of the rows.
        out_itemsize: of the results.
        rights: arrays of right rows.
    """
    for tile in _row_tiles(num_rows, chip):
        sizes = [left, right]
        parts = [max(1, chip.chunks) if left % LANES == 0 and left > LANES else 1, 1]
        while True:
            sizes = [cut(n, -(-n // p), LANES).size for n, p in zip((left, right), parts)]
            piece = cut(sizes[0], chip.weights_piece, LANES).size
            wide = [_up(n, LANES) for n in sizes]
            held = wide[0] * wide[1] * (4 + out_itemsize) * rights
            held += 2 * tile * (wide[0] + rights * wide[1]) * itemsize
            held += 2 * rights * piece * wide[1] * 4
            if held <= chip.room * chip.vmem_bytes:
                return WeightsSizes(tile, min(chip.some, tile), *sizes, piece)
            can = [n % LANES == 0 and size > LANES for n, size in zip((left, right), sizes)]
            if not any(can):
                break
            which = int(not can[0] or (can[1] and sizes[1] > sizes[0]))
            parts[which] = -(-(left, right)[which] // (sizes[which] - LANES))
    return None


def rows_times_matrices(
    name: str,
    sizes: RowsSizes,
    chip: Chip,
    rows: list[Array],
    matrices: list[Array],
    group_sizes: Array,
    *,
    finish: Callable[..., tuple[Array, ...]],
    num_results: int = 1,
    prepare: Callable[..., tuple[Array, ...]] | None = None,
    num_prepared: int = 0,
    transposed: bool = False,
    interpret: Any = False,
) -> list[Array]:
    """Every tile of rows times its groups' matrices, one sum for each matrix, through `finish`.

    Args:
        name: of the kernel.
        sizes: from `rows_sizes`.
        chip: the generation.
        rows: [N,K] each.
        matrices: [E,K,C] each, or [E,C,K] when `transposed`.
        group_sizes: [E].
        finish: see `RowsPlan`.
        num_results: how many `finish` returns.
        prepare: see `RowsPlan`.
        num_prepared: how many `prepare` returns.
        transposed: which axis of the matrices is contracted.
        interpret: what `pallas_call` takes.

    Returns:
        Results [N,C], then prepared rows [N,K], whose rows that no group owns are undefined.
    """
    num_rows, inner = rows[0].shape
    columns = matrices[0].shape[1 if transposed else 2]
    dtype = rows[0].dtype
    padded = _up(num_rows, sizes.tile)
    rows = [_pad(x, padded) for x in rows]
    visits = make_visits(group_sizes, padded // sizes.tile, sizes.tile)
    plan = RowsPlan(
        tile=sizes.tile,
        some=cut(sizes.tile, sizes.some, ROW_STEP),
        chunks=_columns(columns, sizes.chunk),
        pieces=_columns(sizes.chunk, sizes.piece),
        arrivals=cut(sizes.chunk, sizes.arrival, LANES),
        transposed=transposed,
        prepare=prepare,
        finish=finish,
    )
    chunk = plan.chunks.size
    shape = (chunk, inner) if transposed else (inner, chunk)
    lists = {
        "rows": rows,
        "matrices": matrices,
        "results": [jax.ShapeDtypeStruct((padded, columns), dtype)] * num_results,
        "prepared": [jax.ShapeDtypeStruct((padded, inner), dtype)] * num_prepared,
        "row_buffers": [pltpu.VMEM((2, sizes.tile, inner), dtype)] * len(rows),
        "matrix_buffers": [pltpu.VMEM((2, *shape), dtype)] * len(matrices),
        "result_buffers": [pltpu.VMEM((2, sizes.tile, chunk), dtype)] * num_results,
        "prepared_buffers": [pltpu.VMEM((sizes.tile, inner), dtype)] * num_prepared,
    }
    semaphores = {
        "rows_arrived": (2, len(rows), plan.some.count),
        "matrix_arrived": (2, len(matrices), plan.arrivals.count),
        "results_left": (2, num_results, plan.pieces.count),
        "prepared_left": (max(num_prepared, 1),),
    }
    outs = _call(
        name,
        lambda refs: rows_kernel(plan, refs),
        (plan.chunks.count,),
        visits,
        lists,
        semaphores,
        chip,
        2 * num_rows * inner * columns * len(matrices),
        interpret,
    )
    return [x[:num_rows] for x in outs]


def rows_times_rows(
    name: str,
    sizes: WeightsSizes,
    chip: Chip,
    left: Array,
    rights: list[Array],
    group_sizes: Array,
    dtype: jax.typing.DTypeLike,
    *,
    interpret: Any = False,
) -> list[Array]:
    """Every group's left rows transposed times its right rows: [E,D,F] in `dtype` for each right.

    Args:
        name: of the kernel.
        sizes: from `weights_sizes`.
        chip: the generation.
        left: [N,D].
        rights: [N,F] each.
        group_sizes: [E].
        dtype: of the results; sums are float32.
        interpret: what `pallas_call` takes.
    """
    num_rows, width = left.shape
    padded = _up(num_rows, sizes.tile)
    right = rights[0].shape[1]
    plan = WeightsPlan(
        tile=sizes.tile,
        some=cut(sizes.tile, sizes.some, ROW_STEP),
        lefts=_columns(width, sizes.left),
        rights=_columns(right, sizes.right),
        pieces=_columns(sizes.left, sizes.piece),
    )
    shape, count = (plan.lefts.size, plan.rights.size), len(rights)
    result = jax.ShapeDtypeStruct((len(group_sizes), width, right), dtype)
    lists = {
        "left": [_pad(left, padded)],
        "rights": [_pad(x, padded) for x in rights],
        "results": [result] * count,
        "left_buffer": [pltpu.VMEM((2, sizes.tile, shape[0]), left.dtype)],
        "right_buffers": [pltpu.VMEM((2, sizes.tile, shape[1]), left.dtype)] * count,
        "sums": [pltpu.VMEM(shape, jnp.float32)] * count,
        "finished": [pltpu.VMEM(shape, dtype)] * count,
    }
    semaphores = {"rows_arrived": (2, 1 + count), "results_left": (count, plan.pieces.count)}
    return _call(
        name,
        lambda refs: weights_kernel(plan, refs),
        (plan.lefts.count, plan.rights.count),
        make_visits(group_sizes, padded // sizes.tile, sizes.tile, every_group=True),
        lists,
        semaphores,
        chip,
        2 * num_rows * width * right * count,
        interpret,
    )


def _columns(total: int, size: int) -> Cut:
    if size == total:
        return Cut(1, total, total, total)
    return Cut(-(-total // size), size, total, LANES)


def _pad(x: Array, num_rows: int) -> Array:
    missing = num_rows - x.shape[0]
    return jnp.pad(x, ((0, missing), (0, 0))) if missing else x


def _call(
    name: str,
    body: Callable[[dict], None],
    grid: tuple[int, ...],
    visits: Visits,
    lists: dict[str, list],
    semaphores: dict[str, tuple[int, ...]],
    chip: Chip,
    flops: int,
    interpret: Any,
) -> list[Array]:
    """One `pallas_call`; `body` gets refs by name: tables, `lists` as lists of refs, semaphores.

    The first entries of `lists` are arrays, the next ones results' shapes, the last ones buffers.
    """
    tables = {f: getattr(visits, f) for f in visits.__dataclass_fields__}

    def kernel(*refs):
        found, rest = dict(zip(tables, refs)), list(refs[len(tables) :])
        for key, entries in lists.items():
            found[key] = [rest.pop(0) for _ in entries]
        body(found | dict(zip(semaphores, rest, strict=True)))

    entries = [x for several in lists.values() for x in several]
    arrays = [x for x in entries if isinstance(x, jax.Array)]
    results = [x for x in entries if isinstance(x, jax.ShapeDtypeStruct)]
    buffers = entries[len(arrays) + len(results) :]
    moved = sum(x.size * x.dtype.itemsize for x in arrays + results)
    anywhere = pl.BlockSpec(memory_space=pltpu.HBM)
    return pl.pallas_call(
        kernel,
        out_shape=results,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(tables),
            grid=grid,
            in_specs=[anywhere] * len(arrays),
            out_specs=[anywhere] * len(results),
            scratch_shapes=[
                *buffers,
                *(pltpu.SemaphoreType.DMA(shape) for shape in semaphores.values()),
            ],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",) * len(grid),
            vmem_limit_bytes=chip.vmem_bytes,
        ),
        cost_estimate=pl.CostEstimate(flops=flops, transcendentals=0, bytes_accessed=moved),
        interpret=interpret,
        name=name,
    )(*tables.values(), *arrays)
