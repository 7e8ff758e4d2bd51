"""The table of dimension letters, and the plain data that layers, kernels and data share.

Signatures write array shapes with these letters (`Float[Array, "B S D"]`); einsums use the same
letters in lower case.

| letter | dimension |
| --- | --- |
| B | batch: rows |
| S | sequence: query positions of a row |
| T | key positions; tokens of a flattened batch (B * S) where no keys are about |
| D | width of the residual stream |
| H | query heads |
| K | key/value heads (H is a multiple of K) |
| d | width of one head |
| F | width of a feed-forward layer or of one expert |
| E | experts |
| k | experts per token |
| V | vocabulary |
| L | layers |
| C | slots of a cache |
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax

Array = jax.Array
PyTree = Any
Batch = Mapping[str, Array]
"""Arrays of a batch by name, all [B, S] unless said otherwise: `inputs`, `targets`, `positions`,
`segment_ids` (0 is padding) int32, `loss_weights` float32, `characters` int32 (raw text code points
credited to a target), optional `prefix_lengths` [B] int32. Objectives may add fields."""


def static(**kwargs: Any) -> Any:
    """A dataclass field that is part of a pytree's structure, not one of its leaves."""
    return dataclasses.field(metadata={"static": True}, **kwargs)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mask:
    """Which keys each query may see, by structure; kernels never need it materialised.

    Every part that is present must allow a (query, key) pair:

    - `causal`: key index <= query index;
    - `window` > 0: |query index - key index| < window (only one-sided with `causal`);
    - `prefix_lengths` [B]: with `causal`, keys below this index are seen by all queries anyway;
    - segments: the ids are equal and the key's is not 0 (0 is padding);
    - `block_size` > 0: the key's block is one of the `num_local_blocks` that end with the query's,
      one of the first `num_global_blocks`, or (stride > 0) a `stride`-th block.

    Indices are `arange` unless given: a query against a cache gives `q_positions` [B, S] and
    `kv_positions` [B, T], where -1 marks an empty slot that no query sees. With `zigzag` = n > 0,
    queries and keys are one row in the order in which ring attention over n devices wants it
    (`jgpt.kernels.attention.ring_schedule.zigzag_order`).
    """

    causal: bool = static(default=True)
    window: int = static(default=0)
    block_size: int = static(default=0)
    num_local_blocks: int = static(default=0)
    num_global_blocks: int = static(default=0)
    stride: int = static(default=0)
    zigzag: int = static(default=0)
    prefix_lengths: Array | None = None
    q_segment_ids: Array | None = None
    kv_segment_ids: Array | None = None
    q_positions: Array | None = None
    kv_positions: Array | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AlibiBias:
    """Adds `-slopes[h] * |query index - key index|` to the scores (Press et al. 2022)."""

    slopes: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RelativeBias:
    """Adds `table[bucket(key index - query index), h]` to the scores (T5, Raffel et al. 2020)."""

    table: Array
    bidirectional: bool = static(default=False)
    max_distance: int = static(default=128)


Bias = AlibiBias | RelativeBias


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RouterStats:
    """Sums over the tokens of a batch that one mixture-of-experts layer saw (padding left out).

    Sums, so that shards and microbatches add up; the balance loss is their product, taken once per
    layer over the global batch of a microstep. Stacked over layers, each gets a leading [L].
    """

    assignments: Array
    """[E] float32: assignments to each expert, counted before any is dropped."""
    probabilities: Array
    """[E] float32: router probability of each expert, summed over tokens."""
    z: Array
    """[] float32: logsumexp(router logits)**2, summed over tokens."""
    entropy: Array
    """[] float32: entropy of the router's distribution in nats, summed over tokens."""
    dropped: Array
    """[] float32: assignments that found no room."""
    tokens: Array
    """[] float32: tokens counted."""
    deferred: Array
    """[] float32: assignments that waited for a further round between the experts' devices."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CrossEntropy:
    """Sums over weighted targets; only `total` carries a gradient."""

    total: Array
    """sum of weight * (nll, smoothed if so asked, + z_loss * logsumexp**2)"""
    nll: Array
    """sum of weight * nll, in nats"""
    z: Array
    """sum of weight * logsumexp**2"""
    correct: Array
    """sum of weight * [the likeliest token is the target]"""
    weight: Array
    """sum of weights"""
