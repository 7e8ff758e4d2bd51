"""The loss in chunks of tokens: derivative, loop, and what the parts of a mesh tell each other.

A backend brings `Steps` (see `chunks.py`): the scores of one chunk, of which only four figures per
token leave it, and the chunk's gradients. Everything else is here and the same for all backends.

When differentiated, each chunk's gradients are computed in the forward pass, while its scores are
at hand; the backward pass only multiplies them by the cotangent of the total. Scores are thus
computed once, against twice with rematerialisation.

On a mesh all of it runs under `shard_map` (see `layout.py`): every device has its own tokens and
its own part of the vocabulary (Shoeybi et al. 2019, section 3). Devices with the same tokens
exchange the four figures, never scores. Chunks are cut along the last token axis.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from jgpt.kernels.cross_entropy.chunks import Figures, Rows, Steps, Totals, for_each_chunk
from jgpt.kernels.cross_entropy.layout import (
    Layout,
    find_layout,
    gathered,
    own_rows,
    own_targets,
    psum,
    reduced_head,
    reduced_rows,
    whole_width,
)
from jgpt.typing import Array, CrossEntropy


@dataclass(frozen=True)
class Static:
    steps: Steps
    layout: Layout
    devices: int
    """that share one chunk, since the compiler cuts the arrays and not the layout"""
    z_loss: float
    label_smoothing: float
    vocabulary: int
    """of the whole head"""

    def for_each_chunk(self, arrays: tuple[Array, ...], body: Callable, carry: Any) -> Any:
        return for_each_chunk(self.steps, self.devices, arrays, body, carry)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Smooth:
    """What the loss is differentiable in: hidden [B, S, D], head [D, V], bias [V]."""

    hidden: Array
    head: Array
    bias: Array | None


def cross_entropy(
    steps: Steps,
    hidden: Array,
    head: Array,
    targets: Array,
    weights: Array,
    *,
    bias: Array | None,
    z_loss: float,
    label_smoothing: float,
) -> CrossEntropy:
    """See `jgpt.kernels.cross_entropy.cross_entropy`."""
    hidden, (targets, weights), _ = as_rows(hidden, targets, weights)
    static = _static(steps, hidden, head, z_loss, label_smoothing)
    weights = weights.astype(_dtype(hidden))
    return _cross_entropy(static, Smooth(hidden, head, bias), targets, weights)


def token_logps(
    steps: Steps, hidden: Array, head: Array, targets: Array, *, bias: Array | None
) -> Array:
    """See `jgpt.kernels.cross_entropy.token_logps`."""
    hidden, (targets,), shape = as_rows(hidden, targets)
    static = _static(steps, hidden, head)
    return _token_logps(static, Smooth(hidden, head, bias), targets).reshape(shape)


def _static(
    steps: Steps, hidden: Array, head: Array, z_loss: float = 0.0, label_smoothing: float = 0.0
) -> Static:
    layout, reason = find_layout(*hidden.shape, head.shape[1])
    devices = max(1, jax.sharding.get_abstract_mesh().size) if reason else 1
    return Static(steps, layout, devices, z_loss, label_smoothing, head.shape[1])


def as_rows(hidden: Array, *others: Array) -> tuple[Array, list[Array], tuple[int, ...]]:
    """hidden as [B, S, D], the others as [B, S], and their shape before."""
    shape = hidden.shape[:-1]
    rows = (-1, shape[-1]) if shape else (1, 1)
    return hidden.reshape(*rows, hidden.shape[-1]), [x.reshape(rows) for x in others], shape


def _dtype(x: Array) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)


def _placed(layout: Layout, function: Callable, out_specs: Callable) -> Callable:
    """`function(smooth, *per_token)` on every device's own part."""
    if not any(layout):
        return function

    def run(smooth: Smooth, *per_token: Array):
        run = jax.shard_map(
            function,
            in_specs=(_specs(layout, smooth), *[layout.per_token()] * len(per_token)),
            out_specs=out_specs(layout, smooth),
            check_vma=False,
        )
        return run(smooth, *per_token)

    return run


