"""Grouped matrix product: rows sorted by group, one weight matrix per group.

    y[i] = x[i] @ w[g(i)]        group g owns rows  sum(sizes[:g]) <= i < sum(sizes[:g+1])

It is what a mixture of experts needs once its tokens are sorted by expert (Gale et al. 2023,
"MegaBlocks", section 4). Each backend offers the product and both of its gradients, and may offer
a fused form of the layer's first half, `activation(x @ w_gate[g]) * (x @ w_up[g])`; without one,
that is put together from the products (`gated`).

- `pallas_tpu`: TPU. Kernels of our own; each group's matrix is fetched once;
- `blockwise`: CPU. Each group is cut into a few row blocks of fixed sizes, each one plain product;
- `pallas_gpu`: NVIDIA GPUs. A program for each tile of each group's rows, fused forms too;
- `ragged`: `lax.ragged_dot`, for TPU and GPU;
- `reference`: every group's matrix on every row, then a choice; the specification.
"""

import functools
import logging
from collections.abc import Callable
from typing import NamedTuple

import jax

from jgpt.kernels.device import device_platform
from jgpt.kernels.grouped_matmul import blockwise, gated, pallas_gpu, pallas_tpu, ragged, reference
from jgpt.kernels.grouped_matmul.gated import ACTIVATIONS
from jgpt.typing import Array

log = logging.getLogger(__name__)


class Backend(NamedTuple):
    """One way to compute; functions get checked arguments and are not differentiated."""

    supports: Callable[[str, Array, Array], str]
    """platform (cpu, gpu or tpu), x, w -> why it cannot; '' where it can."""
    matmul: Callable[[Array, Array, Array], Array]
    """x [N,D], w [E,D,F], sizes [E] -> [N,F] in x's dtype."""
    input_gradient: Callable[[Array, Array, Array], Array]
    """dy [N,F], w [E,D,F], sizes [E] -> [N,D] in dy's dtype."""
    weight_gradient: Callable[[Array, Array, Array, jax.typing.DTypeLike], Array]
    """x [N,D], dy [N,F], sizes [E], dtype -> [E,D,F], summed in float32, rounded once to dtype."""
    gated: Callable[[Array, Array, Array, Array, str], Array] | None = None
    """x, w_gate, w_up, sizes, activation -> h [N,F] in x's dtype; nothing is kept."""
    gated_forward: Callable[..., tuple[Array, Array, Array]] | None = None
    """The same -> h, and gate and up [N,F] in x's dtype for the next."""
    gated_backward: Callable[..., tuple[Array, Array, Array]] | None = None
    """x, w_gate, w_up, sizes, gate, up, dh, activation -> dx, dw_gate, dw_up in their dtypes."""
    fuses: Callable[[Array, Array], bool] | None = None
    """x, w -> whether the three above can; where not, the gated product is put together. None for
    always."""


def _backend(module) -> Backend:
    return Backend(*(getattr(module, field, None) for field in Backend._fields))


BACKENDS: dict[str, Backend] = {
    "pallas_tpu": _backend(pallas_tpu),
    "pallas_gpu": _backend(pallas_gpu),
    "blockwise": _backend(blockwise),
    "ragged": _backend(ragged),
    "reference": _backend(reference),
}
"""In the order in which `auto` asks them."""


def grouped_matmul(x: Array, w: Array, group_sizes: Array, *, backend: str = "auto") -> Array:
    """`x[i] @ w[g(i)]` for rows sorted by group; rows past the last group give 0.

    Args:
        x: [N, D]; its dtype is that of the multiplications, summed in float32.
        w: [E, D, F], cast to x's dtype; its gradient comes back in its own, rounded only once.
        group_sizes: [E] int32, rows of each group, from row 0 on; their sum is at most N.
        backend: `auto` (the first of BACKENDS that can on the device this is compiled for) or a
            name from there.

    Returns:
        [N, F] in x's dtype. Differentiable in x and w, in reverse mode only.

    Raises:
        ValueError: shapes that do not fit, an unknown backend, or one that cannot run here.
    """
    _check("w", x, w, group_sizes)
    return _matmul(x, w, group_sizes, choose(backend, x, w))


