"""The grouped product on CPU: few plain products of fixed sizes, no row computed for nothing.

XLA needs static shapes, group sizes are data. So each group is cut, from its first row on, into
blocks whose sizes are powers of two, the largest first; only the last block of a group is rounded
up, by less than the smallest size. Blocks of one size run in one `while` loop whose trip count is
data: a size nobody needs costs nothing, and neither does an empty group.

A rounded-up block spills into the rows after its group. That is mended by order, not by masks:
small sizes run first and ascend, and a group's smallest block is its last one, so whatever begins
at the spilled rows is written later.

A group's weight gradient is one product over all its rows: adding up blocks would read and write a
whole matrix per block. `switch` picks the product from a ladder of row counts; the branches return
the product only, since XLA would copy any buffer that they wrote into.
"""

import functools
import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

from jgpt.typing import Array

LARGEST_BLOCK = 512
"""Rows from which on a product is as fast as it gets."""
SMALLEST_BLOCK = 8
"""Rows below which a product gets no cheaper."""
NUM_BLOCK_SIZES = 4
NUM_RUNGS = 8
"""Row counts that a weight gradient's product can have, evenly spaced."""
LONGEST_RUNG = 2048


def supports(platform: str) -> str:
    return "" if platform == "cpu" else "its loops over data-dependent counts are made for CPU"


def matmul(x: Array, w: Array, group_sizes: Array) -> Array:
    return _rows_times_weights(x, w, group_sizes, contract=0)


def input_gradient(dy: Array, w: Array, group_sizes: Array) -> Array:
    return _rows_times_weights(dy, w, group_sizes, contract=1)


def block_sizes(num_rows: int, num_groups: int) -> list[int]:
    """Ascending powers of two; the largest is about a mean group's number of rows."""
    mean = num_rows / num_groups
    largest = min(LARGEST_BLOCK, max(SMALLEST_BLOCK, 2 ** round(math.log2(max(mean, 1)))))
    sizes = [largest >> i for i in range(NUM_BLOCK_SIZES)]
    return sorted(size for size in sizes if size >= SMALLEST_BLOCK)


class Blocks(NamedTuple):
    """All blocks of one size."""

    size: int
    per_group: Array
    """[E] int32"""
    until: Array
    """[E] int32: blocks of this group and those before it"""
    first_row: Array
    """[E] int32: where the group's first block of this size begins"""

    @property
    def count(self) -> Array:
        return self.until[-1]

    def locate(self, index: Array) -> tuple[Array, Array, Array]:
        """Group, first row, and number within its group, of block `index`."""
        group = jnp.sum(self.until <= index)
        number = index - (self.until[group] - self.per_group[group])
        return group, self.first_row[group] + number * self.size, number


def cut(group_sizes: Array, sizes: list[int]) -> list[Blocks]:
    """The blocks of every size, ascending by size; each group's largest blocks come first."""
    rest = group_sizes.astype(jnp.int32)
    row = jnp.cumsum(rest) - rest
    blocks = []
    for size in reversed(sizes):
        per_group = -(-rest // size) if size == sizes[0] else rest // size
        blocks.append(Blocks(size, per_group, jnp.cumsum(per_group), row))
        rest = rest - per_group * size
        row = row + per_group * size
    return blocks[::-1]


def _rows_times_weights(rows: Array, w: Array, group_sizes: Array, contract: int) -> Array:
    """[N, a] times each group's matrix, summed over the matrix's axis `contract`."""
    num_rows, width = rows.shape
    sizes = block_sizes(num_rows, w.shape[0])
    spill = sizes[0]
    padded = jnp.pad(rows, ((0, spill), (0, 0)))
    out = jnp.zeros((num_rows + spill, w.shape[2 - contract]), rows.dtype)
    for blocks in cut(group_sizes, sizes):
        if blocks.size > padded.shape[0]:
            continue

        def multiply(index: Array, out: Array, blocks: Blocks = blocks) -> Array:
            group, row, _ = blocks.locate(index)
            a = lax.dynamic_slice(padded, (row, 0), (blocks.size, width))
            b = lax.dynamic_index_in_dim(w, group, keepdims=False).astype(rows.dtype)
            y = _dot(a, b, contract).astype(rows.dtype)
            return lax.dynamic_update_slice(out, y, (row, 0))

        out = lax.fori_loop(0, blocks.count, multiply, out)
    owned = jnp.arange(num_rows) < jnp.sum(group_sizes)
    return jnp.where(owned[:, None], out[:num_rows], 0)


def weight_gradient(x: Array, dy: Array, group_sizes: Array) -> Array:
    num_rows, num_groups = x.shape[0], group_sizes.shape[0]
    step, longest = rungs(num_rows, num_groups)
    x = jnp.pad(x, ((0, step), (0, 0)))
    dy = jnp.pad(dy, ((0, step), (0, 0)))
    (blocks,) = cut(group_sizes, [longest])

    def product(length: int, row: Array, count: Array) -> Array:
        """x.T @ dy over `count` rows from `row` on, read as `length` rows."""
        owned = (jnp.arange(length) < count)[:, None]
        a = jnp.where(owned, lax.dynamic_slice(x, (row, 0), (length, x.shape[1])), 0)
        b = lax.dynamic_slice(dy, (row, 0), (length, dy.shape[1]))
        # XLA's CPU backend is 1.7 times faster in bfloat16 when x.T is laid out as such.
        a = with_layout_constraint(a.T, Layout((0, 1)))
        return _dot(a, b, 0)

    ladder = [functools.partial(product, n) for n in range(step, longest + 1, step)]

    def add(index: Array, out: Array) -> Array:
        group, row, number = blocks.locate(index)
        count = jnp.minimum(group_sizes[group] - number * longest, longest)
        dw = lax.switch((count - 1) // step, ladder, row, count)
        dw = dw + lax.dynamic_index_in_dim(out, group, keepdims=False)
        return lax.dynamic_update_index_in_dim(out, dw, group, 0)

    accumulator = jnp.promote_types(x.dtype, jnp.float32)
    out = jnp.zeros((num_groups, x.shape[1], dy.shape[1]), accumulator)
    return lax.fori_loop(0, blocks.count, add, out)


def rungs(num_rows: int, num_groups: int) -> tuple[int, int]:
    """Spacing and length of the ladder; the length is about a mean group's number of rows."""
    wanted = min(num_rows / num_groups, LONGEST_RUNG)
    step = SMALLEST_BLOCK * max(1, round(wanted / NUM_RUNGS / SMALLEST_BLOCK))
    return step, step * max(1, min(NUM_RUNGS, -(-num_rows // step)))


def _dot(a: Array, b: Array, contract: int) -> Array:
    """a [n, i] times b, summed over b's axis `contract`, in float32."""
    accumulator = jnp.promote_types(a.dtype, jnp.float32)
    return lax.dot_general(
        a, b, (((1,), (contract,)), ((), ())), preferred_element_type=accumulator
    )
