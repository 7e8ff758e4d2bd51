"""Span corruption: an encoder reads text with holes, a decoder writes what was in them."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from jgpt.config import Config, ConfigError
from jgpt.objectives import pretrain
from jgpt.objectives.objective import Apply, Loss, Objective
from jgpt.typing import Array, Batch, PyTree


def make(config: Config) -> Objective:
    """Cross-entropy of the targets of `corrupt_spans` (Raffel et al. 2020, section 3.1.4).

    The metric `cut` is the share of target tokens that found no room in a row of `target_length`.

    Raises:
        ConfigError: a row has more spans than there are sentinels, or rows are to be cut.
    """
    settings, length = config.objective, config.data.sequence_length
    if config.mesh.context != 1:
        raise ConfigError(
            f"mesh.context ({config.mesh.context}) cannot cut the rows of "
            "objective.name='span_corruption', whose sources and targets differ in length; set it "
            "to 1, and mesh.data or mesh.fsdp higher"
        )
    spans = math.ceil(length * settings.noise_density / settings.mean_span)
    if spans > settings.num_sentinels:
        raise ConfigError(
            f"data.sequence_length ({length}) can have {spans} hidden spans; raise "
            f"objective.num_sentinels ({settings.num_sentinels}) or objective.mean_span"
        )
    first, end = settings.first_sentinel, settings.end_id
    corrupt = functools.partial(
        corrupt_spans,
        density=settings.noise_density,
        mean_span=settings.mean_span,
        first_sentinel=first if first >= 0 else config.model.vocab_size - 1,
        start_id=config.model.decoder_start_id,
        end_id=end,
    )
    base = pretrain.make(config)

    def loss(apply: Apply, variables: PyTree, batch: Batch, key: Array | None) -> Loss:
        sums = base.loss(apply, variables, batch, key)
        cut = jnp.sum(batch["cut"]).astype(jnp.float32)
        return dataclasses.replace(sums, metrics={**sums.metrics, "cut": (cut, sums.weight + cut)})

    return dataclasses.replace(base, loss=loss, corrupt=corrupt)


def target_length(length: int, density: float, mean_span: float) -> int:
    """Columns of the target rows: hidden tokens, a sentinel per span, ends of length / 8 documents.

    A multiple of 8.
    """
    hidden = round(length * density)
    spans = max(round(hidden / mean_span), 1)
    return -(-(hidden + spans + length // 8) // 8) * 8


def corrupt_spans(
    batch: Batch,
    key: Array,
    *,
    density: float,
    mean_span: float,
    first_sentinel: int,
    start_id: int,
    end_id: int,
) -> Batch:
    """A batch of packed text as one of sources with holes and targets that fill them.

    The text of a document is its `targets`: all tokens but the first, which begins it, and its end
    among them. Where a span is hidden the source has one sentinel; the target has every sentinel
    followed by its span, and `end_id`. Sentinels are numbered anew in every document, from
    `first_sentinel` down. The last token of a document is never hidden.

    Args:
        batch: `targets` and `segment_ids` [B, S] are read.
        key: decides what is hidden.
        density: share of the tokens hidden.
        mean_span: tokens per span, on average.
        first_sentinel: id of a document's first sentinel.
        start_id: what the decoder reads before its first target.
        end_id: ends a target.

    Returns:
        `encoder_inputs`, `encoder_segment_ids`, `encoder_positions` [B, S]; `inputs`, `targets`,
        `segment_ids`, `positions`, `loss_weights`, `characters` (0) [B, T], T = `target_length`;
        `cut` [B] int32, target tokens that found no room.
    """
    text, segments = batch["targets"], batch["segment_ids"]
    rows, length = text.shape
    width = target_length(length, density, mean_span)
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(rows))
    lengths = jnp.sum(segments > 0, axis=1)
    hide = functools.partial(span_mask, size=length, density=density, mean_span=mean_span)
    hidden = jax.vmap(hide)(keys, lengths)
    split = functools.partial(split_row, first_sentinel=first_sentinel, end_id=end_id, width=width)
    source, target, cut = jax.vmap(split)(text, segments, hidden)
    first = _begins(target[1])
    before = jnp.pad(target[0], ((0, 0), (1, 0)))[:, :-1]
    return {
        "encoder_inputs": source[0],
        "encoder_segment_ids": source[1],
        "encoder_positions": _positions(source[1]),
        "inputs": jnp.where(first, start_id, before),
        "targets": target[0],
        "segment_ids": target[1],
        "positions": _positions(target[1]),
        "loss_weights": (target[1] > 0).astype(jnp.float32),
        "characters": jnp.zeros_like(target[0]),
        "cut": cut,
    }


def span_mask(
    key: Array, length: Int[Array, ""], *, size: int, density: float, mean_span: float
) -> Bool[Array, "S"]:
    """Which of the first `length` of `size` tokens are hidden: spans of random lengths.

    `round(length * density)` tokens in that over `mean_span` spans, at least one and never all; the
    lengths of the spans and of the gaps before them are random compositions of their sums (T5's
    `random_spans_noise_mask`). The first token is never hidden; the last one always is, so that
    a lone span is at the end.
    """
    hidden = jnp.clip(jnp.round(length * density).astype(jnp.int32), 1, jnp.maximum(length - 1, 1))
    shown = jnp.maximum(length - hidden, 1)
    spans = jnp.round(hidden / mean_span).astype(jnp.int32)
    spans = jnp.clip(spans, 1, jnp.minimum(hidden, shown))
    draws = jax.random.uniform(key, (2, size))
    gaps = composition(draws[0], shown, spans)
    holes = composition(draws[1], hidden, spans)
    ends = jnp.cumsum(jnp.stack([gaps, holes], axis=1).reshape(-1))
    at = jnp.arange(size)
    return (jnp.searchsorted(ends, at, side="right") % 2 == 1) & (at < length)


def composition(
    draws: Float[Array, "S"], total: Int[Array, ""], parts: Int[Array, ""]
) -> Int[Array, "S"]:
    """`parts` positive numbers that add up to `total`, all such equally likely; then zeros."""
    at = jnp.arange(draws.shape[0])
    # Cut before the items with the smallest draws; there is always one before the first.
    order = jnp.where((at > 0) & (at < total), draws, jnp.inf)
    cuts = (jnp.argsort(jnp.argsort(order)) < parts - 1) | (at == 0)
    part = jnp.cumsum(cuts) - 1
    return jnp.zeros_like(at).at[part].add((at < total).astype(at.dtype))


Row = tuple[Int[Array, "N"], Int[Array, "N"]]
"""Tokens and their segment ids."""


def split_row(
    text: Int[Array, "S"],
    segments: Int[Array, "S"],
    hidden: Bool[Array, "S"],
    *,
    first_sentinel: int,
    end_id: int,
    width: int,
) -> tuple[Row, Row, Int[Array, ""]]:
    """(source [S], target [width], how many target tokens found no room) of one packed row."""
    real = segments > 0
    ends = real & (jnp.diff(segments, append=0) != 0)
    hidden = hidden & real & ~ends
    starts = hidden & ~jnp.pad(hidden, (1, 0))[:-1]
    count = jnp.cumsum(starts)
    earlier = jax.lax.cummax(jnp.where(_begins(segments), count - starts, 0))
    sentinel = first_sentinel - (count - 1 - earlier)

    kept = real & (~hidden | starts)
    place = jnp.where(kept, jnp.cumsum(kept) - 1, text.shape[0])
    source = tuple(
        jnp.zeros_like(text).at[place].set(value, mode="drop")
        for value in (jnp.where(starts, sentinel, text), segments)
    )
    written = hidden.astype(jnp.int32) + starts + ends
    after = jnp.cumsum(written)
    # A position writes its sentinel, if it has one, and then its token or the end.
    places = (
        jnp.where(starts, after - 2, width),
        jnp.where(hidden | ends, after - 1, width),
    )
    values = (sentinel, jnp.where(ends, end_id, text))
    target = jnp.zeros((width,), text.dtype)
    target_segments = jnp.zeros((width,), text.dtype)
    for place, value in zip(places, values):
        target = target.at[place].set(value, mode="drop")
        target_segments = target_segments.at[place].set(segments, mode="drop")
    return source, (target, target_segments), jnp.maximum(after[-1] - width, 0)


def _begins(segments: Int[Array, "... S"]) -> Bool[Array, "... S"]:
    """The first token of every document."""
    return (segments > 0) & (jnp.diff(segments, axis=-1, prepend=0) != 0)


def _positions(segments: Int[Array, "B S"]) -> Int[Array, "B S"]:
    """From 0 in every document; 0 in padding."""
    at = jnp.broadcast_to(jnp.arange(segments.shape[1]), segments.shape)
    start = jax.lax.cummax(jnp.where(_begins(segments), at, 0), axis=1)
    return jnp.where(segments > 0, at - start, 0)
