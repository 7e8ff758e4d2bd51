"""Cross-entropy in chunks of tokens: no [T, V] array is ever in memory.

When differentiated, each chunk's gradients are computed in the forward pass, while its logits are
at hand; the backward pass only multiplies them by the cotangent of the total. Logits are thus
computed once, against twice with rematerialisation.

Chunks are cut along the last token axis and keep the others whole, so a batch axis that is sharded
over devices stays where it is.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jgpt.kernels.matmul import input_gradient, product, weight_gradient
from jgpt.typing import Array, CrossEntropy

CHUNK = 512
"""Tokens per chunk, for each device of the mesh that is set (`jax.set_mesh`)."""
MAX_UNROLLED = 8
"""Up to so many chunks are unrolled (faster on CPU); above, a loop keeps the program small."""


@dataclass(frozen=True)
class _Static:
    z_loss: float
    softcap: float
    chunk: int


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Smooth:
    """What the loss is differentiable in: hidden [B, S, D], head [D, V], bias [V]."""

    hidden: Array
    head: Array
    bias: Array | None


def cross_entropy(
    hidden: Array,
    head: Array,
    targets: Array,
    weights: Array,
    *,
    bias: Array | None = None,
    z_loss: float = 0.0,
    softcap: float = 0.0,
    chunk: int = CHUNK,
) -> CrossEntropy:
    """See `jgpt.kernels.cross_entropy.cross_entropy`; `chunk`: tokens per chunk and device."""
    hidden, (targets, weights), _ = _rows(hidden, targets, weights)
    static = _Static(z_loss, softcap, _chunk_length(hidden.shape, chunk))
    weights = weights.astype(_dtype(hidden))
    return _cross_entropy(static, _Smooth(hidden, head, bias), targets, weights)


def token_logps(
    hidden: Array,
    head: Array,
    targets: Array,
    *,
    bias: Array | None = None,
    softcap: float = 0.0,
    chunk: int = CHUNK,
) -> Array:
    """See `jgpt.kernels.cross_entropy.token_logps`; `chunk` is the tokens per chunk and device."""
    hidden, (targets,), shape = _rows(hidden, targets)
    static = _Static(0.0, softcap, _chunk_length(hidden.shape, chunk))
    return _token_logps(static, _Smooth(hidden, head, bias), targets).reshape(shape)


def _rows(hidden: Array, *others: Array) -> tuple[Array, list[Array], tuple[int, ...]]:
    """hidden as [B, S, D], the others as [B, S], and their shape before."""
    shape = hidden.shape[:-1]
    rows = (-1, shape[-1]) if shape else (1, 1)
    return hidden.reshape(*rows, hidden.shape[-1]), [x.reshape(rows) for x in others], shape


def _chunk_length(shape: tuple[int, ...], tokens: int) -> int:
    """Positions per chunk of rows [B, S, D], as even as can be."""
    batch, length = shape[:2]
    limit = max(1, tokens * max(1, jax.sharding.get_abstract_mesh().size) // max(1, batch))
    chunks = max(1, -(-length // limit))
    return max(1, -(-length // chunks))


def _dtype(x: Array) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)


def _for_each_chunk(static: _Static, arrays: tuple[Array, ...], body: Callable, carry: Any) -> Any:
    """`carry, out = body(carry, *chunks)` over chunks of axis 1; the carry, and the outs joined.

    Rows are padded with zeros at the end, which weigh nothing; outs are cut to the length.
    """
    length = arrays[0].shape[1]
    count = -(-length // static.chunk)
    missing = count * static.chunk - length
    if missing:
        arrays = [jnp.pad(x, [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2)) for x in arrays]

    def step(carry, i):
        chunks = [lax.dynamic_slice_in_dim(x, i * static.chunk, static.chunk, 1) for x in arrays]
        return body(carry, *chunks)

    if count <= MAX_UNROLLED:
        outs = []
        for i in range(count):
            carry, out = step(carry, i)
            outs.append(out)
        joined = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *outs)
    else:
        carry, outs = lax.scan(step, carry, jnp.arange(count))
        joined = jax.tree.map(_join, outs)
    return carry, jax.tree.map(lambda x: x[:, :length], joined)


def _join(x: Array) -> Array:
    """[n, B, c, ...] to [B, n * c, ...]."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])


def _logits(static: _Static, hidden: Array, head: Array, bias: Array | None) -> tuple[Array, Any]:
    """float32 logits [B, c, V], and the derivative of the softcap there."""
    scores = product(hidden, head)
    if bias is not None:
        scores += bias
    if not static.softcap:
        return scores, None
    tanh = jnp.tanh(scores / static.softcap)
    return static.softcap * tanh, 1 - tanh * tanh


def _is_target(scores: Array, targets: Array) -> Array:
    return lax.broadcasted_iota(targets.dtype, scores.shape, 2) == targets[..., None]


def _statistics(scores: Array, targets: Array) -> tuple[Array, Array, Array]:
    """(logsumexp, logit of the target, highest logit), each [B, c]."""
    highest = scores.max(-1)
    normalizer = highest + jnp.log(jnp.exp(scores - highest[..., None]).sum(-1))
    chosen = jnp.take_along_axis(scores, targets[..., None], axis=-1)[..., 0]
    return normalizer, chosen, highest


