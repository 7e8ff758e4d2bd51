"""The grouped product on CPU: few plain products of fixed sizes, no row computed for nothing.

XLA needs static shapes, group sizes are data. So a `while` loop runs over the groups, and each
group is cut, from its first row on, into blocks whose sizes are powers of two, the largest first.
Blocks of one size run in an inner loop whose trip count is data: a size that a group does not need
costs nothing. A group is rounded up to a multiple of the smallest size, so less than that many rows
are computed for nothing. They spill into the next group's rows, which that group then overwrites.
"""

import math
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

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
    sizes = block_sizes(x.shape[0], group_sizes.shape[0])
    dtype = x.dtype
    x, dy = _with_room(x, sizes), _with_room(dy, sizes)

    def one_group(group: Array, start: Array, length: Array, out: Array) -> Array:
        def add(size: int, row: Array, owned: Array, out: Array) -> Array:
            a = _rows(x, row, size, dtype)
            a = jnp.where(jnp.arange(size)[:, None] < owned, a, 0)
            dw = _transposed_dot(a, _rows(dy, row, size, dtype))
            dw = dw + lax.dynamic_index_in_dim(out, group, keepdims=False)
            return lax.dynamic_update_index_in_dim(out, dw, group, 0)

        return _over_blocks(sizes, start, length, add, out)

    shape = (group_sizes.shape[0], x.shape[1], dy.shape[1])
    out = jnp.zeros(shape, jnp.promote_types(dtype, jnp.float32))
    return _over_groups(group_sizes, one_group, out).astype(out_dtype)


def _rows_times_weights(rows: Array, w: Array, group_sizes: Array, contract: int) -> Array:
    """[N, a] times each group's matrix, summed over the matrix's axis `contract`."""
    num_rows = rows.shape[0]
    if num_rows <= w.shape[0]:
        return _row_by_row(rows, w, group_sizes, contract)
    sizes = block_sizes(num_rows, w.shape[0])
    dtype = rows.dtype
    rows = _with_room(rows, sizes)

    def one_group(group: Array, start: Array, length: Array, out: Array) -> Array:
        b = lax.dynamic_index_in_dim(w, group, keepdims=False).astype(dtype)

        def write(size: int, row: Array, owned: Array, out: Array) -> Array:
            y = _dot(_rows(rows, row, size, dtype), b, contract).astype(dtype)
            return lax.dynamic_update_slice(out, _to_bits(y), (row, 0))

        return _over_blocks(sizes, start, length, write, out)

    out = _to_bits(jnp.zeros((rows.shape[0], w.shape[2 - contract]), dtype))
    out = _from_bits(_over_groups(group_sizes, one_group, out), dtype)
    owned = jnp.arange(num_rows) < jnp.sum(group_sizes)
    return jnp.where(owned[:, None], out[:num_rows], 0)


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
        return [max(SMALLEST_BLOCK, largest // 2)]
    return [largest >> i for i in reversed(range(NUM_BLOCK_SIZES))]


def _over_groups(
    group_sizes: Array, one_group: Callable[[Array, Array, Array, Carry], Carry], carry: Carry
) -> Carry:
    """Calls `one_group(group, first row, rows, carry)` for each group in turn."""
    starts = jnp.cumsum(group_sizes) - group_sizes

    def body(group: Array, carry: Carry) -> Carry:
        return one_group(group, starts[group], group_sizes[group], carry)

    return lax.fori_loop(0, group_sizes.shape[0], body, carry)


def _over_blocks(
    sizes: list[int],
    start: Array,
    length: Array,
    one_block: Callable[[int, Array, Array, Carry], Carry],
    carry: Carry,
) -> Carry:
    """Calls `one_block(size, first row, rows left, carry)` for each block of a group."""
    rounded = -(-length // sizes[0]) * sizes[0]
    done = jnp.zeros_like(length)
    for size in reversed(sizes):
        count = (rounded - done) // size

        def body(i: Array, carry: Carry, size: int = size, done: Array = done) -> Carry:
            first = done + i * size
            return one_block(size, start + first, length - first, carry)

        carry = lax.fori_loop(0, count, body, carry)
        done = done + count * size
    return carry


def _with_room(rows: Array, sizes: list[int]) -> Array:
    """The bits of `rows`, with room after them for what the last block spills."""
    return jnp.pad(_to_bits(rows), ((0, sizes[0]), (0, 0)))


def _rows(bits: Array, row: Array, size: int, dtype) -> Array:
    return _from_bits(lax.dynamic_slice(bits, (row, 0), (size, bits.shape[1])), dtype)


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
