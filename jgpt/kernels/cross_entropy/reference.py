"""Cross-entropy as it is defined, with all logits [..., V] in memory. The specification."""

import jax
import jax.numpy as jnp

from jgpt.typing import Array, CrossEntropy


def supports(hidden: Array, head: Array, **_) -> str:
    """It can do everything."""
    return ""


def logits(hidden: Array, head: Array, bias: Array | None = None, softcap: float = 0.0) -> Array:
    """float32 [..., V] of hidden [..., D] and head [D, V]."""
    dtype = jnp.promote_types(hidden.dtype, jnp.float32)
    out = jnp.einsum(
        "...d,dv->...v", hidden, head.astype(hidden.dtype), preferred_element_type=dtype
    )
    if bias is not None:
        out += bias
    return softcap * jnp.tanh(out / softcap) if softcap else out


def _pick(scores: Array, targets: Array) -> Array:
    return jnp.take_along_axis(scores, targets[..., None], axis=-1)[..., 0]


def cross_entropy(
    hidden: Array,
    head: Array,
    targets: Array,
    weights: Array,
    *,
    bias: Array | None = None,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    softcap: float = 0.0,
) -> CrossEntropy:
    """See `jgpt.kernels.cross_entropy.cross_entropy`."""
    scores = logits(hidden, head, bias, softcap)
    normalizer = jax.nn.logsumexp(scores, axis=-1)
    chosen = _pick(scores, targets)
    nll, z = normalizer - chosen, normalizer**2
    even = normalizer - scores.mean(-1)  # the loss of a target that is every token alike
    smooth = (1 - label_smoothing) * nll + label_smoothing * even
    used = weights != 0  # so that a non-finite row of weight 0 stays out

    def total(values: Array) -> Array:
        return jnp.where(used, weights * values, 0).sum()

    stop = jax.lax.stop_gradient
    return CrossEntropy(
        total=total(smooth + z_loss * z),
        nll=stop(total(nll)),
        z=stop(total(z)),
        correct=stop(total(chosen >= scores.max(-1))),
        weight=stop(weights.sum()),
    )


def token_logps(
    hidden: Array,
    head: Array,
    targets: Array,
    *,
    bias: Array | None = None,
    softcap: float = 0.0,
) -> Array:
    """See `jgpt.kernels.cross_entropy.token_logps`."""
    scores = logits(hidden, head, bias, softcap)
    return _pick(scores, targets) - jax.nn.logsumexp(scores, axis=-1)
