"""Attention: the contract, the backends, and the choice among them."""

import functools
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from jgpt.kernels.attention import (
    blockwise,
    cudnn,
    pallas_gpu,
    pallas_tpu,
    reference,
    ring,
    xla,
)
from jgpt.kernels.attention.ring_schedule import zigzag_order
from jgpt.kernels.device import device_kind
from jgpt.typing import Array, Bias, Mask

log = logging.getLogger(__name__)

SHORT_QUERY = 16
"""Up to so many queries against a longer row of keys, nothing is gained by cutting into blocks."""


class Backend(NamedTuple):
    attention: Callable[..., Array]
    """Takes `attention`'s arguments, less `backend`."""
    supports: Callable[..., str]
    """Takes the same, and says why it cannot; '' where it can."""
    with_logsumexp: Callable[..., tuple[Array, Array]] | None = None
    """Takes the same; None where the log-sum-exp cannot be had."""
    takes_known: bool = False
    """Whether it takes `known`, and then computes gradients alone."""


def _one_part(*arrays: Array, **options: Any) -> tuple[Array, Array]:
    """What computes the parts of a ring: the first backend that can, on one device."""
    return attention_with_logsumexp(*arrays, **options)


BACKENDS: dict[str, Backend] = {
    "ring": Backend(
        functools.partial(ring.attention, attend=_one_part),
        ring.supports,
        functools.partial(ring.attention_with_logsumexp, attend=_one_part),
    ),
    "pallas_tpu": Backend(
        pallas_tpu.attention, pallas_tpu.supports, pallas_tpu.attention_with_logsumexp, True
    ),
    "cudnn": Backend(cudnn.attention, cudnn.supports),
    "pallas_gpu": Backend(
        pallas_gpu.attention, pallas_gpu.supports, pallas_gpu.attention_with_logsumexp
    ),
    "blockwise": Backend(
        blockwise.attention, blockwise.supports, blockwise.attention_with_logsumexp, True
    ),
    "xla": Backend(xla.attention, xla.supports),
    "reference": Backend(
        reference.attention, reference.supports, reference.attention_with_logsumexp
    ),
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
    options = {"scale": scale, "softcap": softcap, "bias": bias, "sinks": sinks}
    options |= {"dropout": dropout, "dropout_key": dropout_key}
    return _dispatch(backend, False, q, k, v, mask, options)


def attention_with_logsumexp(
    q: Array,
    k: Array,
    v: Array,
    mask: Mask,
    *,
    scale: float | Array,
    softcap: float = 0.0,
    bias: Bias | None = None,
    sinks: Array | None = None,
    known: tuple[Array, Array] | None = None,
    backend: str = "auto",
) -> tuple[Array, Array]:
    """`attention`, and what its softmax divides by, so that results over parts of the keys add up.

    Results o_i with log-sum-exps l_i over disjoint keys make sum_i exp(l_i - l) o_i with
    l = log(sum_i exp(l_i)) (Liu et al. 2023, ring attention, section 3). Both have gradients.

    Args:
        q: as in `attention`, and so on up to `backend`.
        k: see there.
        v: see there.
        mask: see there; `q_positions` and `kv_positions` say which part the keys are.
        scale: see there.
        softcap: see there.
        bias: see there.
        sinks: see there; to be given with one of the parts alone.
        known: the result and log-sum-exp over all parts. They are returned as they are, with the
            gradients that these keys have in them; most backends then compute nothing but those.
        backend: see there.

    Returns:
        `attention`'s result, and [B, S, H] the logarithm of the sum of the exponentials of the
        scores (and the sink), float32 (float64 for float64 inputs); -inf where a query sees no key.

    Raises:
        ValueError: as in `attention`.
    """
    options = {"scale": scale, "softcap": softcap, "bias": bias, "sinks": sinks}
    return _dispatch(backend, True, q, k, v, mask, options, known)


def _dispatch(
    backend: str,
    logsumexp: bool,
    q: Array,
    k: Array,
    v: Array,
    mask: Mask,
    options: dict,
    known: tuple[Array, Array] | None = None,
) -> Any:
    _check(q, k, v, mask, options["sinks"])
    if options.get("dropout_key") is None:
        options |= {"dropout": 0.0, "dropout_key": None}
    if mask.zigzag and (backend not in ("auto", "ring") or ring.supports(q, k, v, mask, **options)):
        order = jnp.asarray(zigzag_order(q.shape[1], mask.zigzag))[None]
        mask = replace(mask, zigzag=0, q_positions=order, kv_positions=order)
    chosen = BACKENDS[_choose(backend, logsumexp, q, k, v, mask, options)]
    function = chosen.with_logsumexp if logsumexp else chosen.attention
    if known is None:
        return function(q, k, v, mask, **options)
    if chosen.takes_known:
        return function(q, k, v, mask, known=known, **options)
    return _share_of(known, function(q, k, v, mask, **options))


def _share_of(known: tuple[Array, Array], part: tuple[Array, Array]) -> tuple[Array, Array]:
    """`known` with the gradients that one of the parts it is made of has in it.

    out = sum_i w_i out_i with w_i = exp(l_i - l) and l = log sum_i exp(l_i) change by
    w_i (d out_i + (out_i - out) d l_i) and w_i d l_i.
    """
    (whole, logsumexp), (out, its) = known, part
    seen = jnp.isfinite(its)
    share = jnp.where(seen, jnp.exp(jnp.where(seen, lax.stop_gradient(its) - logsumexp, 0)), 0)
    moved = jnp.where(seen, its - lax.stop_gradient(its), 0)
    fixed = lax.stop_gradient(out)
    added = (out - fixed) + moved[..., None] * (fixed - whole)
    total = whole + (share[..., None] * added).astype(whole.dtype)
    return total, logsumexp + share * moved


def _choose(
    backend: str, logsumexp: bool, q: Array, k: Array, v: Array, mask: Mask, options: dict
) -> str:
    def reason(name: str) -> str:
        if logsumexp and BACKENDS[name].with_logsumexp is None:
            return "it does not give the log-sum-exp"
        return BACKENDS[name].supports(q, k, v, mask, **options)

    if backend != "auto":
        if backend not in BACKENDS:
            raise ValueError(
                f"attention backend {backend!r} is unknown; choose auto or one of "
                f"{', '.join(BACKENDS)}"
            )
        if reason(backend):
            raise ValueError(
                f"attention backend {backend!r} cannot run: {reason(backend)}; choose auto"
            )
        return backend
    why_no_ring = reason("ring")
    if not why_no_ring:
        name, why = "ring", f"{ring.ring_size()} devices share a row"
    elif q.shape[1] <= SHORT_QUERY:
        name, why = "reference", "short queries"
    else:
        name, why = next(name for name in BACKENDS if not reason(name)), "the first that can"
        if ring.ring_size() > 1:
            why = f"{why}; {why_no_ring}"
    _log_once(name, why)
    return name


@functools.cache
def _log_once(name: str, why: str) -> None:
    log.info("attention backend: %s on %s (%s)", name, device_kind(), why)


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
