"""The loss of a language model's head: ours, our chunks by XLA, XLA's plain form, and tokamax.

bf16 tokens and head, the head's gradient included in "both". The floor of "both" is three
products, since scores need to be computed only once; kernels that compute them again execute four.
`auto` takes chunks of 2,048 tokens on TPU; chunks of 1,024 show what a second chunk costs on the
same problem. Small, since the profile has its own limits: at width 2,048 the compiler puts more
arrays on the chip than it holds, and unrolled loops want gigabytes.
"""

import functools
import importlib.util
from typing import NamedTuple

import jax
import jax.numpy as jnp

from experiments.benchmarks.kernel_cases import Case, Program
from jgpt.kernels.cross_entropy import blockwise, pallas_tpu, reference


class Problem(NamedTuple):
    tokens: int
    width: int
    vocabulary: int

    def arrays(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        return (
            jax.ShapeDtypeStruct((self.tokens, self.width), jnp.bfloat16),
            jax.ShapeDtypeStruct((self.width, self.vocabulary), jnp.bfloat16),
            jax.ShapeDtypeStruct((self.tokens,), jnp.int32),
        )


def ours(problem: Problem, both: bool, module=pallas_tpu, **options) -> Program:
    def loss(hidden, head, targets):
        weights = jnp.ones(targets.shape)
        return module.cross_entropy(hidden, head, targets, weights, **options).total

    return Program(jax.value_and_grad(loss, (0, 1)) if both else loss, problem.arrays())


def tokamax(problem: Problem, both: bool, columns: int) -> Program:
    """Its kernels with the smallest rows that they take, 1,024."""
    from tokamax._src.ops.linear_softmax_cross_entropy_loss import (
        pallas_mosaic_tpu_kernel as module,
    )

    blocks = {"b_block_size": 1024, "h_block_size": 512, "v_block_size": columns}

    def run(hidden, head, targets):
        forward = module.linear_softmax_cross_entropy_loss_fwd_pallas_mosaic_tpu
        loss, normalizer = forward(hidden, targets, head, reduction="sum", **blocks)
        if not both:
            return loss
        backward = module.linear_softmax_cross_entropy_loss_bwd_pallas_mosaic_tpu
        one = jnp.float32(1)
        return loss, backward(one, normalizer, hidden, targets, head, reduction="sum", **blocks)

    return Program(run, problem.arrays())


def case(problem: Problem, both: bool) -> Case:
    make = functools.partial(ours, problem, both)
    contenders = {
        "ours": make,
        "ours in chunks of 1024": functools.partial(make, blocks=(1024, 512)),
        "XLA in chunks of 2048": functools.partial(make, blockwise, chunk=2048),
        "XLA in chunks of 1024": functools.partial(make, blockwise, chunk=1024),
        "XLA, all logits": functools.partial(make, reference),
    }
    unavailable = {}
    for columns in (512, 256):
        if importlib.util.find_spec("tokamax") is None:
            unavailable[f"tokamax {columns}"] = "not installed"
        else:
            contenders[f"tokamax {columns}"] = functools.partial(tokamax, problem, both, columns)
    tokens, width, vocabulary = problem
    return Case(
        contenders,
        multiply_adds=(3 if both else 1) * tokens * width * vocabulary,
        bytes=2 * (tokens * width + width * vocabulary) * (2 if both else 1),
        unavailable=unavailable,
    )


SMALL, LARGER = Problem(2048, 1024, 2048), Problem(4096, 1024, 2048)
CASES = {
    "forward": case(SMALL, False),
    "both": case(SMALL, True),
    "4096 tokens, both": case(LARGER, True),
}
