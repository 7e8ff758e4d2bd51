"""The grouped product on TPU in Pallas, and the fused gated form, each with its gradients.

Here: which arrays go into which kernel, and how rows lie on a mesh. `pallas_tpu_calls.py` makes the
calls, `pallas_tpu_rows.py` and `pallas_tpu_weights.py` have their bodies, `pallas_tpu_visits.py`
the tables that they follow.

The gated form reads x once and writes h alone, or for the backward pass h, gate and up. Going back,
one kernel makes the gradients of gate and up, tile by tile, and the sum of their two products with
the matrices; a second one makes the gradients of both matrices.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from jgpt.kernels.device import device_kind
from jgpt.kernels.grouped_matmul.gated import gated as gate_and_up
from jgpt.kernels.grouped_matmul.gated import gated_gradients
from jgpt.kernels.grouped_matmul.pallas_tpu_calls import (
    CHIPS,
    OTHER_CHIP,
    Chip,
    rows_sizes,
    rows_times_matrices,
    rows_times_rows,
    weights_sizes,
)
from jgpt.typing import Array


def supports(platform: str, x: Array, w: Array) -> str:
    """Why not, or ''."""
    if platform != "tpu":
        return "the Pallas TPU kernels run on TPU"
    if x.dtype not in (jnp.bfloat16, jnp.float32):
        return f"the Pallas TPU kernels take bfloat16 and float32, not {x.dtype}"
    axes, reason = _axes(x.shape[0])
    if reason:
        return reason
    rows = x.shape[0] // math.prod(axes.values())
    (_, inner, columns), size, chip = w.shape, x.dtype.itemsize, _chip()
    found = (
        rows_sizes(chip, rows, inner, columns, size),
        rows_sizes(chip, rows, columns, inner, size, transposed=True),
        weights_sizes(chip, rows, inner, columns, size, 4, 1),
    )
    if None in found:
        return f"matrices of {inner} x {columns} do not fit on the chip, cut along multiples of 128"
    return ""


def fuses(x: Array, w: Array) -> bool:
    """Whether both matrices of the gated product fit, with all that its passes hold beside them."""
    axes, _ = _axes(x.shape[0])
    rows = x.shape[0] // math.prod(axes.values())
    (_, inner, columns), size, chip = w.shape, x.dtype.itemsize, _chip()
    found = (
        rows_sizes(chip, rows, inner, columns, size, matrices=2, results=3),
        rows_sizes(
            chip, rows, columns, inner, size, matrices=2, row_arrays=3, prepared=2, transposed=True
        ),
        weights_sizes(chip, rows, inner, columns, size, 4, 2),
    )
    return None not in found


def _chip() -> Chip:
    """The generation that the program is for: that of the mesh that is set, else the default."""
    return CHIPS.get(device_kind(), OTHER_CHIP)


def _axes(num_rows: int) -> tuple[dict[str, int], str]:
    """Mesh axes and sizes over which rows are cut, or why they cannot be.

    A kernel is not partitioned by the compiler. So every device takes an even share of the sorted
    rows, whichever groups these are, and the whole matrices. Nothing to cut without a mesh, on one
    device, or inside of a `shard_map` over all axes.
    """
    mesh = jax.sharding.get_abstract_mesh()
    sizes = {name: size for name, size in mesh.shape.items() if size > 1}
    manual = [n for n in sizes if mesh._name_to_type[n] == AxisType.Manual]
    if len(manual) == len(sizes):
        return {}, ""
    if manual:
        return {}, f"the Pallas TPU kernels cannot be cut where {manual} are cut already"
    parts = math.prod(sizes.values())
    if num_rows % parts:
        return {}, f"{num_rows} rows cannot be cut into {parts} for the Pallas TPU kernels"
    return sizes, ""


def _over_mesh(
    function: Callable[..., Any], rows: list[Array], matrices: list[Array], group_sizes: Array
) -> tuple[list[Array], list[Array]]:
    """`function(rows, matrices, group_sizes)` -> results by row and by matrix, on each device for
    its rows; results by matrix are summed over devices."""
    axes, _ = _axes(rows[0].shape[0])
    if not axes:
        return function(rows, matrices, group_sizes)
    names, share = tuple(axes), rows[0].shape[0] // math.prod(axes.values())

    def one(rows: list[Array], matrices: list[Array], group_sizes: Array):
        begin = lax.axis_index(names) * share
        ends = jnp.clip(jnp.cumsum(group_sizes) - begin, 0, share)
        by_row, by_matrix = function(rows, matrices, jnp.diff(ends, prepend=0))
        return by_row, [lax.psum(x, names) for x in by_matrix]

    by_row, all_of_it = PartitionSpec(names), PartitionSpec()
    return jax.shard_map(
        one,
        in_specs=(by_row, all_of_it, all_of_it),
        out_specs=(by_row, all_of_it),
        check_vma=False,
    )(rows, matrices, group_sizes)


def matmul(
    x: Array, w: Array, group_sizes: Array, *, chip: Chip | None = None, interpret: Any = False
) -> Array:
    """See `Backend`; `chip` None takes the one compiled for, `interpret` is `pallas_call`'s."""
    return _rows_times_weights("grouped_matmul", False, x, w, group_sizes, chip, interpret)


def input_gradient(
    dy: Array, w: Array, group_sizes: Array, *, chip: Chip | None = None, interpret: Any = False
) -> Array:
    """See `Backend`, and `matmul`."""
    return _rows_times_weights(
        "grouped_matmul_input_gradient", True, dy, w, group_sizes, chip, interpret
    )


