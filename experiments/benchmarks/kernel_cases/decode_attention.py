"""Decode attention: one new token per row against a paged cache, 8 rows, 8 key/value heads of 4.

Row b holds 1,024 (b + 1) tokens, so lengths go from 1,024 to 8,192. The floor is the keys and
values inside the lengths (and the window) at the memory's rate; int8 rows add their scales.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from experiments.benchmarks.kernel_cases import Arithmetic, Case, Program
from jgpt.kernels.decode_attention import Pages, pallas_tpu
from jgpt.typing import Mask

ROWS, KV_HEADS, GROUP, WIDTH = 8, 8, 4, 128
STEP = 1024
LENGTHS = np.arange(1, ROWS + 1) * STEP
PAGE = 128


def array(*shape, dtype="bfloat16"):
    return jax.ShapeDtypeStruct(shape, dtype)


def ours(int8=False, window=0, page=PAGE, chunk=None) -> Program:
    """The shipped kernel; its walk is given as arithmetic, checked against its tables."""
    columns = int(LENGTHS[-1]) // page
    pool = (ROWS * columns, KV_HEADS, page)
    dtype = "int8" if int8 else "bfloat16"
    stored = Pages(
        k=array(*pool, WIDTH, dtype=dtype),
        v=array(*pool, WIDTH, dtype=dtype),
        table=array(ROWS, columns, dtype="int32"),
        lengths=array(ROWS, dtype="int32"),
        k_scales=array(*pool, dtype="float32") if int8 else None,
        v_scales=array(*pool, dtype="float32") if int8 else None,
    )
    size = chunk or pallas_tpu._chunk(stored)

    def first(row):
        return jnp.maximum((row + 1) * STEP - window, 0) // size if window else 0 * row

    def count(row):
        return ((row + 1) * STEP + size - 1) // size - first(row)

    def before(row):
        return sum((jnp.where(row > n, count(n + 0 * row), 0) for n in range(ROWS)), 0 * row)

    made = [
        Arithmetic(first, (ROWS,)),
        Arithmetic(count, (ROWS,)),
        Arithmetic(before, (ROWS,)),
        Arithmetic(lambda row: row, (ROWS + 1,)),
        Arithmetic(lambda row: (row + 1) * STEP, (ROWS,)),
        Arithmetic(lambda row, page: row * columns + page, (ROWS, columns)),
    ]
    real = Pages(
        k=np.empty((1, 1, page, 1), np.int8),
        v=None,
        table=jnp.arange(ROWS * columns).reshape(ROWS, columns),
        lengths=jnp.asarray(LENGTHS),
    )
    with jax.ensure_compile_time_eval():
        mask = Mask(window=window, q_positions=jnp.asarray(LENGTHS - 1)[:, None])
        tables = pallas_tpu.make_tables(real, mask, size)
        for table, arithmetic in zip(tables, made, strict=True):
            indices = np.indices(table.shape)
            np.testing.assert_array_equal(arithmetic[tuple(jnp.asarray(indices))], table)

    leaves, form = jax.tree.flatten(stored)

    def attend(q, positions, *leaves):
        stored, mask = form.unflatten(leaves), Mask(window=window, q_positions=positions)
        return pallas_tpu.decode_attention(q, stored, mask, scale=WIDTH**-0.5, chunk=chunk)[0]

    queries = array(ROWS, 1, KV_HEADS * GROUP, WIDTH)
    return Program(attend, (queries, array(ROWS, 1, dtype="int32"), *leaves), lambda *_: made)


class Written(Arithmetic):
    """A scalar that a kernel also writes; what it would hold follows from the grid's indices."""

    def __setitem__(self, at, value):
        pass


def public(blocks=4) -> Program:
    """jax's paged attention, `blocks` pages at once."""
    from jax.experimental.pallas.ops.tpu.paged_attention import paged_attention

    columns = int(LENGTHS[-1]) // PAGE
    pool = array(KV_HEADS, ROWS * columns, PAGE, WIDTH)
    steps = [-(-int(n) // (blocks * PAGE)) for n in LENGTHS]

    def buffer(_):
        row, head = pl.program_id(1), pl.program_id(2)
        done = sum((jnp.where(row > n, KV_HEADS * steps[n], 0) for n in range(ROWS)), 0 * row)
        here = sum((jnp.where(row == n, steps[n], 0) for n in range(ROWS)), 0 * row)
        return (done + head * here) % 2

    def initial(_):
        return jnp.where(pl.program_id(1) + pl.program_id(2) == 0, 1, 0)

    made = [
        Arithmetic(lambda row: (row + 1) * STEP, (ROWS,)),
        Arithmetic(lambda at: at, (ROWS * columns,)),
        Written(buffer, (1,)),
        Written(initial, (1,)),
    ]

    def attend(q, k, v, lengths, pages):
        return paged_attention(q, k, v, lengths, pages, pages_per_compute_block=blocks)

    lengths, pages = array(ROWS, dtype="int32"), array(ROWS, columns, dtype="int32")
    queries = array(ROWS, KV_HEADS * GROUP, WIDTH)
    return Program(attend, (queries, pool, pool, lengths, pages), lambda *_: made)


NO_RAGGED = (
    "ragged paged attention walks rows in a loop whose state it keeps in scalar memory; the "
    "estimate cannot follow it"
)


def case(int8=False, window=0) -> Case:
    tokens = int(np.minimum(LENGTHS, window or LENGTHS).sum()) * KV_HEADS
    width = 2 * (WIDTH + 4) if int8 else 4 * WIDTH
    given = functools.partial(ours, int8, window)
    contenders = {"ours": given, "ours 16": functools.partial(given, page=16)}
    unavailable = {"ragged paged attention": NO_RAGGED}
    if int8:
        # Scales are copied in whole tiles, which pages of 16 tokens do not fill.
        del contenders["ours 16"]
        unavailable["paged attention"] = "its int8 scales are repeated to the width of a head"
    elif window:
        unavailable["paged attention"] = "it has no window"
    else:
        contenders["paged attention 512"] = functools.partial(public, 4)
        contenders["paged attention 1024"] = functools.partial(public, 8)
    return Case(contenders, 2 * tokens * GROUP * WIDTH, tokens * width, unavailable)


CASES = {
    "decode 1k to 8k, bf16": case(),
    "decode 1k to 8k, int8": case(int8=True),
    "decode 1k to 8k, window 1024, bf16": case(window=1024),
}