def _specs(layout: Layout, smooth: Smooth) -> Smooth:
    bias = None if smooth.bias is None else layout.bias()
    return Smooth(layout.per_token(), layout.head(), bias)


def _met(layout: Layout, figures: Figures) -> Figures:
    """Figures over the whole vocabulary from those over each device's part."""
    axes = layout.vocabulary
    if not axes:
        return figures
    highest = lax.pmax(figures.highest, axes)
    parts = (figures.total * jnp.exp(figures.highest - highest), figures.chosen, figures.summed)
    return Figures(highest, *psum(parts, axes))


def _scores(static: Static, head: Any, width: int, chunks: tuple[Array, ...], keep: bool) -> Any:
    """(figures over the whole vocabulary, what was kept, own targets) of a chunk."""
    hidden, targets = chunks
    own = own_targets(static.layout, targets, width)
    summed = static.label_smoothing > 0
    figures, kept = static.steps.scores(head, hidden, own, summed, keep)
    return _met(static.layout, figures), kept, own


def _normalizer(figures: Figures) -> Array:
    return figures.highest + jnp.log(figures.total)


def _sums(static: Static, figures: Figures, weights: Array) -> CrossEntropy:
    normalizer = _normalizer(figures)
    nll, z = normalizer - figures.chosen, normalizer**2
    smooth = nll
    if static.label_smoothing:
        even = normalizer - figures.summed / static.vocabulary
        smooth = nll + static.label_smoothing * (even - nll)

    def total(values):
        return jnp.where(weights != 0, weights * values, 0).sum()

    return CrossEntropy(
        total=total(smooth + static.z_loss * z),
        nll=total(nll),
        z=total(z),
        correct=total(figures.chosen >= figures.highest),
        weight=weights.sum(),
    )


def _no_sums(dtype: jnp.dtype) -> CrossEntropy:
    return CrossEntropy(*[jnp.zeros((), dtype)] * 5)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_entropy(static: Static, smooth: Smooth, targets: Array, weights: Array) -> CrossEntropy:
    def run(smooth: Smooth, targets: Array, weights: Array) -> CrossEntropy:
        columns = whole_width(static.layout, smooth.head.astype(smooth.hidden.dtype))
        head = static.steps.prepare(columns, smooth.bias)

        def body(sums, *chunks):
            hidden, targets, weights = gathered(static.layout, chunks)
            figures, _, _ = _scores(static, head, columns.shape[1], (hidden, targets), keep=False)
            return jax.tree.map(jnp.add, sums, _sums(static, figures, weights)), ()

        arrays = (smooth.hidden, targets, weights)
        sums, _ = for_each_chunk(
            static.steps, static.devices, arrays, body, _no_sums(weights.dtype)
        )
        return psum(sums, static.layout.summed)

    return _placed(static.layout, run, lambda layout, smooth: PartitionSpec())(
        smooth, targets, weights
    )


