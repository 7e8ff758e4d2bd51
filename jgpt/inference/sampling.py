"""How the next token is drawn from logits: pure functions over [B, V] arrays.

The filters run in the order of `filtered`, each on what the one before it left, renormalised:
repetition penalty (Keskar et al. 2019, section 4.1), temperature, top-k, top-p (nucleus; Holtzman
et al. 2020, section 3.1), min-p (Nguyen et al. 2024, section 3). Both top-k and top-p ask for the
largest probability threshold that keeps enough. It is found exactly by bisection over the bits of a
float instead of a sort, which is several times cheaper for real vocabularies. Tokens tied at the
edge stay together.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from jgpt.config import SampleConfig
from jgpt.typing import Array


def penalised(logits: Float[Array, "B V"], seen: Bool[Array, "B V"], penalty: float) -> Array:
    """Logits of tokens already `seen`, moved away from being drawn by the factor `penalty`."""
    return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


def largest_threshold(
    values: Float[Array, "B V"], enough: Callable[[Bool[Array, "B V"]], Bool[Array, "B"]]
) -> Float[Array, "B 1"]:
    """The largest t for which `enough(values >= t)` holds, row by row; 0 where none does.

    Non-negative floats are ordered as their bits are, so 31 halvings find t to the last bit.

    Args:
        values: non-negative float32.
        enough: false for small sets and true for large ones (monotone).
    """
    bits = jax.lax.bitcast_convert_type(values.astype(jnp.float32), jnp.int32)

    def try_bit(i: Array, found: Array) -> Array:
        candidate = found | jnp.left_shift(jnp.int32(1), 30 - i)
        return jnp.where(enough(bits >= candidate)[:, None], candidate, found)

    found = jax.lax.fori_loop(0, 31, try_bit, jnp.zeros((values.shape[0], 1), jnp.int32))
    return jax.lax.bitcast_convert_type(found, jnp.float32)


def keep_top_k(logits: Float[Array, "B V"], k: int) -> Float[Array, "B V"]:
    """Logits of the `k` likeliest tokens; -inf elsewhere."""
    probabilities = jax.nn.softmax(logits, axis=-1)
    threshold = largest_threshold(probabilities, lambda kept: kept.sum(-1) >= k)
    return jnp.where(probabilities >= threshold, logits, -jnp.inf)


def keep_top_p(logits: Float[Array, "B V"], p: float) -> Float[Array, "B V"]:
    """Logits of the smallest set of likeliest tokens whose probability is at least `p`."""
    probabilities = jax.nn.softmax(logits, axis=-1)
    threshold = largest_threshold(
        probabilities, lambda kept: jnp.where(kept, probabilities, 0).sum(-1) >= p
    )
    return jnp.where(probabilities >= threshold, logits, -jnp.inf)


def keep_min_p(logits: Float[Array, "B V"], p: float) -> Float[Array, "B V"]:
    """Logits of tokens at least `p` times as likely as the likeliest."""
    return jnp.where(logits >= logits.max(-1, keepdims=True) + jnp.log(p), logits, -jnp.inf)


def filtered(
    logits: Float[Array, "B V"], config: SampleConfig, seen: Bool[Array, "B V"] | None = None
) -> Float[Array, "B V"]:
    """The logits to draw from: -inf for tokens that `config` rules out.

    Args:
        logits: float32.
        config: `temperature` must be above 0 (greedy draws do not look at the other logits).
        seen: which tokens the text has already; needed where `repetition_penalty` is not 1.
    """
    if config.repetition_penalty != 1:
        logits = penalised(logits, seen, config.repetition_penalty)
    logits = logits / config.temperature
    if 0 < config.top_k < logits.shape[-1]:
        logits = keep_top_k(logits, config.top_k)
    if config.top_p < 1:
        logits = keep_top_p(logits, config.top_p)
    if config.min_p > 0:
        logits = keep_min_p(logits, config.min_p)
    return logits


def likeliest(logits: Float[Array, "B V"]) -> Int[Array, "B"]:
    """Index of the largest, int32, the first of tied ones; 0 where all are NaN.

    In two passes, which XLA's CPU backend vectorises; its argmax takes five times as long.
    """
    size = logits.shape[-1]
    highest = logits.max(axis=-1, keepdims=True)
    index = jnp.where(logits == highest, jnp.arange(size, dtype=jnp.int32), size)
    return index.min(axis=-1) % size


def sample(
    keys: Array,
    logits: Float[Array, "B V"],
    config: SampleConfig,
    seen: Bool[Array, "B V"] | None = None,
) -> Int[Array, "B"]:
    """One token per row, int32.

    Args:
        keys: [B] random keys, one per row, so that a row's draw does not depend on the others.
        logits: any float dtype.
        config: temperature 0 takes the likeliest token (the first of tied ones).
        seen: as in `filtered`.
    """
    logits = logits.astype(jnp.float32)
    if config.temperature == 0:
        if config.repetition_penalty != 1:
            logits = penalised(logits, seen, config.repetition_penalty)
        return likeliest(logits)
    return jax.vmap(jax.random.categorical)(keys, filtered(logits, config, seen)).astype(jnp.int32)
