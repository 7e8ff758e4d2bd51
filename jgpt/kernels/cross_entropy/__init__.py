"""Loss and log-probabilities of tokens from hidden states: the contract and choice of a backend."""

import functools
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

from jgpt.kernels.cross_entropy import blockwise, pallas_tpu, reference
from jgpt.kernels.device import device_kind
from jgpt.typing import Array, CrossEntropy

log = logging.getLogger(__name__)


class Backend(NamedTuple):
    cross_entropy: Callable[..., CrossEntropy]
    """Takes `cross_entropy`'s arguments, less `backend`."""
    token_logps: Callable[..., Array]
    """Takes `token_logps`'s arguments, less `backend`."""
    supports: Callable[..., str]
    """Takes hidden, head and keyword `bias`, and says why it cannot; '' where it can."""


def _backend(module: Any) -> Backend:
    return Backend(module.cross_entropy, module.token_logps, module.supports)


BACKENDS: dict[str, Backend] = {
    "pallas_tpu": _backend(pallas_tpu),
    "blockwise": _backend(blockwise),
    "reference": _backend(reference),
}
"""In the order in which `auto` asks them, but for the chips of FIRST."""

FIRST = {"TPU v5 lite": "blockwise", "TPU v6 lite": "blockwise"}
"""By device kind, what `auto` asks before all others: by the compiler's estimates XLA's products in
chunks are ahead of our kernels there (experiments/kernels/cross_entropy.md)."""


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
    backend: str = "auto",
) -> CrossEntropy:
    """Sums over tokens of weight * (smoothed loss + z_loss * logsumexp**2).

    logits = softcap(hidden @ head + bias), in float32. The smoothed loss is the cross-entropy with
    (1 - label_smoothing) * [is the target] + label_smoothing / V (Szegedy et al. 2016, section 7;
    torch's definition): the target itself is one of the V tokens that share the smoothed part.
    `nll` is without smoothing. Only `total` is differentiable, in `hidden`, `head` and `bias`, and
    once (there is no second derivative). Tokens of weight 0 add nothing to any sum or gradient.

    On a mesh that is set (`jax.set_mesh`) tokens stay cut along the batch axes, and each device
    computes with its own part of the vocabulary, as `sharding.RULES` says.

    Args:
        hidden: [..., D], its dtype is that of the multiplications.
        head: [D, V], cast to it; gradients come back in head's own dtype.
        targets: [...] int32 in [0, V).
        weights: [...] float32.
        bias: [V], added to the logits.
        z_loss: weight of logsumexp(logits)**2 (Chowdhery et al. 2022, section 5).
        label_smoothing: in [0, 1).
        softcap: c > 0 turns logits x into c * tanh(x / c).
        backend: `auto` (the first that can, see BACKENDS and FIRST) or a name from there.

    Raises:
        ValueError: an unknown backend, one that cannot do this, shapes that do not fit.
    """
    _check(hidden, head, targets, weights)
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing is {label_smoothing}; it must be at least 0 and below 1")
    return BACKENDS[_choose(backend, hidden, head, bias)].cross_entropy(
        hidden,
        head,
        targets,
        weights,
        bias=bias,
        z_loss=z_loss,
        label_smoothing=label_smoothing,
        softcap=softcap,
    )


def token_logps(
    hidden: Array,
    head: Array,
    targets: Array,
    *,
    bias: Array | None = None,
    softcap: float = 0.0,
    backend: str = "auto",
) -> Array:
    """log p(target) of every token, float32 [...]; arguments as for `cross_entropy`.

    Differentiable in `hidden`, `head` and `bias`; logits are computed again in the backward pass.

    Raises:
        ValueError: an unknown backend, one that cannot do this, shapes that do not fit.
    """
    _check(hidden, head, targets)
    return BACKENDS[_choose(backend, hidden, head, bias)].token_logps(
        hidden, head, targets, bias=bias, softcap=softcap
    )


def _choose(backend: str, hidden: Array, head: Array, bias: Array | None) -> str:
    if backend != "auto":
        if backend not in BACKENDS:
            raise ValueError(
                f"cross-entropy backend {backend!r} (model.loss_backend) is unknown; choose auto "
                f"or one of {', '.join(BACKENDS)}"
            )
        reason = BACKENDS[backend].supports(hidden, head, bias=bias)
        if reason:
            raise ValueError(
                f"cross-entropy backend {backend!r} (model.loss_backend) cannot run: {reason}; "
                "choose auto"
            )
        return backend
    order = sorted(BACKENDS, key=lambda name: name != FIRST.get(device_kind()))
    reasons = {name: BACKENDS[name].supports(hidden, head, bias=bias) for name in order}
    name = next(name for name, reason in reasons.items() if not reason)
    _log_once(name, "; ".join(reason for reason in reasons.values() if reason))
    return name


@functools.cache
def _log_once(name: str, why: str) -> None:
    log.info("cross-entropy backend: %s%s", name, f" ({why})" if why else "")


def _check(hidden: Array, head: Array, *per_token: Array) -> None:
    if head.ndim != 2 or hidden.shape[-1] != head.shape[0]:
        raise ValueError(f"hidden {hidden.shape} does not fit a head [D, V] of {head.shape}")
    for x in per_token:
        if x.shape != hidden.shape[:-1]:
            raise ValueError(f"hidden {hidden.shape} needs one entry per token, not {x.shape}")
