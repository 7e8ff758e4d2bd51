"""The grouped product on CPU: few plain products of fixed sizes, hardly a row for nothing.

XLA needs static shapes, group sizes are data. So a `while` loop runs over the groups, and each
group is cut, from its first row on, into blocks whose sizes are powers of two, the largest first.
Blocks of one size run in an inner loop whose trip count is data: a size that a group does not need
costs nothing. A group is rounded up to a multiple of the smallest size, so less than that many rows
are computed for nothing; a block masks what is not its own. Nothing is padded: a block that would
reach beyond the last row begins earlier.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

from jgpt.kernels.grouped_matmul import gated as formulas
from jgpt.typing import Array

LARGEST_BLOCK = 512
"""Rows from which on a product is as fast as it gets."""
SMALLEST_BLOCK = 8
"""Rows below which a product gets no cheaper."""
MANY_ROWS = 64
"""Rows of a mean group from which on it is worth having several sizes."""
NUM_BLOCK_SIZES = 3

Carry = TypeVar("Carry")


def supports(platform: str, x: Array, w: Array) -> str:
    del x, w
    return "" if platform == "cpu" else "its loops over data-dependent counts are made for CPU"


def matmul(x: Array, w: Array, group_sizes: Array) -> Array:
    return _rows_times_weights(x, w, group_sizes, contract=0)


def input_gradient(dy: Array, w: Array, group_sizes: Array) -> Array:
    return _rows_times_weights(dy, w, group_sizes, contract=1)


def weight_gradient(
    x: Array, dy: Array, group_sizes: Array, out_dtype: jax.typing.DTypeLike
) -> Array:
    bits, dy_bits = _to_bits(x), _to_bits(dy)

    def block(at: Block, w: None, out: Array) -> Array:
        rows = jnp.where(at.own, _rows(bits, at, x.dtype), 0)
        return _add(out, at.group, _transposed_dot(rows, _rows(dy_bits, at, x.dtype)))

    out = _zero_gradient(x, dy, group_sizes)
    return _over_blocks(len(x), group_sizes, (), block, out).astype(out_dtype)


def gated(x: Array, w_gate: Array, w_up: Array, group_sizes: Array, activation: str) -> Array:
    return _gated(x, w_gate, w_up, group_sizes, activation, keep=False)[0]


def gated_forward(
    x: Array, w_gate: Array, w_up: Array, group_sizes: Array, activation: str
) -> list[Array]:
    return _gated(x, w_gate, w_up, group_sizes, activation, keep=True)


def _gated(
    x: Array, w_gate: Array, w_up: Array, group_sizes: Array, activation: str, keep: bool
) -> list[Array]:
    """h, and with `keep` also gate and up: a block's rows are read once for all of them."""
    dtype, bits = x.dtype, _to_bits(x)

    def block(at: Block, w: list[Array], outs: list[Array]) -> list[Array]:
        rows = _rows(bits, at, dtype)
        gate, up = (_dot(rows, one, 0).astype(dtype) for one in w)
        h = formulas.gated(gate, up, activation).astype(dtype)
        return [_write(out, at, y) for out, y in zip(outs, (h, gate, up))]

    zeros = _to_bits(jnp.zeros((len(x), w_gate.shape[2]), dtype))
    weights = (w_gate.astype(dtype), w_up.astype(dtype))
    outs = _over_blocks(len(x), group_sizes, weights, block, [zeros] * (3 if keep else 1))
    return [_from_bits(out, dtype) for out in outs]


def gated_backward(
    x: Array,
    w_gate: Array,
    w_up: Array,
    group_sizes: Array,
    gate: Array,
    up: Array,
    dh: Array,
    activation: str,
) -> tuple[Array, Array, Array]:
    """All products of a block one after another: nothing but the results is ever as long as x."""
    dtype, bits = x.dtype, [_to_bits(a) for a in (x, gate, up, dh)]

    def block(at: Block, w: list[Array], outs: tuple[Array, ...]) -> tuple[Array, ...]:
        rows, gate, up, dh = (_rows(a, at, dtype) for a in bits)
        dgates = formulas.gated_gradients(gate, up, dh, activation)
        dgate, dup = (jnp.where(at.own, d, 0).astype(dtype) for d in dgates)
        dx = _dot(dgate, w[0], 1) + _dot(dup, w[1], 1)
        dw_gate, dw_up = (
            _add(out, at.group, _transposed_dot(rows, d)) for out, d in zip(outs[1:], (dgate, dup))
        )
        return _write(outs[0], at, dx.astype(dtype)), dw_gate, dw_up

    zeros = _zero_gradient(x, dh, group_sizes)
    weights = (w_gate.astype(dtype), w_up.astype(dtype))
    start = (_to_bits(jnp.zeros_like(x)), zeros, zeros)
    dx, *dws = _over_blocks(len(x), group_sizes, weights, block, start)
    return _from_bits(dx, dtype), dws[0].astype(w_gate.dtype), dws[1].astype(w_up.dtype)


