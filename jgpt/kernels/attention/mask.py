"""`Mask` and `Bias` made concrete, for the whole score matrix or for one block of it."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from jgpt.typing import AlibiBias, Array, Bias, Mask


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Indices:
    """Of the rows [1 or B, s] and columns [1 or B, t] of a piece of the score matrix."""

    query: Array
    key: Array


def visible(
    mask: Mask,
    at: Indices,
    q_segment_ids: Array | None,
    kv_segment_ids: Array | None,
) -> Array | None:
    """Which (query, key) pairs `mask` allows, [1 or B, s, t] bool; None where it allows all.

    `at` and the segment ids ([B, s], [B, t]) are those of the piece asked for; the lengths in
    `mask.prefix_lengths` are of whole rows, and so is what else `mask` holds.
    """
    query, key = at.query[:, :, None], at.key[:, None, :]
    prefix = None if mask.prefix_lengths is None else mask.prefix_lengths[:, None, None]
    parts = structure(mask, query, key, prefix)
    if mask.kv_positions is not None:
        parts.append(key >= 0)
    if q_segment_ids is not None:
        parts.append(q_segment_ids[:, :, None] == kv_segment_ids[:, None, :])
        parts.append(kv_segment_ids[:, None, :] != 0)
    if not parts:
        return None
    allowed = parts[0]
    for part in parts[1:]:
        allowed = allowed & part
    return allowed


def structure(mask: Mask, query: Array, key: Array, prefix: Array | None) -> list[Array]:
    """What each part of the mask that goes by indices allows, of indices that broadcast."""
    parts = []
    if mask.causal:
        seen = key <= query
        parts.append(seen if prefix is None else seen | (key < prefix))
    if mask.window:
        parts.append(abs(query - key) < mask.window)
    if mask.block_size:
        parts.append(block_visible(mask, query // mask.block_size, key // mask.block_size))
    return parts


def block_visible(mask: Mask, query_block: Array, key_block: Array) -> Array:
    """The block-sparse pattern between block indices (numpy or jax integers).

    Query block b sees blocks b - num_local_blocks + 1 to b, blocks 0 to num_global_blocks - 1 and,
    with a stride, blocks stride - 1, 2 stride - 1, ... (the last of every `stride`; Child et al.
    2019, "fixed" pattern).
    """
    behind = query_block - key_block
    allowed = (behind >= 0) & (behind < mask.num_local_blocks)
    allowed |= key_block < mask.num_global_blocks
    if mask.stride:
        allowed |= (key_block + 1) % mask.stride == 0
    return allowed


def relative_bucket(
    distance: Array, num_buckets: int, max_distance: int, bidirectional: bool
) -> Array:
    """T5's bucket of `distance` = key index - query index (Raffel et al. 2020, section 2.1).

    Half of the buckets hold one distance each, the others grow logarithmically up to
    `max_distance`; with `bidirectional`, keys ahead have the upper half of all buckets, else they
    count as distance 0. Same shape as `distance`, int32, in [0, num_buckets).
    """
    offset = 0
    if bidirectional:
        num_buckets //= 2
        offset = jnp.where(distance > 0, num_buckets, 0)
        distance = abs(distance)
    else:
        distance = jnp.maximum(-distance, 0)
    exact = num_buckets // 2
    # float32 and this order of operations are part of the definition: bucket borders depend on it.
    ratio = jnp.log(jnp.maximum(distance, 1).astype(jnp.float32) / exact)
    ratio = ratio / math.log(max_distance / exact) * (num_buckets - exact)
    large = jnp.minimum(exact + ratio.astype(jnp.int32), num_buckets - 1)
    return offset + jnp.where(distance < exact, distance, large)


def bias_scores(bias: Bias, at: Indices) -> Array:
    """What `bias` adds to the scores of a piece, [1 or B, H, s, t] float32."""
    distance = at.key[:, None, :] - at.query[:, :, None]
    if isinstance(bias, AlibiBias):
        slopes = bias.slopes[:, None, None]
        return -slopes * abs(distance)[:, None].astype(slopes.dtype)
    bucket = relative_bucket(distance, bias.table.shape[0], bias.max_distance, bias.bidirectional)
    return jnp.moveaxis(jnp.take(bias.table, bucket, axis=0), -1, 1)


def row_indices(mask: Mask, queries: int, keys: int) -> Indices:
    """Indices of the whole score matrix, of [1 or B, S] queries and [1 or B, T] keys."""
    query, key = mask.q_positions, mask.kv_positions
    return Indices(
        query=lax.iota(jnp.int32, queries)[None] if query is None else query,
        key=lax.iota(jnp.int32, keys)[None] if key is None else key,
    )