def _pull(
    smooth: _Smooth, head: Array, hidden: Array, dscores: Array, slope: Any, total: Any
) -> tuple[Any, Array]:
    """(running sums of head's and bias's gradients, this chunk's gradient of hidden)."""
    if slope is not None:
        dscores *= slope
    dhead, dbias = total
    if smooth.bias is not None:
        dbias += dscores.sum((0, 1))
    dscores = dscores.astype(hidden.dtype)
    dhidden = input_gradient(dscores, head)
    dhead += weight_gradient(hidden, dscores)
    return (dhead, dbias), dhidden.astype(hidden.dtype)


def _zero_totals(smooth: _Smooth) -> tuple[Array, Any]:
    dtype = _dtype(smooth.hidden)
    dbias = None if smooth.bias is None else jnp.zeros(smooth.bias.shape, dtype)
    return jnp.zeros(smooth.head.shape, dtype), dbias


def _sums(static, normalizer, chosen, highest, weights) -> CrossEntropy:
    nll, z = normalizer - chosen, normalizer**2

    def total(values):
        return jnp.where(weights != 0, weights * values, 0).sum()

    return CrossEntropy(
        total=total(nll + static.z_loss * z),
        nll=total(nll),
        z=total(z),
        correct=total(chosen >= highest),
        weight=weights.sum(),
    )


def _no_sums(dtype: jnp.dtype) -> CrossEntropy:
    return CrossEntropy(*[jnp.zeros((), dtype)] * 5)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_entropy(static: _Static, smooth: _Smooth, targets: Array, weights: Array):
    head = smooth.head.astype(smooth.hidden.dtype)

    def body(sums, hidden, targets, weights):
        scores, _ = _logits(static, hidden, head, smooth.bias)
        new = _sums(static, *_statistics(scores, targets), weights)
        return jax.tree.map(jnp.add, sums, new), ()

    arrays = (smooth.hidden, targets, weights)
    return _for_each_chunk(static, arrays, body, _no_sums(weights.dtype))[0]


def _cross_entropy_forward(static, smooth, targets, weights):
    head = smooth.head.astype(smooth.hidden.dtype)

    def body(carry, hidden, targets, weights):
        sums, totals = carry
        scores, slope = _logits(static, hidden, head, smooth.bias)
        normalizer, chosen, highest = _statistics(scores, targets)
        sums = jax.tree.map(jnp.add, sums, _sums(static, normalizer, chosen, highest, weights))
        # d total / d scores = weight * (p * (1 + 2 z_loss logsumexp) - [is the target])
        factor = weights * (1 + 2 * static.z_loss * normalizer)
        dscores = jnp.exp(scores - normalizer[..., None]) * factor[..., None]
        dscores -= jnp.where(_is_target(scores, targets), weights[..., None], 0)
        dscores = jnp.where((weights != 0)[..., None], dscores, 0)
        totals, dhidden = _pull(smooth, head, hidden, dscores, slope, totals)
        return (sums, totals), dhidden

    arrays = (smooth.hidden, targets, weights)
    carry = (_no_sums(weights.dtype), _zero_totals(smooth))
    (sums, (dhead, dbias)), dhidden = _for_each_chunk(static, arrays, body, carry)
    return sums, _like(smooth, dhidden, dhead, dbias)


def _like(smooth: _Smooth, dhidden: Array, dhead: Array, dbias: Array | None) -> _Smooth:
    """A gradient in the dtypes of what it is the gradient of."""
    gradient = _Smooth(dhidden, dhead, dbias)
    return jax.tree.map(lambda d, x: d.astype(x.dtype), gradient, smooth)


def _cross_entropy_backward(static, gradient, cotangent: CrossEntropy):
    scaled = jax.tree.map(lambda g: (g * cotangent.total).astype(g.dtype), gradient)
    return scaled, None, None


_cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _token_logps(static: _Static, smooth: _Smooth, targets: Array) -> Array:
    return _token_logps_forward(static, smooth, targets)[0]


def _token_logps_forward(static, smooth, targets):
    head = smooth.head.astype(smooth.hidden.dtype)

    def body(carry, hidden, targets):
        scores, _ = _logits(static, hidden, head, smooth.bias)
        normalizer, chosen, _ = _statistics(scores, targets)
        return carry, (chosen - normalizer, normalizer)

    _, (logps, normalizer) = _for_each_chunk(static, (smooth.hidden, targets), body, ())
    return logps, (smooth, targets, normalizer)


def _token_logps_backward(static, saved, cotangent):
    smooth, targets, normalizer = saved
    head = smooth.head.astype(smooth.hidden.dtype)

    def body(totals, hidden, targets, normalizer, cotangent):
        scores, slope = _logits(static, hidden, head, smooth.bias)
        dscores = _is_target(scores, targets) - jnp.exp(scores - normalizer[..., None])
        dscores = jnp.where((cotangent != 0)[..., None], dscores * cotangent[..., None], 0)
        return _pull(smooth, head, hidden, dscores, slope, totals)

    arrays = (smooth.hidden, targets, normalizer, cotangent)
    (dhead, dbias), dhidden = _for_each_chunk(static, arrays, body, _zero_totals(smooth))
    return _like(smooth, dhidden, dhead, dbias), None


_token_logps.defvjp(_token_logps_forward, _token_logps_backward)
