"""Attention: one query head (or four over one key/value head), width 128, bf16.

Causal, without a mask, in a window of 1,024, and in documents of 1,024; forward, and with all
gradients. Heads come before tokens, as the kernels read them: a model's projections write them so.
"""

import functools
import importlib.util
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from experiments.benchmarks.kernel_cases import Case, Program, attention_tables
from experiments.benchmarks.kernel_cases.attention_tables import Band
from jgpt.kernels.attention import pallas_tpu
from jgpt.typing import Mask

WIDTH = 128
SCALE = WIDTH**-0.5
SPAN = 1024
"""Of the window and of a document."""


class Problem(NamedTuple):
    length: int
    heads: int = 1
    """Over one key/value head."""
    causal: bool = True
    window: int = 0
    documents: bool = False

    def mask(self) -> Mask:
        ids = self.ids() if self.documents else None
        return Mask(self.causal, self.window, q_segment_ids=ids, kv_segment_ids=ids)

    def ids(self) -> jax.Array:
        return jnp.arange(self.length, dtype=jnp.int32)[None] // SPAN + 1

    def band(self, block: int) -> Band | None:
        """Of blocks that a mask without documents allows something in."""
        rows = self.length // block
        reach = -(-(self.window - 1) // block) if self.window else rows - 1
        return Band(rows, reach) if self.causal else None

    def pairs(self) -> int:
        """Of a query and a key that it sees."""
        if not self.causal:
            return self.heads * self.length**2
        full = self.length * (self.length + 1) // 2
        span = self.window or (SPAN if self.documents else self.length)
        if self.documents:
            return self.heads * self.length // span * (span * (span + 1) // 2)
        unseen = self.length - span
        return self.heads * (full - unseen * (unseen + 1) // 2)


Contender = tuple[Callable, Callable | None]
"""Takes q [1, H, S, d], k and v [1, 1, S, d]; and what stands for its tables."""


def ours(problem: Problem, block: int) -> Contender:
    def attend(q, k, v):
        blocks = pallas_tpu.CHIPS[pallas_tpu.device_kind()].blocks
        blocks = blocks._replace(queries=block, keys=block)
        q, k, v = (jnp.moveaxis(x, 1, 2) for x in (q, k, v))
        out = pallas_tpu.attention(q, k, v, problem.mask(), scale=SCALE, blocks=blocks)
        return jnp.moveaxis(out, 1, 2)

    span = problem.window or problem.documents * SPAN
    return attend, attention_tables.ours(problem.mask(), problem.length, block, span)


def flash(problem: Problem, block: int) -> Contender:
    from jax.experimental.pallas.ops.tpu import flash_attention as module

    names = [f for f in module.BlockSizes.__dataclass_fields__ if f != "block_b"]
    sizes = module.BlockSizes(block_b=1, **dict.fromkeys(names, block))

    def attend(q, k, v):
        ids = module.SegmentIds(problem.ids(), problem.ids()) if problem.documents else None
        k, v = (jnp.repeat(x, problem.heads, axis=1) for x in (k, v))
        return module.flash_attention(
            q, k, v, segment_ids=ids, causal=problem.causal, sm_scale=SCALE, block_sizes=sizes
        )

    return attend, None


def splash(problem: Problem, block: int, compute: int) -> Contender:
    from jax.experimental.pallas.ops.tpu import splash_attention as module

    names = ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv")
    sizes = module.BlockSizes(
        **dict.fromkeys(names, block),
        block_kv_compute=compute,
        block_kv_dkv_compute=compute,
        use_fused_bwd_kernel=True,
    )
    grouped = problem.heads > 1
    make = module.make_splash_mqa_single_device if grouped else module.make_splash_mha_single_device
    mask = module.MultiHeadMask([_splash_mask(problem, module)] * problem.heads)
    kernel = make(mask, block_sizes=sizes)
    tables = attention_tables.splash(kernel, problem.band(block))
    return _over_heads(problem, kernel, module.SegmentIds), tables


def tokamax(problem: Problem, block: int, compute: int, **options) -> Contender:
    """With natural exponentials: its base-2 form multiplies q in bfloat16, which the compiler's
    check refuses once the profile is on (the forward kernel's estimate is written before, and
    within 2% of this one)."""
    from tokamax._src.ops.experimental.tpu.splash_attention import base
    from tokamax._src.ops.experimental.tpu.splash_attention import splash_attention_kernel as module
    from tokamax._src.ops.experimental.tpu.splash_attention import splash_attention_mask as masks

    names = ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv")
    config = module.SplashConfig(
        **dict.fromkeys(names, block),
        block_kv_compute=compute,
        block_kv_dkv_compute=compute,
        use_experimental_scheduler=True,
        use_base2_exp=False,
        **options,
    )
    grouped = problem.heads > 1
    make = module.make_splash_mqa_single_device if grouped else module.make_splash_mha_single_device
    kernel = make(_splash_mask(problem, masks), config=config)
    tables = attention_tables.tokamax(kernel, problem.band(block))
    return _over_heads(problem, kernel, base.SegmentIds), tables


def _splash_mask(problem: Problem, module):
    shape = (problem.length, problem.length)
    if problem.window:
        return module.LocalMask(shape, (problem.window - 1, 0), 0)
    return module.CausalMask(shape) if problem.causal else module.FullMask(shape)


def _over_heads(problem: Problem, kernel: Callable, segment_ids: type) -> Callable:
    """Without the axis of rows; with it, the tables would have another one too."""

    def attend(q, k, v):
        ids = segment_ids(problem.ids()[0], problem.ids()[0]) if problem.documents else None
        k, v = (x[0, 0] if problem.heads > 1 else x[0] for x in (k, v))
        return kernel(q[0] * SCALE, k, v, segment_ids=ids)[None]

    return attend


CONTENDERS = {
    "ours": (ours, 1024),
    "ours 512": (ours, 512),
    "flash 1024": (flash, 1024),
    "splash 512": (splash, 512, 512),
    "splash 1024": (splash, 1024, 1024),
    "splash 1024/512": (splash, 1024, 512),
    "tokamax 512": (tokamax, 512, 512),
    "tokamax 1024/512": (tokamax, 1024, 512),
    "tokamax 1024, diagonal cut": (
        functools.partial(tokamax, qk_diag_skip=True, qk_diag_grid=4, sv_diag_skip=True),
        *(1024, 1024),
    ),
}
"""Rows and columns of a block; splash may compute on fewer keys at once. Blocks of 512 are for
windows: everywhere else they were behind those of 1,024."""


def program(contender: str, problem: Problem, what: str) -> Program:
    make, *blocks = CONTENDERS[contender]
    attend, tables = make(problem, *blocks)

    def both(q, k, v):
        out, pull = jax.vjp(attend, q, k, v)
        return out, pull(jnp.ones_like(out))

    def array(heads):
        return jax.ShapeDtypeStruct((1, heads, problem.length, WIDTH), jnp.bfloat16)

    arrays = array(problem.heads), array(1), array(1)
    return Program(attend if what == "forward" else both, arrays, tables)


def unavailable(problem: Problem) -> dict[str, str]:
    """Contenders without a figure, and why; by the first word or the whole name."""
    reasons = {}
    if importlib.util.find_spec("tokamax") is None:
        reasons["tokamax"] = "not installed"
    if problem.window:
        reasons["flash"] = "it has no window"
    else:
        small = "blocks of 512 are measured with windows"
        reasons |= dict.fromkeys(("ours 512", "splash 512", "tokamax 512"), small)
    if problem != Problem(problem.length):
        reasons["tokamax 1024, diagonal cut"] = "for one head under a plain causal mask"
    return reasons


def case(problem: Problem, what: str) -> Case:
    """The floor: the products of the pairs that are seen (two forward, five backward); q, k, v and
    the result travel once, and with gradients twice and the gradients once."""
    products, times = (2, 1) if what == "forward" else (7, 3)
    reasons = unavailable(problem)
    names = [n for n in CONTENDERS if not {n, n.split()[0]} & set(reasons)]
    return Case(
        {name: functools.partial(program, name, problem, what) for name in names},
        multiply_adds=products * problem.pairs() * WIDTH,
        bytes=times * 2 * WIDTH * problem.length * (2 * problem.heads + 2),
        unavailable=reasons,
    )


PROBLEMS = {
    "causal 2048": Problem(2048),
    "causal 4096": Problem(4096),
    "group of 4, 2048": Problem(2048, heads=4),
    "window 1024, 4096": Problem(4096, window=SPAN),
    "documents of 1024, 4096": Problem(4096, documents=True),
    "full 2048": Problem(2048, causal=False),
}
CASES = {
    f"{name}, {what}": case(problem, what)
    for name, problem in PROBLEMS.items()
    for what in ("forward", "both")
}
