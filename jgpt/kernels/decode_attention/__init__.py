"""Decode attention: one query, or a few, against what a cache holds. The contract and its backends.

The work is reading the cache, so a backend is as good as the share of it that it leaves unread:
`pallas_tpu` and `blockwise` read up to the length and inside the window, and all query heads of a
group while their key/value head is at hand.
"""

import functools
import logging
from collections.abc import Callable
from typing import NamedTuple

from jgpt.kernels.decode_attention import blockwise, pallas_tpu, reference
from jgpt.kernels.decode_attention.stored import (
    Pages,
    Slots,
    Stored,
    contents,
    num_slots,
    quantise,
    write,
)
from jgpt.kernels.device import device_kind
from jgpt.typing import Array, Bias, Mask

__all__ = [
    "BACKENDS",
    "Pages",
    "Slots",
    "Stored",
    "contents",
    "decode_attention",
    "num_slots",
    "quantise",
    "write",
]

log = logging.getLogger(__name__)


class Backend(NamedTuple):
    decode_attention: Callable[..., tuple[Array, Array]]
    """Takes `decode_attention`'s arguments, less the last two, and gives both results."""
    supports: Callable[..., str]
    """Takes the same, and says why it cannot; '' where it can."""


BACKENDS: dict[str, Backend] = {
    name: Backend(module.decode_attention, module.supports)
    for name, module in (
        ("pallas_tpu", pallas_tpu),
        ("blockwise", blockwise),
        ("reference", reference),
    )
}
"""In the order in which `auto` asks them."""


def decode_attention(
    q: Array,
    stored: Stored,
    mask: Mask,
    *,
    scale: float | Array,
    softcap: float = 0.0,
    bias: Bias | None = None,
    sinks: Array | None = None,
    with_logsumexp: bool = False,
    backend: str = "auto",
) -> Array | tuple[Array, Array]:
    """Softmax attention of new tokens to a cache that has them already; for inference: no gradient.

    As `jgpt.kernels.attention.attention`, whose words these are, with the keys and their positions
    taken from the cache. A query sees the stored positions that the mask allows: with a causal one,
    those up to its own, so that of several new tokens none sees a later one.

    Args:
        q: [B, Q, H, d], H a multiple of the cache's K.
        stored: `Slots` or `Pages`. What lies in slots that hold nothing is not used, but finite.
        mask: with `q_positions` [B, Q], -1 for a query that sees nothing (padding); without
            segments, prefix and `kv_positions`.
        scale: of the scores.
        softcap: see there.
        bias: see there.
        sinks: see there.
        with_logsumexp: also give the log of the softmax's denominator (sinks included), with which
            results over parts of the keys can be combined.
        backend: `auto` (the first of BACKENDS that can) or a name from there.

    Returns:
        [B, Q, H, u] in q's dtype, and [B, Q, H] at least float32 if asked for. A query that sees no
        key gives 0, and -inf (or its sink).

    Raises:
        ValueError: shapes that do not fit, an unknown backend, or one that cannot do this.
    """
    _check(q, stored, mask, sinks)
    options = {"scale": scale, "softcap": softcap, "bias": bias, "sinks": sinks}
    name = _choose(backend, q, stored, mask, options)
    out, logsumexp = BACKENDS[name].decode_attention(q, stored, mask, **options)
    return (out, logsumexp) if with_logsumexp else out


def _choose(backend: str, q: Array, stored: Stored, mask: Mask, options: dict) -> str:
    def reason(name: str) -> str:
        return BACKENDS[name].supports(q, stored, mask, **options)

    if backend == "auto":
        name = next(name for name in BACKENDS if not reason(name))
        _log_once(name, type(stored).__name__)
        return name
    if backend not in BACKENDS:
        raise ValueError(
            f"decode_attention backend {backend!r} is unknown; choose auto or one of "
            f"{', '.join(BACKENDS)}"
        )
    if reason(backend):
        raise ValueError(
            f"decode_attention backend {backend!r} cannot run: {reason(backend)}; choose auto"
        )
    return backend


@functools.cache
def _log_once(name: str, form: str) -> None:
    log.info("decode_attention backend: %s for %s on %s", name, form, device_kind())


def _check(q: Array, stored: Stored, mask: Mask, sinks: Array | None) -> None:
    k, v = stored.k, stored.v
    if q.ndim != 4 or k.ndim != 4 or k.shape[:3] != v.shape[:3] or q.shape[3] != k.shape[3]:
        raise ValueError(
            f"decode_attention shapes do not fit: q {q.shape}, k {k.shape}, v {v.shape}"
        )
    if q.shape[2] % k.shape[1]:
        raise ValueError(f"{k.shape[1]} key/value heads do not divide {q.shape[2]} query heads")
    rows = stored.positions if isinstance(stored, Slots) else stored.table
    if rows.shape[0] != q.shape[0]:
        raise ValueError(f"{q.shape[0]} rows of queries for a cache of {rows.shape[0]}")
    if mask.q_positions is None or mask.q_positions.shape != q.shape[:2]:
        raise ValueError("decode_attention needs mask.q_positions [B, Q]")
    for name in ("kv_positions", "prefix_lengths", "q_segment_ids", "kv_segment_ids"):
        if getattr(mask, name) is not None:
            raise ValueError(f"decode_attention has no mask.{name}: a row of a cache is one text")
    if sinks is not None and sinks.shape != (q.shape[2],):
        raise ValueError(f"attention sinks have shape {sinks.shape}, not ({q.shape[2]},)")
    given = {x is None for x in (stored.k_scales, stored.v_scales)}
    if given != {k.dtype != "int8"} or k.dtype != v.dtype:
        raise ValueError("a cache has int8 keys and values with scales of both, or neither")
