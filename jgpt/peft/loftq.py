"""LoftQ: LoRA that begins as what quantisation loses (Li et al. 2023, algorithm 1).

    repeat:  Q = NF4(W - s B A),    s B A = nearest matrix of rank r to W - Q;    base = Q

The model that training starts from is closer to the original than `Q = NF4(W)` with B = 0 is. It
is not the original: of all ways to begin, this is the one that changes the model.

One repetition by default (`peft.loftq_iterations`), as in common code; that code leaves out the
scale, so that its alpha has to be r, and here A and B are divided by sqrt(s) each instead. Start
from whole weights, and quantise the base that is returned (`peft.quantize='nf4'`): its codes come
out the same.
"""

import jax.numpy as jnp

from jgpt.config import ConfigError
from jgpt.kernels.nf4_matmul import dequantize, quantize
from jgpt.kernels.nf4_matmul.format import BLOCK
from jgpt.peft.pissa import principal_part
from jgpt.typing import Array


def split(
    kernel: Array, rank: int, scale: float, iterations: int = 1, double: bool = False
) -> tuple[Array, Array, Array]:
    """(base [in, out], A [in, k], B [k, out]) with base + scale A B about kernel, in float32.

    Args:
        double: whether the scales of the blocks are quantised too.

    Raises:
        ConfigError: in is no multiple of 64.
    """
    if kernel.shape[0] % BLOCK:
        raise ConfigError(
            f"peft.init='loftq': blocks of {BLOCK} do not fit {kernel.shape[0]} inputs; leave such "
            "modules out with peft.exclude"
        )
    base, learned = kernel, jnp.zeros_like(kernel)
    a = b = None
    for _ in range(iterations):
        base = dequantize(quantize((kernel - learned).T, double=double)).T
        a, b = principal_part(kernel - base, rank, scale)
        learned = scale * (a @ b)
    return base, a, b
