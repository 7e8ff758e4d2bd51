"""The residual stream: adding a sublayer's output to it, and dropout on the way."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from jgpt.typing import Array


class Residual(nn.Module):
    """`r + h`: one of the sites that adapters attach to (bottleneck adapters act on h or r + h)."""

    @nn.compact
    def __call__(
        self,
        r: Float[Array, "B S D"],
        h: Float[Array, "B S D"],
        norm: Callable[[Array], Array] | None = None,
    ) -> Float[Array, "B S D"]:
        """The sum; `norm` is what comes after it, which some adapters apply before."""
        return r + h


def dropout(x: Float[Array, "..."], rate: float, key: Array | None) -> Float[Array, "..."]:
    """Zeroes each entry with probability `rate` and divides the rest by `1 - rate`.

    Without a key (evaluation) or at rate 0, `x` unchanged.
    """
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0.0).astype(x.dtype)
