"""Attention kernels' tables of blocks as arithmetic, each checked against the tables themselves.

All are of square blocks on and below the diagonal, or of a band of blocks there.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.kernel_cases import Arithmetic
from jgpt.kernels.attention import pallas_tpu
from jgpt.kernels.attention import pallas_tpu_steps as steps_module
from jgpt.kernels.attention.schedule import make_schedule
from jgpt.typing import Mask


class Band(NamedTuple):
    """Blocks (i, j) with i - reach <= j <= i, row by row."""

    rows: int
    reach: int

    def firsts(self) -> list[int]:
        return [max(0, i - self.reach) for i in range(self.rows)]

    def starts(self) -> list[int]:
        """The step with which each row begins, and behind the last one the number of steps."""
        starts = [0]
        for i, first in enumerate(self.firsts()):
            starts.append(starts[-1] + i - first + 1)
        return starts

    def row(self, step):
        return sum((jnp.where(step >= start, 1, 0) for start in self.starts()[1:-1]), 0 * step)

    def column(self, step):
        starts = self.starts()
        offsets = [first - start for first, start in zip(self.firsts(), starts)]
        moves = zip(starts[1:], offsets[1:], offsets)
        return step + sum((jnp.where(step >= s, new - old, 0) for s, new, old in moves), 0)


def check(made: list[Arithmetic | None], tables: Any) -> list[Arithmetic | None]:
    """`made`, every entry of which is what the table of the same place holds."""
    for arithmetic, table in zip(made, tables, strict=True):
        if table is None:
            assert arithmetic is None
            continue
        table = np.asarray(table)
        at = np.indices(table.shape, np.int32).reshape(table.ndim, -1)
        entries = jax.vmap(lambda *at, of=arithmetic: of[at])(*at)
        np.testing.assert_array_equal(entries, table.reshape(-1))
    return made


def ours(mask: Mask, length: int, block: int, span: int) -> Callable:
    """`span`: keys of a window or of a document, 0 without one."""
    documents = mask.q_segment_ids is not None
    rows, m = length // block, steps_module
    band = Band(rows, span // block if mask.window else rows - 1)
    starts, total = band.starts(), band.starts()[-1]

    def whole(step):
        """Without a causal mask every block is in the walk."""
        return step // rows, step % rows

    def place(step):
        return (band.row(step), band.column(step)) if mask.causal else whole(step)

    def column(step):
        i, j = place(step)
        return jnp.maximum(i - jnp.where(i == j, 0, 1), 0) if documents else j

    def kind(step):
        i, j = place(step)
        if not mask.causal:
            ends = jnp.where(j == 0, m.FIRST, 0) + jnp.where(j == rows - 1, m.LAST, 0)
            return ends + m.RUN
        bits = sum((jnp.where(step == start, m.FIRST, 0) for start in starts[:-1]), 0 * i)
        bits += jnp.where(i == j, m.LAST | m.DIAGONAL, 0)
        far = (mask.window > 0) & (i - j == band.reach)
        bits += jnp.where(far, m.EDGE, 0)
        partial = (i == j) | far | documents
        works = (i == j) | (not documents)
        return bits + jnp.where(partial, m.PARTIAL, 0) + jnp.where(works, m.RUN, 0)

    total = total if mask.causal else rows * rows
    made = [
        Arithmetic(lambda step: place(step)[0], (total,)),
        Arithmetic(lambda _, step: column(step), (1, total)),
        Arithmetic(lambda _, step: kind(step), (1, total)),
        Arithmetic(lambda n: 0 * n, (1,)),
    ]
    with jax.ensure_compile_time_eval():
        static = steps_module.Static(
            schedule=make_schedule(mask, length, length, block, block),
            mask=mask,
            prefix=False,
            positions=False,
            keys=length,
            group=1,
            softcap=0.0,
            blocks=pallas_tpu.OTHER_CHIP.blocks,
            vmem_bytes=0,
            longest=length,
            interpret=False,
        )
        extras = steps_module.Extras(
            None, q_segments=mask.q_segment_ids, kv_segments=mask.kv_segment_ids
        )
        steps = steps_module.make_steps(static, extras, None)
        check(made, (steps.rows, steps.columns, steps.kinds, steps.prefixes))
    return lambda *_: made


def splash(kernel: Any, band: Band | None) -> Callable:
    """Next block, kind of block, index of the mask; `band` is None without a mask.

    Args:
        kernel: what jax's `make_splash_mha_single_device` gives.
        band: blocks in which something is allowed.
    """
    last = band.reach if band else 0

    def active(i, j):
        return (j <= i) & (i - j <= last)

    def kind(i, j):
        windowed = last < band.rows - 1
        partial = (i == j) | windowed & (i - j == last)
        return jnp.where(active(i, j), jnp.where(partial, 1, 2), 0)

    def shrunk(i, j):
        """The grid is as wide as the longest row of blocks."""
        return jnp.maximum(i - last, 0) + j

    def fetched(h, i, j):
        if band is None:
            return j
        return jnp.where(active(i, shrunk(i, j)), shrunk(i, j), 0)

    def fetched_back(h, i, j):
        if band is None:
            return i
        return jnp.where(active(i, j), i, jnp.where(i < j, j, j + 1))

    def tables(info: Any, next_block: Callable, of_block: Callable) -> list:
        made = [
            Arithmetic(next_block, info.data_next.shape),
            Arithmetic(of_block, info.block_mask.shape),
            None,
        ]
        with jax.ensure_compile_time_eval():
            return check(made, (info.data_next, info.block_mask, info.mask_next))

    whole = band is None
    forward = tables(
        kernel.fwd_mask_info,
        fetched,
        lambda h, i, j: 0 * i + 2 if whole else kind(i, shrunk(i, j)),
    )
    backward = tables(
        kernel.dkv_mask_info, fetched_back, lambda h, i, j: 0 * i + 2 if whole else kind(i, j)
    )
    return lambda name, operands, grid: backward if "dkv" in name else forward


def tokamax(kernel: Any, band: Band | None) -> Callable:
    """Row and column of a step, mask, row begins, row ends, kind, random key.

    Args:
        kernel: what tokamax's `make_splash_mha_single_device` gives.
        band: blocks in which something is allowed, None without a mask.
    """
    from tokamax._src.ops.experimental.tpu.splash_attention import splash_attention_mask_info

    if band is None:
        return lambda name, operands, grid: [None] * 7

    def kind(i, j):
        windowed = band.reach < band.rows - 1
        partial = (i == j) | windowed & (i - j == band.reach)
        return jnp.where((j <= i) & (i - j <= band.reach), jnp.where(partial, 1, 2), 0)

    def begins(step):
        return jnp.where(band.column(step) == jnp.maximum(band.row(step) - band.reach, 0), 1, 0)

    def ends(step):
        return jnp.where(band.column(step) == band.row(step), 1, 0)

    info, total = kernel.fwd_mask_info, (band.starts()[-1],)
    functions = (band.row, band.column, None, begins, ends)
    forward = [None if f is None else Arithmetic(f, total) for f in functions]
    forward += [Arithmetic(lambda step: kind(band.row(step), band.column(step)), total), None]
    back = kernel.dkv_mask_info.block_mask
    of_block = Arithmetic(lambda step: kind(step % band.rows, step // band.rows), back.shape)
    backward = [None, None, None, None, None, of_block, None]
    with jax.ensure_compile_time_eval():
        bounds = splash_attention_mask_info.find_bounds(info.active_rows)
        rows_and_columns = info.active_rows, info.active_cols
        check(forward, (*rows_and_columns, info.mask_next, *bounds, info.block_mask, None))
        check([of_block], [back])
    return lambda name, operands, grid: backward if "dkv" in name else forward
