"""Distributions over the vocabulary, made for a few tokens at a time."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jgpt.kernels.matmul import matmul
from jgpt.typing import Array, PyTree

CHUNK = 1024
"""Tokens whose logits are in memory at one time."""
Projection = tuple[Array, Array, Array | None]
"""What `models.apply` gives as `projection`: hidden [B, S, D], kernel [D, V], bias [V] or None."""


def logits_of(projection: Projection, softcap: float) -> Array:
    """[B, S, V] float32."""
    hidden, kernel, bias = projection
    logits = matmul(hidden, kernel, out_dtype=jnp.float32)
    if bias is not None:
        logits = logits + bias
    return softcap * jnp.tanh(logits / softcap) if softcap else logits


def by_chunks(function: Callable[..., PyTree], *arrays: Array, chunk: int = CHUNK) -> PyTree:
    """`function` of arrays [B, S, ...], computed for parts [B, s, ...] one after another.

    The rows stay cut over a mesh as they are; s is the largest divisor of S with B s <= `chunk`.

    Args:
        function: of the arrays' parts; gives arrays [B, s, ...].

    Returns:
        Those arrays, [B, S, ...].
    """
    rows, length = arrays[0].shape[:2]
    size = max(s for s in range(1, length + 1) if length % s == 0 and (s * rows <= chunk or s == 1))

    def cut(x: Array) -> Array:
        return x.reshape(rows, length // size, size, *x.shape[2:]).swapaxes(0, 1)

    def joined(x: Array) -> Array:
        return x.swapaxes(0, 1).reshape(rows, length, *x.shape[3:])

    parts = jax.lax.map(lambda xs: function(*xs), jax.tree.map(cut, arrays))
    return jax.tree.map(joined, parts)