def _rows_times_weights(rows: Array, w: Array, group_sizes: Array, contract: int) -> Array:
    """[N, a] times each group's matrix, summed over the matrix's axis `contract`."""
    if len(rows) <= len(w):
        return _row_by_row(rows, w, group_sizes, contract)
    dtype, bits = rows.dtype, _to_bits(rows)

    def block(at: Block, w: Array, out: Array) -> Array:
        return _write(out, at, _dot(_rows(bits, at, dtype), w[0], contract).astype(dtype))

    out = _to_bits(jnp.zeros((len(rows), w.shape[2 - contract]), dtype))
    return _from_bits(_over_blocks(len(rows), group_sizes, (w.astype(dtype),), block, out), dtype)


def _row_by_row(rows: Array, w: Array, group_sizes: Array, contract: int) -> Array:
    """For fewer rows than groups (decoding): a matrix for each row, and no other is read."""
    group = jnp.sum(jnp.cumsum(group_sizes)[:, None] <= jnp.arange(rows.shape[0]), axis=0)
    matrices = w.at[group].get(mode="fill", fill_value=0).astype(rows.dtype)
    contraction = (((1,), (1 + contract,)), ((0,), (0,)))
    accumulator = jnp.promote_types(rows.dtype, jnp.float32)
    y = lax.dot_general(rows, matrices, contraction, preferred_element_type=accumulator)
    return y.astype(rows.dtype)


def block_sizes(num_rows: int, num_groups: int) -> list[int]:
    """Ascending powers of two; the largest is about half to all of a mean group's rows.

    Small groups get a single size: every size is a loop to compile.
    """
    mean = max(1, num_rows // num_groups)
    largest = min(LARGEST_BLOCK, 2 ** int(math.log2(mean)))
    if largest < MANY_ROWS:
        return [min(num_rows, max(SMALLEST_BLOCK, largest // 2))]
    return [largest >> i for i in reversed(range(NUM_BLOCK_SIZES))]


class Block(NamedTuple):
    """Some rows of a group."""

    group: Array
    first: Array
    """Its first row."""
    size: int
    own: Array
    """[size, 1] bool: rows that are the group's and that no block before it has had."""


def _over_blocks(
    num_rows: int,
    group_sizes: Array,
    weights: tuple[Array, ...],
    one_block: Callable[[Block, list[Array], Carry], Carry],
    carry: Carry,
) -> Carry:
    """Calls `one_block(block, the group's weights, carry)` for each block of each group in turn."""
    starts = jnp.cumsum(group_sizes) - group_sizes
    sizes = block_sizes(num_rows, len(group_sizes))

    def one_group(group: Array, carry: Carry) -> Carry:
        own = [lax.dynamic_index_in_dim(w, group, keepdims=False) for w in weights]
        row, end = starts[group], starts[group] + group_sizes[group]
        left = -((row - end) // sizes[0]) * sizes[0]
        for size in reversed(sizes):

            def body(i: Array, carry: Carry, size: int = size, row: Array = row) -> Carry:
                wanted = row + i * size
                first = jnp.minimum(wanted, num_rows - size)
                index = first + jnp.arange(size)[:, None]
                mine = (index >= wanted) & (index < end)
                return one_block(Block(group, first, size, mine), own, carry)

            count = left // size
            carry = lax.fori_loop(0, count, body, carry)
            row, left = row + count * size, left - count * size
        return carry

    return lax.fori_loop(0, len(group_sizes), one_group, carry)


def _rows(bits: Array, at: Block, dtype: jnp.dtype) -> Array:
    return _from_bits(lax.dynamic_slice_in_dim(bits, at.first, at.size), dtype)


def _write(out: Array, at: Block, y: Array) -> Array:
    """`out`, in bits, with the block's own rows of y."""
    old = lax.dynamic_slice_in_dim(out, at.first, at.size)
    return lax.dynamic_update_slice_in_dim(out, jnp.where(at.own, _to_bits(y), old), at.first, 0)


def _zero_gradient(x: Array, dy: Array, group_sizes: Array) -> Array:
    shape = (len(group_sizes), x.shape[1], dy.shape[1])
    return jnp.zeros(shape, jnp.promote_types(x.dtype, jnp.float32))


def _add(out: Array, group: Array, dw: Array) -> Array:
    old = lax.dynamic_index_in_dim(out, group, keepdims=False)
    return lax.dynamic_update_index_in_dim(out, old + dw, group, 0)


def _to_bits(x: Array) -> Array:
    """bfloat16 as uint16, other types as they are.

    XLA's CPU backend does not move bfloat16 as it is: writing a block into a buffer becomes a
    conversion of the whole buffer to float32 and back.
    """
    return lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x


def _from_bits(bits: Array, dtype: jnp.dtype) -> Array:
    return lax.bitcast_convert_type(bits, dtype) if dtype == jnp.bfloat16 else bits


def _transposed_dot(a: Array, b: Array) -> Array:
    """a [n, i] transposed, times b [n, j].

    XLA's CPU backend multiplies bfloat16 1.7 times faster when the transpose lies in memory.
    """
    return _dot(with_layout_constraint(a.T, Layout((0, 1))), b, 0)


def _dot(a: Array, b: Array, contract: int) -> Array:
    """a [n, i] times b, summed over b's axis `contract`, in float32."""
    contraction = (((1,), (contract,)), ((), ()))
    accumulator = jnp.promote_types(a.dtype, jnp.float32)
    return lax.dot_general(a, b, contraction, preferred_element_type=accumulator)
