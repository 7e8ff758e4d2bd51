"""Product with a frozen weight in NF4 (`format.py`): the contract and the choice of a backend."""

import functools
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import PartitionSpec

from jgpt.kernels.nf4_matmul import blockwise, pallas_tpu, reference
from jgpt.kernels.nf4_matmul.format import DoubleScales, Nf4, dequantize, quantize, whole_scales
from jgpt.kernels.weight_mesh import UNCUT, over_mesh
from jgpt.typing import Array

log = logging.getLogger(__name__)


class Backend(NamedTuple):
    forward: Callable[[Array, Nf4], Array]
    backward: Callable[[Array, Nf4], Array]
    supports: Callable[[Array, Nf4], str]
    """Says why it cannot; '' where it can."""


def _backend(module: Any) -> Backend:
    return Backend(module.forward, module.backward, module.supports)


BACKENDS: dict[str, Backend] = {
    "pallas_tpu": _backend(pallas_tpu),
    "blockwise": _backend(blockwise),
    "reference": _backend(reference),
}
"""In the order in which `auto` asks them."""


def nf4_matmul(
    x: Array, packed: Nf4, *, backend: str = "auto", cut: PartitionSpec = UNCUT
) -> Array:
    """`x @ dequantize(packed).T`, summed in float32: [..., in] to [..., out] in x's dtype.

    Differentiable in x alone, in reverse mode: the weight is frozen. Weights are dequantised in
    float32 and rounded to x's dtype, that of the multiplications.

    Args:
        x: [..., in].
        packed: a weight [out, in] from `quantize`.
        backend: `auto` (the first of BACKENDS that can) or a name from there.
        cut: how the weight [out, in] lies over the mesh that is set (`weight_mesh`).

    Raises:
        ValueError: shapes that do not fit, also the mesh, an unknown backend, or one that cannot
            do this.
    """
    if x.ndim < 1 or x.shape[-1] != packed.shape[1]:
        raise ValueError(f"x {x.shape} does not fit an NF4 weight [out, in] of {packed.shape}")
    return _nf4_matmul(backend, cut, x, packed)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _nf4_matmul(backend: str, cut: PartitionSpec, x: Array, packed: Nf4) -> Array:
    def one(x: Array, packed: Nf4) -> Array:
        return BACKENDS[_choose(backend, x, packed)].forward(x, packed)

    return over_mesh(one, x, _with_scales(packed), cut, contracted=1).astype(x.dtype)


def _forward(backend: str, cut: PartitionSpec, x: Array, packed: Nf4):
    return _nf4_matmul(backend, cut, x, packed), packed


def _backward(backend: str, cut: PartitionSpec, packed: Nf4, dy: Array):
    def one(dy: Array, packed: Nf4) -> Array:
        return BACKENDS[_choose(backend, dy, packed)].backward(dy, packed)

    return over_mesh(one, dy, _with_scales(packed), cut, contracted=0).astype(dy.dtype), None


_nf4_matmul.defvjp(_forward, _backward)


def _with_scales(packed: Nf4) -> Nf4:
    """With scales in float32, which can be cut like the codes."""
    return Nf4(packed.codes, whole_scales(packed))


def _choose(backend: str, x: Array, packed: Nf4) -> str:
    if backend != "auto":
        if backend not in BACKENDS:
            raise ValueError(
                f"NF4 backend {backend!r} is unknown; choose auto or one of {', '.join(BACKENDS)}"
            )
        reason = BACKENDS[backend].supports(x, packed)
        if reason:
            raise ValueError(f"NF4 backend {backend!r} cannot run: {reason}; choose auto")
        return backend
    reasons = {name: b.supports(x, packed) for name, b in BACKENDS.items()}
    name = next(name for name, reason in reasons.items() if not reason)
    _log_once(name, "; ".join(reason for reason in reasons.values() if reason))
    return name


@functools.cache
def _log_once(name: str, why: str) -> None:
    log.info("NF4 backend: %s%s", name, f" ({why})" if why else "")


__all__ = ["BACKENDS", "DoubleScales", "Nf4", "dequantize", "nf4_matmul", "quantize"]