def _rows_times_weights(
    name: str,
    transposed: bool,
    rows: Array,
    w: Array,
    group_sizes: Array,
    chip: Chip | None,
    interpret: Any,
) -> Array:
    chip = chip or _chip()
    columns = w.shape[1 if transposed else 2]

    def run(rows: list[Array], matrices: list[Array], group_sizes: Array):
        sizes = rows_sizes(
            chip, *rows[0].shape, columns, rows[0].dtype.itemsize, transposed=transposed
        )
        found = rows_times_matrices(
            name,
            sizes,
            chip,
            rows,
            matrices,
            group_sizes,
            finish=lambda sums: (sums,),
            transposed=transposed,
            interpret=interpret,
        )
        return found, []

    ((y,), _) = _over_mesh(run, [rows], [w.astype(rows.dtype)], group_sizes)
    return y


def weight_gradient(
    x: Array,
    dy: Array,
    group_sizes: Array,
    dtype: jax.typing.DTypeLike,
    *,
    chip: Chip | None = None,
    interpret: Any = False,
) -> Array:
    """See `Backend`, and `matmul`."""
    return _weight_gradients(x, [dy], group_sizes, dtype, chip, interpret)[0]


def _weight_gradients(
    x: Array,
    dys: list[Array],
    group_sizes: Array,
    dtype: jax.typing.DTypeLike,
    chip: Chip | None,
    interpret: Any,
) -> list[Array]:
    chip = chip or _chip()
    parts = _axes(x.shape[0])[0]
    # parts of a sum over devices are not rounded
    summed = jnp.dtype(jnp.float32) if parts else jnp.dtype(dtype)

    def run(rows: list[Array], _: list[Array], group_sizes: Array):
        x, *dys = rows
        sizes = weights_sizes(
            chip, *x.shape, dys[0].shape[1], x.dtype.itemsize, summed.itemsize, len(dys)
        )
        name = "grouped_matmul_weight_gradient"
        found = rows_times_rows(name, sizes, chip, x, dys, group_sizes, summed, interpret=interpret)
        return [], found

    _, found = _over_mesh(run, [x, *dys], [], group_sizes)
    return [dw.astype(dtype) for dw in found]


def gated(
    x: Array,
    w_gate: Array,
    w_up: Array,
    group_sizes: Array,
    activation: str,
    *,
    chip: Chip | None = None,
    interpret: Any = False,
) -> Array:
    """See `Backend`, and `matmul`."""
    return _gated(False, x, w_gate, w_up, group_sizes, activation, chip, interpret)[0]


def gated_forward(
    x: Array,
    w_gate: Array,
    w_up: Array,
    group_sizes: Array,
    activation: str,
    *,
    chip: Chip | None = None,
    interpret: Any = False,
) -> list[Array]:
    """See `Backend`, and `matmul`."""
    return _gated(True, x, w_gate, w_up, group_sizes, activation, chip, interpret)


def _gated(
    keep: bool,
    x: Array,
    w_gate: Array,
    w_up: Array,
    group_sizes: Array,
    activation: str,
    chip: Chip | None,
    interpret: Any,
) -> list[Array]:
    chip = chip or _chip()
    num_results = 3 if keep else 1

    def finish(gate: Array, up: Array) -> tuple[Array, ...]:
        return (gate_and_up(gate, up, activation), gate, up)[:num_results]

    def run(rows: list[Array], matrices: list[Array], group_sizes: Array):
        sizes = rows_sizes(
            chip,
            *rows[0].shape,
            w_gate.shape[2],
            x.dtype.itemsize,
            matrices=2,
            results=num_results,
        )
        found = rows_times_matrices(
            "grouped_gated",
            sizes,
            chip,
            rows,
            matrices,
            group_sizes,
            finish=finish,
            num_results=num_results,
            interpret=interpret,
        )
        return found, []

    matrices = [w.astype(x.dtype) for w in (w_gate, w_up)]
    return _over_mesh(run, [x], matrices, group_sizes)[0]


def gated_backward(
    x: Array,
    w_gate: Array,
    w_up: Array,
    group_sizes: Array,
    gate: Array,
    up: Array,
    dh: Array,
    activation: str,
    *,
    chip: Chip | None = None,
    interpret: Any = False,
) -> tuple[Array, Array, Array]:
    """See `Backend`, and `matmul`."""
    found = chip or _chip()

    def run(rows: list[Array], matrices: list[Array], group_sizes: Array):
        sizes = rows_sizes(
            found,
            *rows[0].shape,
            w_gate.shape[1],
            x.dtype.itemsize,
            matrices=2,
            row_arrays=3,
            prepared=2,
            transposed=True,
        )
        return rows_times_matrices(
            "grouped_gated_input_gradient",
            sizes,
            found,
            rows,
            matrices,
            group_sizes,
            prepare=lambda dh, gate, up: gated_gradients(gate, up, dh, activation),
            num_prepared=2,
            finish=lambda through_gate, through_up: (through_gate + through_up,),
            transposed=True,
            interpret=interpret,
        ), []

    matrices = [w.astype(x.dtype) for w in (w_gate, w_up)]
    (dx, dgate, dup), _ = _over_mesh(run, [dh, gate, up], matrices, group_sizes)
    gradients = _weight_gradients(x, [dgate, dup], group_sizes, w_gate.dtype, chip, interpret)
    return dx, *gradients
