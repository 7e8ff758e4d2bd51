"""NF4 product: a weight of 4,096 x 4,096, 16 rows (decoding) and 512 (training), bfloat16.

The floor has the codes and scales (4.5 bits per weight), rows and float32 results; it looks up no
levels. Beside ours: XLA, the whole weight dequantised and then multiplied.
"""

import functools

import jax
import jax.numpy as jnp

from experiments.benchmarks.kernel_cases import Case, Program
from jgpt.kernels.nf4_matmul import pallas_tpu, quantize, reference

WIDTH = 4096


def nf4(function, rows: int) -> Program:
    weight = jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32)
    packed = jax.eval_shape(functools.partial(quantize, double=False), weight)
    leaves, form = jax.tree.flatten(packed)

    def run(x, *leaves):
        return function(x, form.unflatten(leaves))

    return Program(run, (jax.ShapeDtypeStruct((rows, WIDTH), jnp.bfloat16), *leaves))


def case(rows: int, direction: str) -> Case:
    ours, plain = (getattr(module, direction) for module in (pallas_tpu, reference))
    contenders = {
        "ours": functools.partial(nf4, ours, rows),
        "xla dequantises, then multiplies": functools.partial(nf4, plain, rows),
    }
    moved = WIDTH * WIDTH * 4.5 / 8 + (2 + 4) * rows * WIDTH
    return Case(contenders, rows * WIDTH * WIDTH, moved)


CASES = {
    "16 rows, forward": case(16, "forward"),
    "512 rows, forward": case(512, "forward"),
    "512 rows, input gradient": case(512, "backward"),
}
