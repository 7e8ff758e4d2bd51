"""PiSSA: LoRA on a matrix's principal part (Meng, Wang and Zhang 2024, section 3).

    W = U S V^T,    A = sqrt(S_r / s) V_r^T,    B = U_r sqrt(S_r / s),    base = W - s B A

What is trained begins as the r largest singular values and their vectors, and what is frozen as the
rest, so that the model is the same and the first gradients are large: with B = 0, A has none.

A = V_r sqrt(S_r / s) is [in, r] here, and so on: a kernel [in, out] is the transpose of W.
"""

import jax.numpy as jnp

from jgpt.typing import Array


def split(kernel: Array, rank: int, scale: float) -> tuple[Array, Array, Array]:
    """(base [in, out], A [in, k], B [k, out]) with base + scale A B = kernel, in float32.

    k is `rank`, or the smaller side of the kernel if that is less.
    """
    a, b = principal_part(kernel, rank, scale)
    return kernel - scale * (a @ b), a, b


def principal_part(kernel: Array, rank: int, scale: float) -> tuple[Array, Array]:
    """A and B whose product times `scale` is the nearest matrix of that rank (Eckart and Young)."""
    left, values, right = jnp.linalg.svd(kernel, full_matrices=False)
    root = jnp.sqrt(values[:rank] / scale)
    return left[:, :rank] * root, root[:, None] * right[:rank]
