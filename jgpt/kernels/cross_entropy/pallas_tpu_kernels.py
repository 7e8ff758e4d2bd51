"""The bodies of the two TPU kernels of the loss. One step sees a chunk's tokens and a block of the
head's columns; steps follow each other along the vocabulary.

Statistics of tokens are [tokens, 128] in scratch: of the maximum every lane is the same; of sums
each lane has the part of every 128th column, and they meet once, in the last step. `maxima` has
in lane j the running maximum of step j, which that step's exponentials are relative to.
"""

import functools

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from jgpt.typing import Array

LANES = 128
FORBIDDEN = -1e30
"""Score of columns behind the vocabulary, which are there to fill the last block."""
ROWS_AT_ONCE = 512
"""A chunk is computed in parts of so many tokens, so that the arithmetic on one part's scores can
go on beside the next part's products."""


def _parts(tokens: int) -> list[slice]:
    size = next(s for s in (ROWS_AT_ONCE, 256, 128, tokens) if tokens % s == 0)
    return [slice(start, start + size) for start in range(0, tokens, size)]


def _dot(a: Array, b: Array, contract: tuple[int, int]) -> Array:
    """Product over one axis of each, accumulated in float32."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    dimensions = (((contract[0],), (contract[1],)), ((), ()))
    return lax.dot_general(
        a, b, dimensions, precision=precision, preferred_element_type=jnp.float32
    )


def _lane_sums(x: Array) -> Array:
    """[rows, n * 128] to [rows, 128]."""
    return functools.reduce(jnp.add, [x[:, i : i + LANES] for i in range(0, x.shape[1], LANES)])


def _lane(shape: tuple[int, int]) -> Array:
    return lax.broadcasted_iota(jnp.int32, shape, 1)


def scores_kernel(refs: dict, softcap: float, vocabulary: int) -> None:
    step, steps = pl.program_id(0), pl.num_programs(0)
    tokens, columns = refs["hidden"].shape[0], refs["head"].shape[1]
    highest, total, chosen, summed = (refs[n] for n in ("highest", "total", "chosen", "summed"))

    @pl.when(step == 0)
    def _begin():
        highest[...] = jnp.full(highest.shape, FORBIDDEN, jnp.float32)
        for ref in (total, chosen, summed):
            if ref is not None:
                ref[...] = jnp.zeros(ref.shape, jnp.float32)

    for rows in _parts(tokens):
        scores = _dot(refs["hidden"][rows, :], refs["head"][...], (1, 0))
        if refs["bias"] is not None:
            scores += refs["bias"][...]
        if softcap:
            scores = softcap * jnp.tanh(scores * (1 / softcap))
        column = _lane(scores.shape)
        if vocabulary % columns:
            known = column < vocabulary - step * columns
            scores = jnp.where(known, scores, FORBIDDEN)
        old = highest[rows, :]
        new = jnp.maximum(old, scores.max(1, keepdims=True))
        exponentials = jnp.exp(scores - jnp.tile(new, (1, columns // LANES)))
        target = column == refs["targets"][rows, :] - step * columns
        highest[rows, :] = new
        total[rows, :] = total[rows, :] * jnp.exp(old - new) + _lane_sums(exponentials)
        chosen[rows, :] += _lane_sums(jnp.where(target, scores, 0))
        if summed is not None:
            every = jnp.where(known, scores, 0) if vocabulary % columns else scores
            summed[rows, :] += _lane_sums(every)
        if refs["maxima"] is not None:
            refs["exponentials"][rows, :] = exponentials.astype(refs["exponentials"].dtype)
            here = _lane(new.shape) == step % LANES
            refs["maxima"][rows, :] = jnp.where(here, new, refs["maxima"][rows, :])

    @pl.when(step == steps - 1)
    def _end():
        parts = [ref for ref in (total, chosen, summed) if ref is not None]
        sums = [ref[...].sum(1, keepdims=True) for ref in parts]
        figures = highest[...]
        for i, x in enumerate(sums):
            figures = jnp.where(_lane(figures.shape) == i + 1, x, figures)
        refs["figures"][...] = figures


def gradients_kernel(refs: dict, softcap: float, smoothed: bool) -> None:
    step, steps = pl.program_id(0), pl.num_programs(0)
    tokens, columns = refs["exponentials"].shape
    dhidden = refs["dhidden_sum"]
    dtype = refs["exponentials"].dtype

    @pl.when(step == 0)
    def _begin():
        dhidden[...] = jnp.zeros(dhidden.shape, jnp.float32)

    refs["dhead"][...] = refs["old_dhead"][...]
    if refs["dbias"] is not None:
        refs["dbias"][...] = refs["old_dbias"][...]

    for rows in _parts(tokens):
        exponentials = refs["exponentials"][rows, :].astype(jnp.float32)
        figures = refs["rows"][rows, :]
        normalizer, factor, at_target, constant = (figures[:, i : i + 1] for i in range(4))
        maxima = refs["maxima"][rows, :]
        here = _lane(maxima.shape) == step % LANES
        maximum = jnp.where(here, maxima, 0).sum(1, keepdims=True)
        dscores = exponentials * (jnp.exp(maximum - normalizer) * factor)
        if smoothed:
            dscores -= constant
        if softcap:
            # scores once more; where an exponential is 0, so is what its slope multiplies
            scores = jnp.log(jnp.maximum(exponentials, 1e-37)) + maximum
            dscores *= 1 - (scores * (1 / softcap)) ** 2
        target = _lane(dscores.shape) == refs["targets"][rows, :] - step * columns
        dscores = jnp.where(target, at_target, dscores)
        if refs["dbias"] is not None:
            refs["dbias"][...] += dscores.sum(0, keepdims=True)
        dscores = dscores.astype(dtype)
        dhidden[rows, :] += _dot(dscores, refs["head"][...], (1, 1))
        refs["dhead"][...] += _dot(refs["transposed"][:, rows], dscores, (1, 0))

    @pl.when(step == steps - 1)
    def _end():
        refs["dhidden"][...] = dhidden[...].astype(refs["dhidden"].dtype)
