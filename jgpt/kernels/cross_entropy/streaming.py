"""The loss in chunks of tokens: derivative, loop, and what the parts of a mesh tell each other.

A backend brings `Steps`: the scores of one chunk, of which only four figures per token leave it,
and the chunk's gradients. Everything else is here and the same for all backends.

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
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

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


class Figures(NamedTuple):
    """Of the scores of a chunk's tokens over this device's part of the vocabulary, each [B, c]."""

    highest: Array
    total: Array
    """sum of exp(score - highest)"""
    chosen: Array
    """score of the target; 0 where another device has it"""
    summed: Array | None
    """sum of the scores; None without label smoothing"""


class Rows(NamedTuple):
    """Each [B, c]: d total / d score = factor * p - constant - pull * [is the target]."""

    normalizer: Array
    """p = exp(score - normalizer)"""
    factor: Array
    pull: Array
    """0 for tokens that do not count, and only for those"""
    constant: Array | None
    chosen: Array
    """score of the target"""


class Totals(NamedTuple):
    """Running sums over chunks, in at least float32."""

    head: Array
    bias: Array | None


class Steps(Protocol):
    """What a backend does with one chunk; frozen and hashable.

    `head` is what `prepare` made of the head [D, V] and the bias [V] or None; targets are counted
    from the first row of this part of the vocabulary and may lie outside.
    """

    tokens: int
    """per chunk and device, at most"""
    flat: bool
    """rows may be joined to one"""
    multiple: int
    """chunks are multiples of this"""
    unrolled: int
    """up to so many chunks are unrolled; above, a loop keeps the program small"""

    def prepare(self, head: Array, bias: Array | None) -> Any: ...

    def zeros(self, head: Any) -> Totals: ...

    def scores(
        self, head: Any, hidden: Array, targets: Array, summed: bool, keep: bool
    ) -> tuple[Figures, Any]:
        """The figures and, if asked to keep it, what `gradients` needs."""

    def gradients(
        self, head: Any, hidden: Array, targets: Array, kept: Any, rows: Rows, totals: Totals
    ) -> tuple[Totals, Array]:
        """(totals with this chunk's, gradient of hidden)."""

    def finish(self, totals: Totals, head: Array) -> Totals:
        """In the shapes of the head and the bias."""


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


def _for_each_chunk(static: Static, arrays: tuple[Array, ...], body: Callable, carry: Any) -> Any:
    """`carry, out = body(carry, *chunks)` over chunks of axis 1; the carry, and the outs joined.

    Rows are padded with zeros at the end, which weigh nothing; outs are cut to the length.
    """
    batch, length = arrays[0].shape[:2]
    if static.steps.flat:
        arrays = [x.reshape(1, batch * length, *x.shape[2:]) for x in arrays]
    chunk, count = _chunks(static, arrays[0].shape)
    missing = count * chunk - arrays[0].shape[1]
    if missing:
        arrays = [jnp.pad(x, [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2)) for x in arrays]

    def step(carry, i):
        chunks = [lax.dynamic_slice_in_dim(x, i * chunk, chunk, 1) for x in arrays]
        return body(carry, *chunks)

    if count <= static.steps.unrolled:
        outs = []
        for i in range(count):
            carry, out = step(carry, i)
            outs.append(out)
        joined = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *outs)
    else:
        carry, outs = lax.scan(step, carry, jnp.arange(count))
        joined = jax.tree.map(_join, outs)

    def cut(x: Array) -> Array:
        x = x[:, : x.shape[1] - missing] if missing else x
        return x.reshape(batch, length, *x.shape[2:])

    return carry, jax.tree.map(cut, joined)


def _chunks(static: Static, shape: tuple[int, ...]) -> tuple[int, int]:
    """Positions per chunk of rows [B, S, ...], as even as can be, and how many chunks there are."""
    steps = static.steps
    batch, length = shape[:2]
    limit = max(1, steps.tokens * static.devices // max(1, batch))
    count = max(1, -(-length // limit))
    chunk = max(1, -(-length // count))
    chunk = -(-chunk // steps.multiple) * steps.multiple
    return chunk, max(1, -(-length // chunk))


def _join(x: Array) -> Array:
    """[n, B, c, ...] to [B, n * c, ...]."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])


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
        sums, _ = _for_each_chunk(static, arrays, body, _no_sums(weights.dtype))
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
        (sums, totals), dhidden = _for_each_chunk(static, arrays, body, carry)
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

        return _for_each_chunk(static, (smooth.hidden, targets), body, ())[1]

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
        totals, dhidden = _for_each_chunk(static, arrays, body, static.steps.zeros(head))
        return _gradient(static, smooth, dhidden, totals, columns)

    return _placed(static.layout, run, _specs)(smooth, targets, cotangent), None


_token_logps.defvjp(_token_logps_forward, _token_logps_backward)