def grouped_gated(
    x: Array,
    w_gate: Array,
    w_up: Array,
    group_sizes: Array,
    *,
    activation: str = "silu",
    backend: str = "auto",
) -> Array:
    """`activation(x[i] @ w_gate[g(i)]) * (x[i] @ w_up[g(i)])`: the first half of a gated expert.

    Args:
        x: as for `grouped_matmul`.
        w_gate: [E, D, F], treated like `w` there.
        w_up: the same.
        group_sizes: see there.
        activation: a name from ACTIVATIONS.
        backend: see there. One without a fused form runs two products.

    Returns:
        [N, F] in x's dtype. Differentiable in x and both weights, in reverse mode only.

    Raises:
        ValueError: as `grouped_matmul`, and for an unknown activation.
    """
    _check("w_gate", x, w_gate, group_sizes)
    if w_up.shape != w_gate.shape or w_up.dtype != w_gate.dtype:
        raise ValueError(
            f"grouped_gated needs w_gate and w_up alike, not {w_gate.shape} {w_gate.dtype} and "
            f"{w_up.shape} {w_up.dtype}"
        )
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"grouped_gated activation {activation!r} is unknown; choose {', '.join(ACTIVATIONS)}"
        )
    return _gated(x, w_gate, w_up, group_sizes, activation, choose(backend, x, w_gate))


def _check(name: str, x: Array, w: Array, group_sizes: Array) -> None:
    if x.ndim != 2 or w.ndim != 3 or x.shape[1] != w.shape[1] or group_sizes.shape != w.shape[:1]:
        raise ValueError(
            f"grouped_matmul needs x [N,D], {name} [E,D,F] and group_sizes [E], not {x.shape}, "
            f"{w.shape} and {group_sizes.shape}"
        )


def choose(backend: str, x: Array, w: Array) -> str:
    """Name of the backend that runs: `backend` itself, or for `auto` the first that can.

    Raises:
        ValueError: the one that is named is unknown or cannot run.
    """
    platform = device_platform()
    if backend == "auto":
        name = next(n for n, b in BACKENDS.items() if not b.supports(platform, x, w))
        _log_once(name, platform)
        return name
    if backend not in BACKENDS:
        raise ValueError(
            f"grouped_matmul backend {backend!r} is unknown; choose auto or one of "
            f"{', '.join(BACKENDS)}"
        )
    reason = BACKENDS[backend].supports(platform, x, w)
    if reason:
        raise ValueError(f"grouped_matmul backend {backend!r} cannot run: {reason}; choose auto")
    return backend


@functools.cache
def _log_once(name: str, platform: str) -> None:
    log.info("grouped_matmul backend: %s on %s (the first that can)", name, platform)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _matmul(x: Array, w: Array, group_sizes: Array, backend: str) -> Array:
    return BACKENDS[backend].matmul(x, w, group_sizes)


def _matmul_forward(x, w, group_sizes, backend):
    return _matmul(x, w, group_sizes, backend), (x, w, group_sizes)


def _matmul_backward(backend, saved, dy):
    x, w, group_sizes = saved
    dy = dy.astype(x.dtype)
    dx = BACKENDS[backend].input_gradient(dy, w, group_sizes)
    return dx, BACKENDS[backend].weight_gradient(x, dy, group_sizes, w.dtype), None


_matmul.defvjp(_matmul_forward, _matmul_backward)


def _for_gated(backend: str, x: Array, w: Array) -> Backend:
    """The backend, without its fused forms where they cannot run."""
    run = BACKENDS[backend]
    if run.fuses is None or run.fuses(x, w):
        return run
    return run._replace(gated=None, gated_forward=None, gated_backward=None)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _gated(
    x: Array, w_gate: Array, w_up: Array, group_sizes: Array, activation: str, backend: str
) -> Array:
    run = _for_gated(backend, x, w_gate)
    if run.gated is None:
        return gated.forward(run.matmul, x, w_gate, w_up, group_sizes, activation)[0]
    return run.gated(x, w_gate, w_up, group_sizes, activation)


def _gated_forward(x, w_gate, w_up, group_sizes, activation, backend):
    run = _for_gated(backend, x, w_gate)
    forward = run.gated_forward or functools.partial(gated.forward, run.matmul)
    h, gate, up = forward(x, w_gate, w_up, group_sizes, activation)
    return h, (x, w_gate, w_up, group_sizes, gate, up)


def _gated_backward(activation, backend, saved, dh):
    run = _for_gated(backend, *saved[:2])
    backward = run.gated_backward or functools.partial(
        gated.backward, run.input_gradient, run.weight_gradient
    )
    gradients = backward(*saved, dh.astype(saved[0].dtype), activation)
    return *gradients, None


_gated.defvjp(_gated_forward, _gated_backward)
