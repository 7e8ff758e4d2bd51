"""Attention: one head, causal, bf16, forward and with its gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.kernel_cases import Arithmetic, Case, Program
from jgpt.kernels.attention import pallas_tpu, pallas_tpu_steps
from jgpt.kernels.attention.schedule import make_schedule
from jgpt.typing import Mask

WIDTH = 128


def our_tables(length, block):
    """The walk of a causal mask in square blocks, checked against the tables themselves."""
    kernels, rows = pallas_tpu_steps, length // block
    starts = [i * (i + 1) // 2 for i in range(rows + 1)]

    def row(step):
        return sum((jnp.where(step >= start, 1, 0) for start in starts[1:-1]), 0 * step)

    def column(step):
        return step - sum((jnp.where(step >= n * (n + 1) // 2, n, 0) for n in range(1, rows)), 0)

    def kind(*at):
        i, j = row(at[-1]), column(at[-1])
        on = kernels.PARTIAL | kernels.DIAGONAL | kernels.LAST
        return kernels.RUN + jnp.where(j == 0, kernels.FIRST, 0) + jnp.where(i == j, on, 0)

    with jax.ensure_compile_time_eval():
        schedule = make_schedule(Mask(), length, length, block, block)
        static = kernels.Static(
            schedule,
            Mask(),
            False,
            False,
            length,
            1,
            0.0,
            pallas_tpu.OTHER_CHIP.blocks,
            0,
            0,
            False,
        )
        extras = kernels.Extras(None)
        steps = kernels.make_steps(static, extras, None)
        numbers = jnp.arange(starts[-1])
        for function, table in ((row, steps.rows), (column, steps.columns), (kind, steps.kinds)):
            np.testing.assert_array_equal(jax.vmap(function)(numbers), table.reshape(-1))
    total = starts[-1]
    made = [
        Arithmetic(row, (total,)),
        Arithmetic(lambda _, step: column(step), (1, total)),
        Arithmetic(kind, (1, total)),
        Arithmetic(lambda n: 0 * n, (1,)),
    ]
    return lambda *_: made


def splash_tables(name, operands, grid):
    """Splash's next block, kind of block, and index of the mask, of a causal mask in squares."""
    shape = (1, *grid[1:])
    backward = "dkv" in name
    tables = (
        Arithmetic(
            lambda h, i, j: jnp.where(j <= i, j if not backward else i, 0 if not backward else j),
            shape,
        ),
        Arithmetic(lambda h, i, j: jnp.where(j < i, 2, jnp.where(j == i, 1, 0)), shape),
        Arithmetic(lambda h, i, j: 0 * i, shape),
    )
    return [None if given is None else table for given, table in zip(operands, tables)]


def ours(q, k, v, block):
    blocks = pallas_tpu.CHIPS[pallas_tpu.device_kind()].blocks._replace(queries=block, keys=block)
    return pallas_tpu.attention(q, k, v, Mask(), scale=WIDTH**-0.5, blocks=blocks)


def flash(q, k, v, block):
    from jax.experimental.pallas.ops.tpu import flash_attention as module

    names = [f for f in module.BlockSizes.__dataclass_fields__ if f != "block_b"]
    sizes = module.BlockSizes(block_b=1, **dict.fromkeys(names, block))
    return module.flash_attention(q, k, v, causal=True, sm_scale=WIDTH**-0.5, block_sizes=sizes)


def splash(q, k, v, block, compute=None):
    from jax.experimental.pallas.ops.tpu import splash_attention as module

    names = ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv")
    sizes = module.BlockSizes(
        **dict.fromkeys(names, block),
        block_kv_compute=compute or block,
        block_kv_dkv_compute=compute or block,
        use_fused_bwd_kernel=True,
    )
    mask = module.MultiHeadMask([module.CausalMask((q.shape[2], k.shape[2]))])
    kernel = module.make_splash_mha_single_device(mask, block_sizes=sizes)
    return jax.vmap(kernel)(q * WIDTH**-0.5, k, v)


CONTENDERS = {
    "ours": (ours, 1024),
    "ours 512": (ours, 512),
    "flash 512": (flash, 512),
    "flash 1024": (flash, 1024),
    "splash 512": (splash, 512),
    "splash 1024": (splash, 1024),
    "splash 1024/512": (splash, 1024, 512),
}
"""Rows and columns of a block; splash may compute on fewer keys at once."""


def program(contender: str, length: int, what: str) -> Program:
    function, *blocks = CONTENDERS[contender]

    def attend(q, k, v):
        return function(q, k, v, *blocks)

    def both(q, k, v):
        out, pull = jax.vjp(attend, q, k, v)
        return out, pull(jnp.ones_like(out))

    shape = (1, length, 1, WIDTH) if function is ours else (1, 1, length, WIDTH)
    arrays = (jax.ShapeDtypeStruct(shape, jnp.bfloat16),) * 3
    tables = {ours: our_tables(length, blocks[0]), splash: splash_tables}.get(function)
    return Program(attend if what == "forward" else both, arrays, tables)


def case(length: int, what: str) -> Case:
    """The floor: the products of the causal half (two forward, five backward); q, k, v and the
    result travel once, and with gradients twice and the gradients once."""
    products, arrays = (2, 4) if what == "forward" else (7, 12)
    return Case(
        {name: functools.partial(program, name, length, what) for name in CONTENDERS},
        multiply_adds=products * length * length / 2 * WIDTH,
        bytes=arrays * 2 * length * WIDTH,
    )


CASES = {
    f"causal {length}, {what}": case(length, what)
    for length in (2048, 4096)
    for what in ("forward", "both")
}
