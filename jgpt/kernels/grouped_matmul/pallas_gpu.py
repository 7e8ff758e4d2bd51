"""The grouped product for NVIDIA GPUs in Pallas: one program for each tile of the result.

XLA expands `ragged_dot` on GPU into every group's matrix on every row. Here the rows of each group
are cut into tiles, and a table that follows the run-time sizes (`row_tiles`) tells each program its
group and rows; a group costs at most one ragged tile more than its rows, and an empty one nothing.
The gated forms read x once for both products and apply the activation to the sums in registers; the
input gradient of both adds up in registers too. Kernels are in `pallas_gpu_kernels.py`.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from jgpt.kernels.device import device_kind
from jgpt.kernels.grouped_matmul import gated as plain
from jgpt.kernels.grouped_matmul.pallas_gpu_kernels import (
    Tile,
    products,
    transposed_product,
)
from jgpt.kernels.nvidia import KIB, PREFIX, shared_memory
from jgpt.typing import Array

MOST_ROWS = 128
"""Rows of a tile from which on the tensor cores are kept busy."""
FEWEST_ROWS = 16
"""What the tensor cores take at once."""
AMPLE = 163 * KIB
"""Shared memory from which on a tile may be 256 wide."""


def supports(platform: str, x: Array, w: Array) -> str:
    """Why not, or ''."""
    if platform not in ("gpu", "cuda"):
        return "the Pallas GPU kernel runs on NVIDIA GPUs"
    if not device_kind().startswith(PREFIX):
        return f"the Pallas GPU kernel runs on NVIDIA GPUs, not {device_kind()}"
    if str(x.dtype) not in ("bfloat16", "float16", "float32"):
        return f"the Pallas GPU kernel takes bfloat16, float16 and float32, not {x.dtype}"
    if w.shape[0] == 0 or x.shape[0] == 0:
        return "the Pallas GPU kernel needs rows and groups"
    return ""


def choose_tile(rows: int, groups: int, dtype: jax.typing.DTypeLike, sums: int = 1) -> Tile:
    """Tiles no higher than a mean group; narrower where sums share registers, or memory is short.

    Found with the compiler (experiments/kernels/gpu.md): the largest without spilled registers.
    """
    mean = max(FEWEST_ROWS, pl.next_power_of_2(rows // groups))
    height = min(MOST_ROWS, mean)
    if jnp.dtype(dtype).itemsize == 4:
        return Tile(min(64, height), 64, 32, 4, 2)
    if shared_memory(device_kind()) < AMPLE:
        return Tile(height, 128 // sums, 32, 4 if height < MOST_ROWS else 8, 3)
    if height < MOST_ROWS:
        return Tile(height, 128 // sums, 64, 4, 3)
    return Tile(height, 256 // sums, 64, 8, 3)


def _transposed_tile(dtype: jax.typing.DTypeLike) -> Tile:
    """Of the weight gradient."""
    if jnp.dtype(dtype).itemsize == 4:
        return Tile(64, 64, 32, 4, 2)
    return Tile(128, 128, 64 if shared_memory(device_kind()) >= AMPLE else 32, 8, 3)


def matmul(x: Array, w: Array, group_sizes: Array, interpret: bool = False) -> Array:
    """See `Backend.matmul`."""
    tile = choose_tile(x.shape[0], len(w), x.dtype)
    terms = [(x, (w.astype(x.dtype),))]
    return _one("grouped_matmul", tile, group_sizes, terms, interpret=interpret)


def input_gradient(dy: Array, w: Array, group_sizes: Array, interpret: bool = False) -> Array:
    """See `Backend.input_gradient`."""
    tile = choose_tile(dy.shape[0], len(w), dy.dtype)
    terms = [(dy, (w.astype(dy.dtype),))]
    return _one("grouped_matmul_dx", tile, group_sizes, terms, True, interpret)


def _one(name, tile, group_sizes, terms, transposed=False, interpret=False) -> Array:
    """A single sum as it is."""
    (y,) = products(name, tile, group_sizes, terms, lambda y: (y,), 1, transposed, interpret)
    return y


def weight_gradient(
    x: Array,
    dy: Array,
    group_sizes: Array,
    dtype: jax.typing.DTypeLike,
    interpret: bool = False,
) -> Array:
    """See `Backend.weight_gradient`."""
    tile = _transposed_tile(x.dtype)
    return transposed_product(tile, x, dy, group_sizes, dtype, interpret)


def gated(
    x: Array,
    w_gate: Array,
    w_up: Array,
    group_sizes: Array,
    activation: str,
    interpret: bool = False,
) -> Array:
    """See `Backend.gated`."""
    return _gated(x, w_gate, w_up, group_sizes, activation, False, interpret)[0]


def gated_forward(
    x: Array,
    w_gate: Array,
    w_up: Array,
    group_sizes: Array,
    activation: str,
    interpret: bool = False,
) -> tuple[Array, Array, Array]:
    """See `Backend.gated_forward`; h is of the sums before gate and up are rounded."""
    h, gate, up = _gated(x, w_gate, w_up, group_sizes, activation, True, interpret)
    return h, gate, up


def _gated(x, w_gate, w_up, group_sizes, activation, keep, interpret):
    if activation not in FUSED:
        separate = partial(matmul, interpret=interpret)
        return plain.forward(separate, x, w_gate, w_up, group_sizes, activation)

    def finish(gate: Array, up: Array) -> tuple[Array, ...]:
        h = plain.gated(gate, up, activation)
        return (h, gate, up) if keep else (h,)

    terms = [(x, (w_gate.astype(x.dtype), w_up.astype(x.dtype)))]
    tile = choose_tile(x.shape[0], len(w_gate), x.dtype, sums=2)
    results = 3 if keep else 1
    return products("grouped_gated", tile, group_sizes, terms, finish, results, interpret=interpret)


FUSED = ("silu", "gelu_tanh")
"""Activations that a kernel can apply; Triton has no error function."""


def gated_backward(
    x: Array,
    w_gate: Array,
    w_up: Array,
    group_sizes: Array,
    gate: Array,
    up: Array,
    dh: Array,
    activation: str,
    interpret: bool = False,
) -> tuple[Array, Array, Array]:
    """See `Backend.gated_backward`."""
    gradients = plain.gated_gradients(gate, up, dh, activation)
    dgate, dup = (d.astype(x.dtype) for d in gradients)
    tile = choose_tile(x.shape[0], len(w_gate), x.dtype)
    terms = [(dgate, (w_gate.astype(x.dtype),)), (dup, (w_up.astype(x.dtype),))]
    dx = _one("grouped_gated_dx", tile, group_sizes, terms, True, interpret)
    by_weight = partial(weight_gradient, x, interpret=interpret)
    dw_gate = by_weight(dgate, group_sizes, w_gate.dtype)
    return dx, dw_gate, by_weight(dup, group_sizes, w_up.dtype)
