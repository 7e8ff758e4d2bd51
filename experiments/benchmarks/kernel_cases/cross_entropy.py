"""The loss of a language model's head: ours beside XLA's chunks and tokamax.

bf16 tokens and head, the head's gradient included in "both", one chunk of 2,048 tokens or two of
1,024. The floor of "both" is three products, since scores need to be computed only once; kernels
that compute them again execute four. Small, since the profile has its own limits: at width 2,048
the compiler puts more arrays on the chip than it holds, and unrolled loops want gigabytes.
"""

import functools

import jax
import jax.numpy as jnp

from experiments.benchmarks.kernel_cases import Case, Program
from jgpt.kernels.cross_entropy import blockwise, pallas_tpu

TOKENS, WIDTH, VOCABULARY = 2048, 1024, 2048


def arrays() -> tuple[jax.ShapeDtypeStruct, ...]:
    return (
        jax.ShapeDtypeStruct((TOKENS, WIDTH), jnp.bfloat16),
        jax.ShapeDtypeStruct((WIDTH, VOCABULARY), jnp.bfloat16),
        jax.ShapeDtypeStruct((TOKENS,), jnp.int32),
    )


def ours(both: bool, module=pallas_tpu, **options) -> Program:
    def loss(hidden, head, targets):
        weights = jnp.ones(targets.shape)
        return module.cross_entropy(hidden, head, targets, weights, **options).total

    return Program(jax.value_and_grad(loss, (0, 1)) if both else loss, arrays())


def tokamax(both: bool, columns: int) -> Program:
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

    return Program(run, arrays())


def case(both: bool) -> Case:
    products = 3 if both else 1
    size = TOKENS * WIDTH + WIDTH * VOCABULARY
    return Case(
        contenders={
            "ours": functools.partial(ours, both),
            "ours in chunks of 1024": functools.partial(ours, both, blocks=(1024, 512)),
            "XLA in chunks of 2048": functools.partial(ours, both, blockwise, chunk=2048),
            "XLA in chunks of 1024": functools.partial(ours, both, blockwise, chunk=1024),
            "tokamax 512": functools.partial(tokamax, both, 512),
        },
        multiply_adds=products * TOKENS * WIDTH * VOCABULARY,
        bytes=2 * size * (2 if both else 1),
    )


CASES = {"forward": case(False), "both": case(True)}
