"""The product with an NF4 weight for TPU in Pallas: a tile is dequantised on chip, then multiplied.

A byte holds two neighbours along `in`. Instead of interleaving them, which costs many moves across
lanes, the products of the even and of the odd inputs are summed: the kernels see x (or make dx) as
two halves. Of a byte's two levels one is looked up by a gather along lanes, as is the scale, the
other chosen bit by bit: by estimate the gathers alone keep their unit busier than all else.
Each tile is dequantised once for up to `TOKENS` tokens.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType

from jgpt.kernels.device import device_kind
from jgpt.kernels.nf4_matmul.format import BLOCK, LEVELS, Nf4, whole_scales
from jgpt.typing import Array

LANES = 128
TOKENS = 1024
VMEM_BYTES = 48 * 2**20
"""What a kernel may use of the on-chip memory; it needs less than 20 MiB."""


class Tile(NamedTuple):
    """Of a weight: rows, and bytes of a row."""

    rows: int
    bytes: int


def _tile(packed: Nf4) -> Tile | None:
    rows, width = packed.codes.shape
    found = [next((n for n in (512, 256, 128) if size % n == 0), 0) for size in (rows, width)]
    return Tile(*found) if all(found) else None


def supports(x: Array, packed: Nf4) -> str:
    """Why not, or ''."""
    if not device_kind().startswith("TPU"):
        return "the Pallas TPU kernel runs on TPU"
    if x.dtype not in (jnp.bfloat16, jnp.float32):
        return f"the Pallas TPU kernel takes bfloat16 and float32, not {x.dtype}"
    if _tile(packed) is None:
        return f"the Pallas TPU kernel needs out in 128s and in in 256s, not {packed.shape}"
    mesh = jax.sharding.get_abstract_mesh()
    if any(
        size > 1 and mesh._name_to_type[name] != AxisType.Manual
        for name, size in mesh.shape.items()
    ):
        return "the Pallas TPU kernel is not cut by the compiler; cut the product (weight_mesh)"
    return ""


def forward(x: Array, packed: Nf4, interpret: Any = False) -> Array:
    """x [T, in] times the transposed weight: [T, out] float32; `interpret` as `pallas_call`'s."""
    tile = _tile(packed)
    x, tokens = _whole_blocks(x)
    block = min(len(x), TOKENS)
    rows, width = packed.codes.shape
    halves = pl.BlockSpec((block, tile.bytes), lambda t, o, k: (t, k))
    return pl.pallas_call(
        functools.partial(_forward_kernel, tile=tile),
        out_shape=jax.ShapeDtypeStruct((len(x), rows), jnp.float32),
        grid=(len(x) // block, rows // tile.rows, width // tile.bytes),
        in_specs=[
            halves,
            halves,
            pl.BlockSpec(tile, lambda t, o, k: (o, k)),
            _scale_spec(tile, lambda t, o, k: (o, k)),
            _table_spec(),
        ],
        out_specs=pl.BlockSpec((block, tile.rows), lambda t, o, k: (t, o)),
        compiler_params=_parameters(),
        interpret=interpret,
        name="nf4_forward",
    )(x[:, ::2], x[:, 1::2], packed.codes, _scales(packed), _table())[:tokens]


def backward(dy: Array, packed: Nf4, interpret: Any = False) -> Array:
    """dy [T, out] times the weight: [T, in] float32; `interpret` as `pallas_call`'s."""
    tile = _tile(packed)
    dy, tokens = _whole_blocks(dy)
    block = min(len(dy), TOKENS)
    rows, width = packed.codes.shape
    halves = pl.BlockSpec((block, tile.bytes), lambda t, k, o: (t, k))
    shape = jax.ShapeDtypeStruct((len(dy), width), jnp.float32)
    even, odd = pl.pallas_call(
        functools.partial(_backward_kernel, tile=tile),
        out_shape=(shape, shape),
        grid=(len(dy) // block, width // tile.bytes, rows // tile.rows),
        in_specs=[
            pl.BlockSpec((block, tile.rows), lambda t, k, o: (t, o)),
            pl.BlockSpec(tile, lambda t, k, o: (o, k)),
            _scale_spec(tile, lambda t, k, o: (o, k)),
            _table_spec(),
        ],
        out_specs=(halves, halves),
        compiler_params=_parameters(),
        interpret=interpret,
        name="nf4_backward",
    )(dy, packed.codes, _scales(packed), _table())
    return jnp.stack([even, odd], axis=-1).reshape(len(dy), -1)[:tokens]


def _parameters() -> pltpu.CompilerParams:
    return pltpu.CompilerParams(
        dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=VMEM_BYTES
    )


def _whole_blocks(x: Array) -> tuple[Array, int]:
    """Rows of zeros behind, and how many rows there were."""
    tokens = len(x)
    step = TOKENS if tokens > TOKENS else 16
    return jnp.pad(x, ((0, -tokens % step), (0, 0))), tokens


def _table() -> Array:
    return jnp.asarray(np.tile(LEVELS, (8, LANES // len(LEVELS))))


def _table_spec() -> pl.BlockSpec:
    return pl.BlockSpec((8, LANES), lambda *at: (0, 0))


def _scales(packed: Nf4) -> Array:
    scales = whole_scales(packed)
    return jnp.pad(scales, ((0, 0), (0, -scales.shape[1] % LANES)))


def _scale_spec(tile: Tile, place: Any) -> pl.BlockSpec:
    """The 128 scales of each row among which the tile's are."""
    tiles = LANES * BLOCK // 2 // tile.bytes

    def at(*grid):
        row, column = place(*grid)
        return row, column // tiles

    return pl.BlockSpec((tile.rows, LANES), at)


def _tiles(codes: Array, scales: Array, table: Array, column: Array, tile: Tile) -> list[Array]:
    """float32 weights [rows, bytes] of the high and of the low halves of the bytes."""
    codes = codes.astype(jnp.int32)
    table = jnp.tile(table, (tile.rows // 8, 1))
    per_tile = tile.bytes * 2 // BLOCK
    first = column % (LANES // per_tile) * per_tile
    halves = [[], []]
    for start in range(0, tile.bytes, LANES):
        lane = lax.broadcasted_iota(jnp.int32, (tile.rows, LANES), 1)
        scale = _look_up(scales, first + (start + lane) // (BLOCK // 2))
        part = codes[:, start : start + LANES]
        # one by each unit, for they work at the same time
        halves[0].append(_look_up(table, part >> 4 & 15) * scale)
        halves[1].append(_level(part & 15) * scale)
    return [jnp.concatenate(half, axis=1) for half in halves]


def _level(code: Array) -> Array:
    """The level of each code by choices between two, bit after bit."""
    found = [jnp.float32(level) for level in LEVELS]
    for bit in range(4):
        chosen = code >> bit & 1 > 0
        found = [jnp.where(chosen, b, a) for a, b in zip(found[::2], found[1::2])]
    return found[0]


def _look_up(table: Array, index: Array) -> Array:
    return jnp.take_along_axis(table, index, axis=1, mode="promise_in_bounds")


def _dot(a: Array, b: Array, contract: tuple[int, int]) -> Array:
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return lax.dot_general(
        a,
        b.astype(a.dtype),
        (((contract[0],), (contract[1],)), ((), ())),
        precision=precision,
        preferred_element_type=jnp.float32,
    )


def _forward_kernel(even, odd, codes, scales, table, out, *, tile: Tile) -> None:
    @pl.when(pl.program_id(2) == 0)
    def _begin():
        out[...] = jnp.zeros(out.shape, jnp.float32)

    high, low = _tiles(codes[...], scales[...], table[...], pl.program_id(2), tile)
    out[...] += _dot(even[...], high, (1, 1)) + _dot(odd[...], low, (1, 1))


def _backward_kernel(dy, codes, scales, table, even, odd, *, tile: Tile) -> None:
    @pl.when(pl.program_id(2) == 0)
    def _begin():
        even[...] = jnp.zeros(even.shape, jnp.float32)
        odd[...] = jnp.zeros(odd.shape, jnp.float32)

    high, low = _tiles(codes[...], scales[...], table[...], pl.program_id(1), tile)
    even[...] += _dot(dy[...], high, (1, 0))
    odd[...] += _dot(dy[...], low, (1, 0))
