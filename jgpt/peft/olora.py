"""OLoRA: LoRA that begins orthonormal (Büyükakyüz 2024, section 3).

    W = Q R (Q orthonormal, R upper triangular),    B = Q_r,    A = R_r,    base = W - s B A

The columns of B are orthonormal at first, and the frozen base is what the first r of them leave.

The decomposition is that of W [out, in]: B [r, out] here has orthonormal rows, and a kernel
[in, out] is decomposed transposed.
"""

import jax.numpy as jnp

from jgpt.typing import Array


def split(kernel: Array, rank: int, scale: float) -> tuple[Array, Array, Array]:
    """(base [in, out], A [in, k], B [k, out]) with base + scale A B = kernel, in float32.

    k is `rank`, or the smaller side of the kernel if that is less.
    """
    q, r = jnp.linalg.qr(kernel.T)
    a, b = r[:rank].T, q[:, :rank].T
    return kernel - scale * (a @ b), a, b
