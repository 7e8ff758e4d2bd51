"""Attention: one query head (or four over one key/value head), width 128, bf16, causal.

Alone, in a window of 1,024, and in documents of 1,024; forward, and with all gradients. Heads come
before tokens, as the kernels (but tokamax's) read them: a model's projections write them so.
"""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.kernel_cases import Arithmetic, Case, Program
from jgpt.kernels.attention import pallas_tpu
from jgpt.kernels.attention import pallas_tpu_steps as steps_module
from jgpt.kernels.attention.schedule import make_schedule
from jgpt.typing import Mask

WIDTH = 128
SPAN = 1024
"""Of the window and of a document."""


class Problem(NamedTuple):
    length: int
    heads: int = 1
    """Over one key/value head."""
    window: int = 0
    documents: bool = False

    def mask(self) -> Mask:
        ids = self.ids() if self.documents else None
        return Mask(window=self.window, q_segment_ids=ids, kv_segment_ids=ids)

    def ids(self) -> jax.Array:
        return jnp.arange(self.length, dtype=jnp.int32)[None] // SPAN + 1

    def pairs(self) -> int:
        """Of a query and a key that it sees."""
        full = self.length * (self.length + 1) // 2
        span = self.window or (SPAN if self.documents else self.length)
        if self.documents:
            return self.heads * self.length // span * (span * (span + 1) // 2)
        unseen = self.length - span
        return self.heads * (full - unseen * (unseen + 1) // 2)


def our_tables(problem: Problem, block: int) -> Callable:
    """The walk in square blocks as arithmetic, checked against the tables themselves."""
    rows = problem.length // block
    reach = problem.window // block if problem.window else rows
    firsts = [max(0, i - reach) for i in range(rows)]
    starts = [0]
    for i, first in enumerate(firsts):
        starts.append(starts[-1] + i - first + 1)
    offsets = [first - start for first, start in zip(firsts, starts)]
    total = starts[-1]

    def row(step):
        return sum((jnp.where(step >= start, 1, 0) for start in starts[1:-1]), 0 * step)

    def listed(step):
        moves = zip(starts[1:], offsets[1:], offsets)
        return step + sum((jnp.where(step >= s, new - old, 0) for s, new, old in moves), 0)

    def column(step):
        if not problem.documents:
            return listed(step)
        on_diagonal = row(step) == listed(step)
        return jnp.maximum(row(step) - jnp.where(on_diagonal, 0, 1), 0)

    def kind(*at):
        i, j = row(at[-1]), listed(at[-1])
        m = steps_module
        bits = sum((jnp.where(at[-1] == start, m.FIRST, 0) for start in starts[:-1]), 0 * i)
        bits += jnp.where(i == j, m.LAST | m.DIAGONAL, 0)
        partial = (i == j) | (problem.window > 0) & (i - j == reach) | problem.documents
        works = (i == j) | (not problem.documents)
        return bits + jnp.where(partial, m.PARTIAL, 0) + jnp.where(works, m.RUN, 0)

    with jax.ensure_compile_time_eval():
        mask = problem.mask()
        schedule = make_schedule(mask, problem.length, problem.length, block, block)
        static = steps_module.Static(
            schedule=schedule,
            mask=mask,
            prefix=False,
            positions=False,
            keys=problem.length,
            group=1,
            softcap=0.0,
            blocks=pallas_tpu.OTHER_CHIP.blocks,
            vmem_bytes=0,
            longest=problem.length,
            interpret=False,
        )
        extras = steps_module.Extras(None, **_segments(mask))
        steps = steps_module.make_steps(static, extras, None)
        numbers = jnp.arange(total)
        for function, table in ((row, steps.rows), (column, steps.columns), (kind, steps.kinds)):
            np.testing.assert_array_equal(jax.vmap(function)(numbers), table.reshape(-1))
    made = [
        Arithmetic(row, (total,)),
        Arithmetic(lambda _, step: column(step), (1, total)),
        Arithmetic(kind, (1, total)),
        Arithmetic(lambda n: 0 * n, (1,)),
    ]
    return lambda *_: made


def _segments(mask: Mask) -> dict[str, Any]:
    return {"q_segments": mask.q_segment_ids, "kv_segments": mask.kv_segment_ids}


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


def tokamax_tables(length: int, block: int) -> Callable:
    """Tokamax's splash, forward: row and column of a step, mask, row begins, row ends, kind."""
    rows = length // block
    starts = [n * (n + 1) // 2 for n in range(1, rows)]

    def row(step):
        return sum((jnp.where(step >= start, 1, 0) for start in starts), 0 * step)

    def column(step):
        return step - sum((jnp.where(step >= n * (n + 1) // 2, n, 0) for n in range(1, rows)), 0)

    def tables(name, operands, grid):
        functions = (
            row,
            column,
            lambda step: 0 * step,
            lambda step: jnp.where(column(step) == 0, 1, 0),
            lambda step: jnp.where(column(step) == row(step), 1, 0),
            lambda step: jnp.where(column(step) == row(step), 1, 2),
        )
        shape = (rows * (rows + 1) // 2,)
        made = [Arithmetic(function, shape) for function in functions]
        return [None if given is None else table for given, table in zip(operands, made)]

    return tables


def ours(problem: Problem, q, k, v, block):
    blocks = pallas_tpu.CHIPS[pallas_tpu.device_kind()].blocks._replace(queries=block, keys=block)
    q, k, v = (jnp.moveaxis(x, 1, 2) for x in (q, k, v))
    out = pallas_tpu.attention(q, k, v, problem.mask(), scale=WIDTH**-0.5, blocks=blocks)
    return jnp.moveaxis(out, 1, 2)


def flash(problem: Problem, q, k, v, block):
    from jax.experimental.pallas.ops.tpu import flash_attention as module

    names = [f for f in module.BlockSizes.__dataclass_fields__ if f != "block_b"]
    sizes = module.BlockSizes(block_b=1, **dict.fromkeys(names, block))
    ids = module.SegmentIds(problem.ids(), problem.ids()) if problem.documents else None
    k, v = (jnp.repeat(x, problem.heads, axis=1) for x in (k, v))
    return module.flash_attention(
        q, k, v, segment_ids=ids, causal=True, sm_scale=WIDTH**-0.5, block_sizes=sizes
    )


def splash(problem: Problem, q, k, v, block, compute=None):
    from jax.experimental.pallas.ops.tpu import splash_attention as module

    names = ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv")
    sizes = module.BlockSizes(
        **dict.fromkeys(names, block),
        block_kv_compute=compute or block,
        block_kv_dkv_compute=compute or block,
        use_fused_bwd_kernel=True,
    )
    mask = module.MultiHeadMask([module.CausalMask((q.shape[2], k.shape[2]))] * problem.heads)
    make = (
        module.make_splash_mqa_single_device
        if problem.heads > 1
        else (module.make_splash_mha_single_device)
    )
    if problem.heads > 1:
        k, v = k[:, 0], v[:, 0]
    ids = module.SegmentIds(problem.ids()[0], problem.ids()[0]) if problem.documents else None
    kernel = functools.partial(make(mask, block_sizes=sizes), segment_ids=ids)
    return jax.vmap(kernel)(q * WIDTH**-0.5, k, v)


def tokamax(problem: Problem, q, k, v, block, compute):
    from jax.extend import backend
    from tokamax._src.ops.attention import pallas_mosaic_tpu
    from tokamax._src.ops.experimental.tpu.splash_attention import splash_attention_kernel

    # It asks the default device what it is, which here is not the one compiled for.
    compiled_for = jax.sharding.get_abstract_mesh().abstract_device
    backend.get_default_device = lambda: compiled_for
    layout = splash_attention_kernel.QKVLayout.HEAD_DIM_MINOR
    config = pallas_mosaic_tpu.Config(
        block_q=block,
        block_kv=block,
        block_kv_compute=compute,
        **dict.fromkeys(("q_layout", "k_layout", "v_layout"), layout),
        use_experimental_scheduler=True,
        use_base2_exp=True,
    )
    return pallas_mosaic_tpu.PallasMosaicTpuFlashAttention(config=config)(q, k, v, is_causal=True)


CONTENDERS = {
    "ours": (ours, 1024),
    "ours 512": (ours, 512),
    "flash 512": (flash, 512),
    "flash 1024": (flash, 1024),
    "splash 512": (splash, 512),
    "splash 1024": (splash, 1024),
    "splash 1024/512": (splash, 1024, 512),
    "tokamax 1024/512": (tokamax, 1024, 512),
}
"""Rows and columns of a block; splash may compute on fewer keys at once."""


def program(contender: str, problem: Problem, what: str) -> Program:
    function, *blocks = CONTENDERS[contender]

    def attend(q, k, v):
        return function(problem, q, k, v, *blocks)

    def both(q, k, v):
        out, pull = jax.vjp(attend, q, k, v)
        return out, pull(jnp.ones_like(out))

    def array(heads):
        by_token = function is tokamax
        order = (problem.length, heads) if by_token else (heads, problem.length)
        return jax.ShapeDtypeStruct((1, *order, WIDTH), jnp.bfloat16)

    tables = None
    if function is ours:
        tables = our_tables(problem, blocks[0])
    elif function is splash:
        tables = splash_tables
    elif function is tokamax:
        tables = tokamax_tables(problem.length, blocks[0])
    arrays = array(problem.heads), array(1), array(1)
    return Program(attend if what == "forward" else both, arrays, tables)


def case(problem: Problem, what: str) -> Case:
    """The floor: the products of the pairs that are seen (two forward, five backward); q, k, v and
    the result travel once, and with gradients twice and the gradients once."""
    products, times = (2, 1) if what == "forward" else (7, 3)
    plain = problem == Problem(problem.length)
    unavailable = {}
    if importlib.util.find_spec("tokamax") is None:
        unavailable["tokamax"] = "not installed"
    elif not plain or what != "forward":
        unavailable["tokamax"] = "no arithmetic for its tables but those of causal blocks, forward"
    if problem.window:
        unavailable["splash"] = "no arithmetic for its tables of a local mask"
        unavailable["flash"] = "it has no window"
    names = [n for n in CONTENDERS if n.split()[0] not in unavailable]
    return Case(
        {name: functools.partial(program, name, problem, what) for name in names},
        multiply_adds=products * problem.pairs() * WIDTH,
        bytes=times * 2 * WIDTH * problem.length * (2 * problem.heads + 2),
        unavailable=unavailable,
    )


PROBLEMS = {
    "causal 2048": Problem(2048),
    "causal 4096": Problem(4096),
    "group of 4, 2048": Problem(2048, heads=4),
    "window 1024, 4096": Problem(4096, window=SPAN),
    "window 1024, 8192": Problem(8192, window=SPAN),
    "documents of 1024, 4096": Problem(4096, documents=True),
}
CASES = {
    f"{name}, {what}": case(problem, what)
    for name, problem in PROBLEMS.items()
    for what in ("forward", "both")
}
