"""Cross-entropy in chunks of tokens, in plain JAX: no [T, V] array is ever in memory."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import lax

from jgpt.kernels.cross_entropy import streaming
from jgpt.kernels.cross_entropy.chunks import Figures, Rows, Totals
from jgpt.kernels.device import device_kind
from jgpt.kernels.matmul import input_gradient, product, weight_gradient
from jgpt.typing import Array, CrossEntropy

CHUNK, TPU_CHUNK = 512, 2048
"""Tokens per chunk, for each device of the mesh that is set (`jax.set_mesh`). Every chunk reads and
writes the head's gradient, for which a TPU's memory is slower against its products than a CPU's."""
MAX_UNROLLED = 8
"""Up to so many chunks are unrolled (faster on CPU); above, a loop keeps the program small."""


def supports(hidden: Array, head: Array, **_) -> str:
    """It can do everything."""
    return ""


def cross_entropy(
    hidden: Array,
    head: Array,
    targets: Array,
    weights: Array,
    *,
    bias: Array | None = None,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    softcap: float = 0.0,
    chunk: int | None = None,
) -> CrossEntropy:
    """See `jgpt.kernels.cross_entropy.cross_entropy`; `chunk`: tokens per chunk and device, None
    for CHUNK or TPU_CHUNK."""
    return streaming.cross_entropy(
        _Steps(chunk or _chunk(), MAX_UNROLLED, softcap),
        hidden,
        head,
        targets,
        weights,
        bias=bias,
        z_loss=z_loss,
        label_smoothing=label_smoothing,
    )


def token_logps(
    hidden: Array,
    head: Array,
    targets: Array,
    *,
    bias: Array | None = None,
    softcap: float = 0.0,
    chunk: int | None = None,
) -> Array:
    """See `jgpt.kernels.cross_entropy.token_logps`; `chunk` as above."""
    steps = _Steps(chunk or _chunk(), MAX_UNROLLED, softcap)
    return streaming.token_logps(steps, hidden, head, targets, bias=bias)


def _chunk() -> int:
    return TPU_CHUNK if device_kind().startswith("TPU") else CHUNK


@dataclass(frozen=True)
class _Steps:
    """See `chunks.Steps`. Rows stay apart: a batch cut over devices stays where it is."""

    tokens: int
    unrolled: int
    softcap: float
    flat = False
    multiple = 1

    def prepare(self, head: Array, bias: Array | None) -> tuple[Array, Array | None]:
        return head, bias

    def zeros(self, head: tuple[Array, Array | None]) -> Totals:
        dtype = jnp.promote_types(head[0].dtype, jnp.float32)
        bias = None if head[1] is None else jnp.zeros(head[1].shape, dtype)
        return Totals(jnp.zeros(head[0].shape, dtype), bias)

    def finish(self, totals: Totals, head: Array) -> Totals:
        return totals

    def scores(
        self, head: Any, hidden: Array, targets: Array, summed: bool, keep: bool
    ) -> tuple[Figures, Any]:
        matrix, bias = head
        scores, slope = product(hidden, matrix), None
        if bias is not None:
            scores += bias
        if self.softcap:
            tanh = jnp.tanh(scores / self.softcap)
            scores, slope = self.softcap * tanh, 1 - tanh * tanh
        highest = scores.max(-1)
        figures = Figures(
            highest=highest,
            total=jnp.exp(scores - highest[..., None]).sum(-1),
            chosen=lax.platform_dependent(scores, targets, cpu=_looked_up, default=_picked),
            summed=scores.sum(-1) if summed else None,
        )
        return figures, (scores, slope) if keep else None

    def gradients(
        self, head: Any, hidden: Array, targets: Array, kept: Any, rows: Rows, totals: Totals
    ) -> tuple[Totals, Array]:
        matrix, bias = head
        scores, slope = kept
        dscores = jnp.exp(scores - rows.normalizer[..., None]) * rows.factor[..., None]
        dscores -= jnp.where(_is_target(scores, targets), rows.pull[..., None], 0)
        if rows.constant is not None:
            dscores -= rows.constant[..., None]
        dscores = jnp.where((rows.pull != 0)[..., None], dscores, 0)
        if slope is not None:
            dscores *= slope
        dbias = None if bias is None else totals.bias + dscores.sum((0, 1))
        dscores = dscores.astype(hidden.dtype)
        dhead = totals.head + weight_gradient(hidden, dscores)
        return Totals(dhead, dbias), input_gradient(dscores, matrix)


def _is_target(scores: Array, targets: Array) -> Array:
    return lax.broadcasted_iota(targets.dtype, scores.shape, 2) == targets[..., None]


def _picked(scores: Array, targets: Array) -> Array:
    """Scores of the targets, 0 for those outside: in one pass with other sums."""
    return jnp.where(_is_target(scores, targets), scores, 0).sum(-1)


def _looked_up(scores: Array, targets: Array) -> Array:
    """The same, one read for each token: quicker where passes cost time."""
    inside = (targets >= 0) & (targets < scores.shape[-1])
    at = jnp.clip(targets, 0, scores.shape[-1] - 1)
    return jnp.where(inside, jnp.take_along_axis(scores, at[..., None], axis=-1)[..., 0], 0)
