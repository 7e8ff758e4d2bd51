"""Attention: the contract, the backends, and the choice among them."""

import functools
import logging
from collections.abc import Callable
from typing import NamedTuple

from jgpt.kernels.attention import blockwise, cudnn, pallas_gpu, pallas_tpu, reference, xla
from jgpt.typing import Array, Bias, Mask

log = logging.getLogger(__name__)

SHORT_QUERY = 16
"""Up to so many queries against a longer row of keys, nothing is gained by cutting into blocks."""


class Backend(NamedTuple):
    attention: Callable[..., Array]
    """Takes `attention`'s arguments, less `backend`."""
    supports: Callable[..., str]
    """Takes the same, and says why it cannot; '' where it can."""


BACKENDS: dict[str, Backend] = {
    "pallas_tpu": Backend(pallas_tpu.attention, pallas_tpu.supports),
    "cudnn": Backend(cudnn.attention, cudnn.supports),
    "pallas_gpu": Backend(pallas_gpu.attention, pallas_gpu.supports),
    "blockwise": Backend(blockwise.attention, blockwise.supports),
    "xla": Backend(xla.attention, xla.supports),
    "reference": Backend(reference.attention, reference.supports),
}
"""In the order in which `auto` asks them."""


def attention(
    q: Array,
    k: Array,
    v: Array,
    mask: Mask,
    *,
    scale: float | Array,
    softcap: float = 0.0,
    bias: Bias | None = None,
    sinks: Array | None = None,
    dropout: float = 0.0,
    dropout_key: Array | None = None,
    backend: str = "auto",
) -> Array:
    """Softmax attention; query head h reads key/value head h // (H / K).

    scores = softcap(scale * q . k) + bias, then softmax over the keys `mask` allows, dropout, and
    the sum of values. A query that may see no key gives 0 and has no gradient.

    Args:
        q: [B, S, H, d].
        k: [B, T, K, d], H a multiple of K.
        v: [B, T, K, d].
        mask: which keys each query sees.
        scale: a number, or a scalar array, which then has a gradient.
        softcap: c > 0 turns scores s into c * tanh(s / c).
        bias: added to the scores.
        sinks: [H] logits; each adds exp(logit) to the softmax's denominator of its head.
        dropout: share of the probabilities set to 0, the others scaled up; needs `dropout_key`.
        dropout_key: None switches dropout off.
        backend: `auto` (the first of BACKENDS that can) or a name from there.

    Returns:
        [B, S, H, d] in q's dtype; scores and sums are float32 (float64 for float64 inputs).

    Raises:
        ValueError: shapes that do not fit, an unknown backend, or one that cannot do this.
    """
    _check(q, k, v, mask, sinks)
    options = {
        "scale": scale,
        "softcap": softcap,
        "bias": bias,
        "sinks": sinks,
        "dropout": dropout if dropout_key is not None else 0.0,
        "dropout_key": dropout_key,
    }
    name = _choose(backend, q, k, v, mask, options)
    return BACKENDS[name].attention(q, k, v, mask, **options)


def _choose(backend: str, q: Array, k: Array, v: Array, mask: Mask, options: dict) -> str:
    if backend != "auto":
        if backend not in BACKENDS:
            raise ValueError(
                f"attention backend {backend!r} is unknown; choose auto or one of "
                f"{', '.join(BACKENDS)}"
            )
        reason = BACKENDS[backend].supports(q, k, v, mask, **options)
        if reason:
            raise ValueError(f"attention backend {backend!r} cannot run: {reason}; choose auto")
        return backend
    if q.shape[1] <= SHORT_QUERY:
        name = "reference"
    else:
        name = next(n for n, b in BACKENDS.items() if not b.supports(q, k, v, mask, **options))
    _log_once(name, "short queries" if q.shape[1] <= SHORT_QUERY else "the first that can")
    return name


@functools.cache
def _log_once(name: str, why: str) -> None:
    log.info("attention backend: %s on %s (%s)", name, pallas_tpu.device_kind(), why)


def _check(q: Array, k: Array, v: Array, mask: Mask, sinks: Array | None) -> None:
    if q.ndim != 4 or k.ndim != 4 or v.ndim != 4:
        raise ValueError(f"attention needs q, k, v of rank 4, not {q.shape}, {k.shape}, {v.shape}")
    if k.shape[:3] != v.shape[:3] or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise ValueError(f"attention shapes do not fit: q {q.shape}, k {k.shape}, v {v.shape}")
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"{k.shape[2]} key/value heads do not divide {q.shape[2]} query heads")
    if (mask.q_segment_ids is None) != (mask.kv_segment_ids is None):
        raise ValueError("Mask needs both q_segment_ids and kv_segment_ids, or neither")
    if sinks is not None and sinks.shape != (q.shape[2],):
        raise ValueError(f"attention sinks have shape {sinks.shape}, not ({q.shape[2]},)")
