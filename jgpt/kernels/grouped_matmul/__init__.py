"""Grouped matrix product: rows sorted by group, one weight matrix per group.

    y[i] = x[i] @ w[g(i)]        group g owns rows  sum(sizes[:g]) <= i < sum(sizes[:g+1])

It is what a mixture of experts needs once its tokens are sorted by expert (Gale et al. 2023,
"MegaBlocks", section 4). Each backend offers the product and both of its gradients:

- `blockwise`: CPU. Each group is cut into a few row blocks of fixed sizes, each one plain product;
- `ragged`: `lax.ragged_dot`, for TPU and GPU;
- `reference`: every group's matrix on every row, then a choice; the specification.
"""

import functools
import logging
from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import lax

from jgpt.kernels.grouped_matmul import blockwise, ragged, reference
from jgpt.typing import Array

log = logging.getLogger(__name__)


class Backend(NamedTuple):
    matmul: Callable[[Array, Array, Array], Array]
    """x [N,D], w [E,D,F], sizes [E] -> [N,F] in x's dtype."""
    input_gradient: Callable[[Array, Array, Array], Array]
    """dy [N,F], w [E,D,F], sizes [E] -> [N,D] in dy's dtype."""
    weight_gradient: Callable[[Array, Array, Array], Array]
    """x [N,D], dy [N,F], sizes [E] -> [E,D,F], in the type it is summed in."""
    supports: Callable[[str], str]
    """Takes the platform, and says why it cannot; '' where it can."""


BACKENDS: dict[str, Backend] = {
    name: Backend(module.matmul, module.input_gradient, module.weight_gradient, module.supports)
    for name, module in (("blockwise", blockwise), ("ragged", ragged), ("reference", reference))
}
"""In the order in which `auto` asks them."""


def grouped_matmul(x: Array, w: Array, group_sizes: Array, *, backend: str = "auto") -> Array:
    """`x[i] @ w[g(i)]` for rows sorted by group; rows past the last group give 0.

    Args:
        x: [N, D]; its dtype is that of the multiplications, summed in float32.
        w: [E, D, F], cast to x's dtype; its gradient comes back in its own, rounded only once.
        group_sizes: [E] int32, rows of each group, from row 0 on; their sum is at most N.
        backend: `auto` (the first of BACKENDS that can on the platform this is compiled for) or a
            name from there.

    Returns:
        [N, F] in x's dtype. Differentiable in x and w, in reverse mode only.

    Raises:
        ValueError: shapes that do not fit, an unknown backend, or one that cannot run here.
    """
    if x.ndim != 2 or w.ndim != 3 or x.shape[1] != w.shape[1] or group_sizes.shape != w.shape[:1]:
        raise ValueError(
            f"grouped_matmul needs x [N,D], w [E,D,F] and group_sizes [E], not {x.shape}, "
            f"{w.shape} and {group_sizes.shape}"
        )
    if backend != "auto":
        if backend not in BACKENDS:
            raise ValueError(
                f"grouped_matmul backend {backend!r} is unknown; choose auto or one of "
                f"{', '.join(BACKENDS)}"
            )
        reason = BACKENDS[backend].supports(jax.default_backend())
        if reason:
            raise ValueError(f"grouped_matmul backend {backend!r} cannot run: {reason}; use auto")
    return _grouped_matmul(x, w, group_sizes, backend)


def choose(platform: str) -> str:
    """Name of the backend that `auto` takes on `platform` (cpu, gpu or tpu)."""
    return next(name for name, backend in BACKENDS.items() if not backend.supports(platform))


def _run(part: str, backend: str, *arrays: Array) -> Array:
    """Calls one function of a backend; `auto` decides where the program is lowered.

    So a program compiled ahead of time for another platform gets that platform's backend.
    """
    if backend != "auto":
        return getattr(BACKENDS[backend], part)(*arrays)
    _log_once()
    functions = {p: getattr(BACKENDS[choose(p)], part) for p in ("cpu", "cuda", "rocm", "tpu")}
    return lax.platform_dependent(*arrays, **functions)


@functools.cache
def _log_once() -> None:
    platform = jax.default_backend()
    log.info("grouped_matmul backend: %s on %s (the first that can)", choose(platform), platform)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _grouped_matmul(x: Array, w: Array, group_sizes: Array, backend: str) -> Array:
    return _run("matmul", backend, x, w, group_sizes)


def _forward(x, w, group_sizes, backend):
    return _grouped_matmul(x, w, group_sizes, backend), (x, w, group_sizes)


def _backward(backend, saved, dy):
    x, w, group_sizes = saved
    dy = dy.astype(x.dtype)
    dx = _run("input_gradient", backend, dy, w, group_sizes)
    dw = _run("weight_gradient", backend, x, dy, group_sizes)
    return dx, dw.astype(w.dtype), None


_grouped_matmul.defvjp(_forward, _backward)
