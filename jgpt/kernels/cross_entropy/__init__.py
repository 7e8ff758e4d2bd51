"""Loss and log-probabilities of tokens from hidden states, without the logits of a whole batch."""

from types import ModuleType

from jgpt.kernels.cross_entropy import blockwise, reference
from jgpt.typing import Array, CrossEntropy

BACKENDS: dict[str, ModuleType] = {"blockwise": blockwise, "reference": reference}
"""Each can do everything, so `auto` is the first."""


def cross_entropy(
    hidden: Array,
    head: Array,
    targets: Array,
    weights: Array,
    *,
    bias: Array | None = None,
    z_loss: float = 0.0,
    softcap: float = 0.0,
    backend: str = "auto",
) -> CrossEntropy:
    """Sums over tokens of weight * (-log p(target) + z_loss * logsumexp**2).

    logits = softcap(hidden @ head + bias), in float32. Only `total` is differentiable, in `hidden`,
    `head` and `bias`, and once (there is no second derivative). Tokens of weight 0 add nothing to
    any sum or gradient.

    Args:
        hidden: [..., D], its dtype is that of the multiplications.
        head: [D, V], cast to it; gradients come back in head's own dtype.
        targets: [...] int32 in [0, V).
        weights: [...] float32.
        bias: [V], added to the logits.
        z_loss: weight of logsumexp(logits)**2 (Chowdhery et al. 2022, section 5).
        softcap: c > 0 turns logits x into c * tanh(x / c).
        backend: `auto` or a name from BACKENDS.

    Raises:
        ValueError: an unknown backend, or shapes that do not fit.
    """
    _check(hidden, head, targets, weights)
    return _choose(backend).cross_entropy(
        hidden, head, targets, weights, bias=bias, z_loss=z_loss, softcap=softcap
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
        ValueError: an unknown backend, or shapes that do not fit.
    """
    _check(hidden, head, targets)
    return _choose(backend).token_logps(hidden, head, targets, bias=bias, softcap=softcap)


def _choose(backend: str) -> ModuleType:
    name = next(iter(BACKENDS)) if backend == "auto" else backend
    if name not in BACKENDS:
        raise ValueError(
            f"cross-entropy backend {backend!r} is unknown; choose auto or one of "
            f"{', '.join(BACKENDS)}"
        )
    return BACKENDS[name]


def _check(hidden: Array, head: Array, *per_token: Array) -> None:
    if head.ndim != 2 or hidden.shape[-1] != head.shape[0]:
        raise ValueError(f"hidden {hidden.shape} does not fit a head [D, V] of {head.shape}")
    for x in per_token:
        if x.shape != hidden.shape[:-1]:
            raise ValueError(f"hidden {hidden.shape} needs one entry per token, not {x.shape}")