def _cross_entropy_forward(static: Static, smooth: Smooth, targets: Array, weights: Array):
    def run(smooth: Smooth, targets: Array, weights: Array):
        columns = whole_width(static.layout, smooth.head.astype(smooth.hidden.dtype))
        head = static.steps.prepare(columns, smooth.bias)

        def body(carry, *chunks):
            sums, totals = carry
            hidden, targets, weights = gathered(static.layout, chunks)
            figures, kept, own = _scores(
                static, head, columns.shape[1], (hidden, targets), keep=True
            )
            sums = jax.tree.map(jnp.add, sums, _sums(static, figures, weights))
            normalizer, smoothing = _normalizer(figures), static.label_smoothing
            rows = Rows(
                normalizer=normalizer,
                factor=weights * (1 + 2 * static.z_loss * normalizer),
                pull=weights * (1 - smoothing),
                constant=weights * (smoothing / static.vocabulary) if smoothing else None,
                chosen=figures.chosen,
            )
            totals, dhidden = static.steps.gradients(head, hidden, own, kept, rows, totals)
            return (sums, totals), reduced_rows(static.layout, dhidden.astype(hidden.dtype))

        arrays = (smooth.hidden, targets, weights)
        carry = (_no_sums(weights.dtype), static.steps.zeros(head))
        (sums, totals), dhidden = static.for_each_chunk(arrays, body, carry)
        gradient = _gradient(static, smooth, dhidden, totals, columns)
        return psum(sums, static.layout.summed), gradient

    def specs(layout, smooth):
        return PartitionSpec(), _specs(layout, smooth)

    return _placed(static.layout, run, specs)(smooth, targets, weights)


def _gradient(
    static: Static, smooth: Smooth, dhidden: Array, totals: Totals, columns: Array
) -> Smooth:
    """In the dtypes of what it is the gradient of."""
    totals = static.steps.finish(totals, columns)
    # Rounded before devices add up their parts: a head in bfloat16 asks for half the traffic.
    dhead = reduced_head(static.layout, totals.head.astype(smooth.head.dtype))
    dbias = None if totals.bias is None else psum(totals.bias, static.layout.summed)
    gradient = Smooth(dhidden, dhead, dbias)
    return jax.tree.map(lambda d, x: d.astype(x.dtype), gradient, smooth)


def _cross_entropy_backward(static: Static, gradient: Smooth, cotangent: CrossEntropy):
    scaled = jax.tree.map(lambda g: (g * cotangent.total).astype(g.dtype), gradient)
    return scaled, None, None


_cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _token_logps(static: Static, smooth: Smooth, targets: Array) -> Array:
    return _token_logps_forward(static, smooth, targets)[0]


def _token_logps_forward(static: Static, smooth: Smooth, targets: Array):
    def run(smooth: Smooth, targets: Array):
        columns = whole_width(static.layout, smooth.head.astype(smooth.hidden.dtype))
        head = static.steps.prepare(columns, smooth.bias)

        def body(carry, *chunks):
            own = len(chunks[0])
            chunks = gathered(static.layout, chunks)
            figures, _, _ = _scores(static, head, columns.shape[1], chunks, keep=False)
            return carry, own_rows(static.layout, figures.chosen - _normalizer(figures), own)

        return static.for_each_chunk((smooth.hidden, targets), body, ())[1]

    logps = _placed(static.layout, run, lambda layout, smooth: layout.per_token())(smooth, targets)
    return logps, (smooth, targets)


def _token_logps_backward(static: Static, saved: tuple[Smooth, Array], cotangent: Array):
    smooth, targets = saved

    def run(smooth: Smooth, targets: Array, cotangent: Array):
        columns = whole_width(static.layout, smooth.head.astype(smooth.hidden.dtype))
        head = static.steps.prepare(columns, smooth.bias)

        def body(totals, *chunks):
            hidden, targets, pull = gathered(static.layout, chunks)
            figures, kept, own = _scores(
                static, head, columns.shape[1], (hidden, targets), keep=True
            )
            rows = Rows(_normalizer(figures), -pull, -pull, None, figures.chosen)
            totals, dhidden = static.steps.gradients(head, hidden, own, kept, rows, totals)
            return totals, reduced_rows(static.layout, dhidden.astype(hidden.dtype))

        arrays = (smooth.hidden, targets, cotangent)
        totals, dhidden = for_each_chunk(
            static.steps, static.devices, arrays, body, static.steps.zeros(head)
        )
        return _gradient(static, smooth, dhidden, totals, columns)

    return _placed(static.layout, run, _specs)(smooth, targets, cotangent), None


_token_logps.defvjp(_token_logps_forward, _token_logps_backward)
