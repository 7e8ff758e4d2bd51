"""Bringing tokens to their experts and the outputs back: three ways of equal value.

Pure functions. `ffn` is the experts' feed-forward layer; it takes rows [N, D] sorted by expert
with `group_sizes` [E], or rows [E, C, D]. Weights and sums over a token's experts are float32.
Where experts lie on several devices, see `exchange`; `axis` is then the mesh axis that cuts them,
and tokens are those of one device.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Float, Int

from jgpt.layers.router import Routing
from jgpt.typing import Array

ExpertFFN = Callable[..., Array]
TRAVELLED = "travelled_rows"
"""Name of rows that came from other devices, by which `remat='dots'` keeps them: no second travel.
"""


def dense(
    x: Float[Array, "T D"],
    weights: Float[Array, "T E"],
    ffn: ExpertFFN,
    axis: str | None = None,
) -> Array:
    """Every expert on every token, weighted; E / k times the needed work. The specification.

    Over an axis each device's experts see all tokens, and the outputs are added up.
    """
    dtype, num_experts = x.dtype, weights.shape[1]
    if axis is not None:
        x = lax.all_gather(x, axis, tiled=True)
        weights = lax.all_to_all(weights, axis, 1, 0, tiled=True)
        num_experts = weights.shape[1]
    y = ffn(jnp.broadcast_to(x, (num_experts, *x.shape)))
    y = jnp.einsum("etd,te->td", y.astype(jnp.float32), weights)
    if axis is not None:
        y = lax.psum_scatter(y, axis, tiled=True)
    return y.astype(dtype)


def dense_weights(routing: Routing, num_experts: int) -> Float[Array, "T E"]:
    """Weight of every expert for every token, 0 where it was not chosen."""
    chosen = jax.nn.one_hot(routing.experts, num_experts, dtype=jnp.float32)
    return jnp.sum(chosen * routing.weights[:, :, None], axis=1)


def dropless(x: Float[Array, "T D"], routing: Routing, num_experts: int, ffn: ExpertFFN) -> Array:
    """Sorts the assignments by expert; every one is computed, and nothing else."""
    num_tokens, k = routing.experts.shape
    order, inverse, group_sizes = sort_by_expert(routing.experts.reshape(-1), num_experts)
    rows = permute(x, order, inverse, k)
    y = permute(ffn(rows, group_sizes), inverse, order, 1).reshape(num_tokens, k, -1)
    return jnp.sum(y * routing.weights[:, :, None], axis=1).astype(x.dtype)


def sort_by_expert(
    experts: Int[Array, "N"], num_experts: int
) -> tuple[Int[Array, "N"], Int[Array, "N"], Int[Array, "E"]]:
    """Stable order of the assignments by expert, its inverse, and the number for each expert.

    Assignments to `num_experts` (nowhere) come last and are not counted.
    """
    count = experts.shape[0]
    index = jnp.arange(count, dtype=jnp.int32)
    if (num_experts + 1) * count < 2**31:
        # One sort of expert and index packed into one number: five times faster than argsort.
        order = jnp.sort(experts * count + index) % count
    else:
        order = jnp.argsort(experts, stable=True)
    inverse = jnp.zeros_like(index).at[order].set(index, unique_indices=True)
    mine = experts == jnp.arange(num_experts, dtype=experts.dtype)[:, None]
    return order, inverse, jnp.sum(mine, axis=1, dtype=jnp.int32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def permute(
    x: Float[Array, "T D"],
    order: Int[Array, "N"],
    inverse: Int[Array, "M"],
    copies: int,
    partial: bool = False,
) -> Float[Array, "N D"]:
    """Rows `order` of x with every row repeated `copies` times (M = T * copies).

    The gradient gathers too, along `inverse`, and sums copies in float32, where that of plain
    indexing would scatter.

    Args:
        order: which of the M copies each result is.
        inverse: which of the N results each copy is.
        copies: of every row.
        partial: whether `order` may hold M, for a result of 0, and `inverse` N, for none.
    """
    return _rows(x, order // copies, partial)


def _rows(x: Array, index: Array, partial: bool) -> Array:
    return x.at[index].get(mode="fill", fill_value=0) if partial else x[index]


def _permute_forward(x, order, inverse, copies, partial):
    return permute(x, order, inverse, copies, partial), inverse


def _permute_backward(copies, partial, inverse, dy):
    dx = _rows(dy, inverse, partial)
    if copies > 1:
        dx = dx.reshape(-1, copies, dy.shape[1])
        dx = jnp.sum(dx, axis=1, dtype=jnp.promote_types(dy.dtype, jnp.float32))
    return dx.astype(dy.dtype), None, None


permute.defvjp(_permute_forward, _permute_backward)


class Slots(NamedTuple):
    """A fixed number C of slots per expert in each of G groups of n tokens."""

    tokens: Int[Array, "G E C"]
    """Index in the group of the token that fills the slot; n for an empty slot."""
    weights: Float[Array, "G E C"]
    """0 for an empty slot."""


def slots_per_expert(group_size: int, k: int, num_experts: int, factor: float) -> int:
    """`ceil(group_size * k / E * factor)` (Lepikhin et al. 2021, "GShard"), at most the group."""
    return min(group_size, math.ceil(group_size * k / num_experts * factor))


def assign_slots(
    routing: Routing, num_experts: int, group_size: int, num_slots: int
) -> tuple[Slots, Float[Array, ""]]:
    """Fills each expert's slots in the order of the tokens, and counts who found none.

    Earlier tokens go first with all their choices, so that in a group of one sequence no token's
    place depends on a later one: what a causal model computes stays causal.
    """
    k = routing.experts.shape[1]
    experts = routing.experts.reshape(-1, group_size * k)
    chosen = jax.nn.one_hot(experts, num_experts, dtype=jnp.int32)
    place = jnp.sum(jnp.cumsum(chosen, axis=1) * chosen, axis=2) - 1
    routed = experts < num_experts
    kept = routed & (place < num_slots)
    slot = jnp.where(kept, experts * num_slots + place, num_experts * num_slots)

    def fill(slot: Array) -> Array:
        empty = jnp.full((num_experts * num_slots,), group_size * k, jnp.int32)
        return empty.at[slot].set(jnp.arange(group_size * k, dtype=jnp.int32), mode="drop")

    assignment = jax.vmap(fill)(slot)
    weights = _take_rows(routing.weights.reshape(*experts.shape, 1), assignment)
    shape = (-1, num_experts, num_slots)
    dropped = jnp.sum(routed & ~kept, dtype=jnp.float32)
    return Slots((assignment // k).reshape(shape), weights.reshape(shape)), dropped


def choose_tokens(scores: Array, token_mask: Array, num_slots: int) -> Slots:
    """Expert choice: each expert takes its best tokens of a group (Zhou et al. 2022).

    Args:
        scores: [G, n, E].
        token_mask: [G, n]; padding is never taken, slots left over stay empty.
    """
    offered = jnp.where(token_mask[:, :, None], jax.lax.stop_gradient(scores), -1.0)
    best, tokens = jax.lax.top_k(offered.swapaxes(1, 2), num_slots)
    weights = jnp.take_along_axis(scores.swapaxes(1, 2), tokens, axis=2)
    taken = best >= 0
    return Slots(jnp.where(taken, tokens, scores.shape[1]), jnp.where(taken, weights, 0.0))


def through_slots(
    x: Float[Array, "T D"],
    slots: Slots,
    group_size: int,
    ffn: ExpertFFN,
    axis: str | None = None,
) -> Array:
    """Gathers each group's tokens into the slots, runs the experts, adds the outputs up again.

    Over an axis the slots travel to their experts' devices, and the outputs back (Lepikhin et al.
    2021, "GShard", section 3). The weights travel with them, as in `exchange`.
    """
    num_groups, num_experts, num_slots = slots.tokens.shape
    width = x.shape[1]
    index = slots.tokens.reshape(num_groups, -1)
    rows = _take_rows(x.reshape(num_groups, group_size, width), index)
    rows = rows.reshape(num_groups, num_experts, num_slots, width).swapaxes(0, 1)
    rows = rows.reshape(num_experts, num_groups * num_slots, width)
    if axis is None:
        y = ffn(rows)
    else:
        rows = checkpoint_name(lax.all_to_all(rows, axis, 0, 1, tiled=True), TRAVELLED)
        scales = slots.weights.swapaxes(0, 1).reshape(num_experts, -1)
        scales = lax.all_to_all(scales, axis, 0, 1, tiled=True)
        y = lax.all_to_all(ffn(rows, None, scales[..., None]), axis, 1, 0, tiled=True)
    y = y.reshape(num_experts, num_groups, num_slots, width).swapaxes(0, 1)
    y = y * slots.weights[..., None] if axis is None else y.astype(slots.weights.dtype)
    y = y.reshape(num_groups, -1, width)

    def add(index: Array, y: Array) -> Array:
        return jnp.zeros((group_size, width), y.dtype).at[index].add(y, mode="drop")

    return jax.vmap(add)(index, y).reshape(x.shape).astype(x.dtype)


def slot_weights(slots: Slots, group_size: int) -> Float[Array, "T E"]:
    """`dense_weights` of slots."""

    def add(tokens: Array, weights: Array) -> Array:
        expert = jnp.arange(tokens.shape[0])[:, None]
        empty = jnp.zeros((group_size, tokens.shape[0]), weights.dtype)
        return empty.at[tokens, expert].add(weights, mode="drop")

    return jax.vmap(add)(*slots).reshape(-1, slots.tokens.shape[1])


def _take_rows(x: Float[Array, "G n D"], index: Int[Array, "G m"]) -> Float[Array, "G m D"]:
    """Rows of each group; index n gives 0."""
    return jax.vmap(lambda a, i: a.at[i].get(mode="fill", fill_value=0))(x, index)
