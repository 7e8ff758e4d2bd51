"""Dropless routing between devices that each hold some of the experts.

Pure functions, run by every device of the mesh axis that cuts the experts (under `shard_map`), each
with its own T tokens and the E / n experts that it owns. Rows travel to their experts' device, are
sorted by expert there, and their outputs travel back the same way. Routing weights go with the rows
and are applied before the experts' last product. Their gradient then needs no output, so that a
layer that is computed again (`model.remat`) neither computes that product a second time nor sends
its rows back.

How many rows a device gets is known only as the program runs, and its buffers are not: room for the
worst case (every token of the axis on one device) would be n times what an even load needs. So
rows travel in rounds. A round has room for `factor` times the even share; while loads are within
that, there is one round, and more only when some device of the mesh was asked for more. No row is
ever dropped, memory does not depend on the load, and `deferred` counts rows that were not in the
first round. The first round is differentiated as usual; further ones are computed again in the
backward pass, which is what makes their number free.

Two forms of travel, with equal results:

- `ragged`: `lax.ragged_all_to_all`, exactly the rows there are. A round has room on each device
  for `factor * T * k` rows from all others together;
- `padded`: `lax.all_to_all` of a block of `factor * T * k / n` rows for each pair of devices,
  filled up with zeros. Any platform.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Float, Int

from jgpt.layers.dispatch import TRAVELLED, permute, sort_by_expert
from jgpt.layers.experts import Experts
from jgpt.layers.router import Routing
from jgpt.typing import Array


@dataclasses.dataclass(frozen=True)
class Exchange:
    """Where experts lie, and how rows get there."""

    axis: str
    """the mesh axis that cuts the experts"""
    size: int
    """n, its devices"""
    other_axes: tuple[str, ...]
    """the mesh's other axes: all devices make equally many rounds"""
    form: str
    """`ragged` or `padded`"""
    factor: float
    """room of a round over the even share"""

    def room(self, num_tokens: int, k: int, owned: int) -> tuple[int, int]:
        """Rows of one buffer of a round, and the most that could want to be in it."""
        share = num_tokens * k / (self.size if self.form == "padded" else 1)
        worst = num_tokens * min(k, owned) * (1 if self.form == "padded" else self.size)
        # All that arrives is a multiple of the 512 rows that grouped products work on at a time, or
        # each of them would copy its rows to fill the last block up.
        unit = max(128, 512 // self.size) if self.form == "padded" else 512
        unit = unit if share >= 1024 else 8
        return min(-(-int(share * self.factor + 1) // unit) * unit, worst), worst


class Plan(NamedTuple):
    """Which rows go where; N = T * k assignments of this device, n devices."""

    experts: Int[Array, "N"]
    """Of each assignment, E for nowhere."""
    order: Int[Array, "N"]
    """Assignments sorted by expert, and so by device."""
    inverse: Int[Array, "N"]
    counts: Int[Array, "n E"]
    """Assignments of each device to each expert."""
    rounds: Int[Array, ""]
    """The same on all devices of the mesh."""


class Round(NamedTuple):
    """One round, from the side of one device: M outgoing rows, R arriving ones."""

    outgoing: Int[Array, "M"]
    """Assignment that each outgoing row holds; N for none."""
    places: Int[Array, "N"]
    """Outgoing row of each assignment; M for none."""
    arriving: Int[Array, "R"]
    """Own expert, from 0, that each arriving row is for; E / n for none."""
    there: tuple[Array, ...]
    """Of `lax.ragged_all_to_all`: offsets and sizes [n] of the way there; () when padded."""
    back: tuple[Array, ...]
    """And of the way back."""
    scales: tuple[Array, ...]
    """When ragged, of one number per row: which of all devices' [n, N] sorted assignments each
    arriving row is, and which of all their [n, R] rows each sorted assignment is; n * N and n * R
    for none."""


def dropless(
    x: Float[Array, "T D"], routing: Routing, num_experts: int, experts: Experts, way: Exchange
) -> tuple[Float[Array, "T D"], Float[Array, ""]]:
    """`dispatch.dropless` over the devices of `way.axis`, and how many assignments were deferred.

    Args:
        x: this device's tokens.
        routing: theirs, over all experts.
        num_experts: E, of all devices together.
        experts: the E / n that this device owns.
        way: how rows travel.
    """
    plan, deferred = make_plan(routing.experts.reshape(-1), num_experts, len(x), way)
    run = functools.partial(one_round, experts.apply, way)
    operands = (x, routing.weights, experts.kernels)
    room, worst = way.room(*routing.experts.shape, num_experts // way.size)
    y = run(operands, plan, 0) if room >= worst else all_rounds(run, operands, plan)
    return y.astype(x.dtype), deferred


def make_plan(
    experts: Int[Array, "N"], num_experts: int, num_tokens: int, way: Exchange
) -> tuple[Plan, Float[Array, ""]]:
    """The plan, and this device's assignments that are not in the first round."""
    order, inverse, sizes = sort_by_expert(experts, num_experts)
    counts = lax.all_gather(sizes, way.axis)
    owned = num_experts // way.size
    room, _ = way.room(num_tokens, len(experts) // num_tokens, owned)
    wanted = _between(counts, way)  # [source, target]
    buffers = wanted if way.form == "padded" else jnp.sum(wanted, axis=0)
    rounds = jnp.maximum(1, -(-jnp.max(buffers) // room))
    rounds = lax.pmax(rounds, way.other_axes) if way.other_axes else rounds
    first = jnp.diff(jnp.stack(_window(wanted, room, 0, way)), axis=0)[0]
    late = jnp.sum((wanted - first)[lax.axis_index(way.axis)], dtype=jnp.float32)
    return Plan(experts, order, inverse, counts, rounds), late


def _between(counts: Int[Array, "n E"], way: Exchange) -> Int[Array, "n n"]:
    """Assignments of each source to each target device."""
    return jnp.sum(counts.reshape(way.size, way.size, -1), axis=2)


def _window(
    wanted: Int[Array, "n n"], room: int, number: int | Array, way: Exchange
) -> tuple[Array, Array]:
    """First and last + 1 of the rows of [source, target] in a round, counted as the buffer does.

    A buffer is of one pair when padded; of one target, its sources in turn, when ragged.
    """
    before = _places_of_sources(wanted, way)
    begin, end = number * room, (number + 1) * room
    return jnp.clip(before, begin, end), jnp.clip(before + wanted, begin, end)


def _places_of_sources(wanted: Int[Array, "n n"], way: Exchange) -> Int[Array, "n n"]:
    """Where the rows of [source, target] begin in the target's buffer of unlimited room."""
    if way.form == "padded":
        return jnp.zeros_like(wanted)
    return jnp.cumsum(wanted, axis=0) - wanted


def make_round(plan: Plan, number: int | Array, num_tokens: int, way: Exchange) -> Round:
    """Round `number` of the plan."""
    owned = plan.counts.shape[1] // way.size
    room, _ = way.room(num_tokens, len(plan.order) // num_tokens, owned)
    me = lax.axis_index(way.axis)
    wanted = _between(plan.counts, way)
    begin = jnp.cumsum(wanted, axis=1) - wanted  # in the source's sorted rows
    mine = lax.dynamic_slice_in_dim(plan.counts, me * owned, owned, axis=1)
    if way.form == "padded":
        outgoing, places = _blocks(plan, begin[me], wanted[me], room, number, way.size)
        ends = jnp.cumsum(mine, axis=1)
        row = number * room + jnp.arange(room)
        arriving = jax.vmap(lambda e: jnp.searchsorted(e, row, side="right"))(ends)
        return Round(outgoing, places, arriving.reshape(-1).astype(jnp.int32), (), (), ())
    first, last = _window(wanted, room, number, way)
    size = last - first
    shift = begin - _places_of_sources(wanted, way)
    sent_from = jnp.where(size > 0, shift + first, 0)
    lands_at = jnp.where(size > 0, first - number * room, 0)
    row = number * room + jnp.arange(room)
    place = jnp.searchsorted(jnp.cumsum(mine.reshape(-1)), row, side="right")
    source, sorted_row = place // owned, jnp.arange(len(plan.order))
    target = jnp.searchsorted(jnp.cumsum(wanted[me]), sorted_row, side="right")
    return Round(
        plan.order,
        plan.inverse,
        jnp.where(place < mine.size, place % owned, owned).astype(jnp.int32),
        (sent_from[me], size[me], lands_at[me], size[:, me]),
        (lands_at[:, me], size[:, me], sent_from[:, me], size[me]),
        (
            _flat(source, row + _of(source, shift[:, me]), len(plan.order), way.size),
            _flat(target, sorted_row - _of(target, shift[me]) - row[0], room, way.size),
        ),
    )


def _of(device: Array, values: Array) -> Array:
    """Each device's value; of a device that is none, anything."""
    return values.at[device].get(mode="clip")


def _flat(device: Array, index: Array, length: int, size: int) -> Array:
    """Place of (device, index) in [size, length], and one past its end where there is none."""
    there = (device < size) & (index >= 0) & (index < length)
    return jnp.where(there, device * length + index, size * length)


def _blocks(
    plan: Plan, begin: Array, wanted: Array, room: int, number: int | Array, size: int
) -> tuple[Array, Array]:
    """`Round.outgoing` and `places` of blocks of `room` rows, one per target."""
    count, owned = len(plan.order), plan.counts.shape[1] // size
    row = number * room + jnp.arange(room)
    sorted_row = jnp.clip(begin[:, None] + row, 0, count - 1)
    outgoing = jnp.where(row < wanted[:, None], plan.order[sorted_row], count)
    target = plan.experts // owned
    row = plan.inverse - begin.at[target].get(mode="fill", fill_value=0) - number * room
    here = (target < size) & (row >= 0) & (row < room)
    return outgoing.reshape(-1), jnp.where(here, target * room + row, size * room)


def one_round(apply, way: Exchange, operands: tuple, plan: Plan, number: int | Array) -> Array:
    """What the assignments of one round add to the output: [T, D] float32.

    Args:
        apply: `Experts.apply`.
        way: how rows travel.
        operands: tokens [T, D], weights [T, k] and the experts' weights; what is differentiated.
        plan: of all rounds.
        number: of this one.
    """
    x, weights, kernels = operands
    num_tokens, k = weights.shape
    now = make_round(plan, number, num_tokens, way)
    partial = way.form == "padded"
    rows = permute(x, now.outgoing, now.places, k, partial)
    rows = checkpoint_name(travel(rows, now.there, now.back, len(now.arriving), way), TRAVELLED)
    scales = permute(weights.reshape(-1, 1), now.outgoing, now.places, 1, partial)
    scales = travel_scales(scales.reshape(-1), now.scales, way)
    order, inverse, sizes = sort_by_expert(now.arriving, plan.counts.shape[1] // way.size)
    rows, scales = (permute(a, order, inverse, 1) for a in (rows, scales.reshape(-1, 1)))
    y = permute(apply(kernels, rows, sizes, scales), inverse, order, 1)
    y = travel(y, now.back, now.there, len(now.outgoing), way)
    y = permute(y, now.places, now.outgoing, 1, partial).reshape(num_tokens, k, -1)
    return jnp.sum(y, axis=1, dtype=jnp.promote_types(y.dtype, jnp.float32))


def travel(rows: Array, there: tuple, back: tuple, count: int, way: Exchange) -> Array:
    """`rows` [M, D] to the other devices; [count, D] of theirs, 0 where nothing arrived."""
    if way.form == "padded":
        return lax.all_to_all(rows, way.axis, 0, 0, tiled=True)
    return _ragged(rows, there, back, count, way.axis)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _ragged(rows: Array, there: tuple, back: tuple, count: int, axis: str) -> Array:
    """Its transpose is the way back, whose offsets are known: JAX would exchange them again."""
    empty = jnp.zeros((count, rows.shape[1]), rows.dtype)
    return lax.ragged_all_to_all(rows, empty, *there, axis_name=axis)


def _ragged_forward(rows, there, back, count, axis):
    return _ragged(rows, there, back, count, axis), (there, back, jnp.zeros((len(rows), 0)))


def _ragged_backward(count, axis, saved, dy):
    there, back, like = saved
    return _ragged(dy, back, there, len(like), axis), None, None


_ragged.defvjp(_ragged_forward, _ragged_backward)


def travel_scales(scales: Float[Array, "M"], places: tuple, way: Exchange) -> Float[Array, "R"]:
    """A number for each row, to where the rows go; 0 where none arrived.

    They are few: where rows travel ragged, every device sees all of them and takes its own.
    """
    if way.form == "padded":
        return lax.all_to_all(scales, way.axis, 0, 0, tiled=True)
    return _taken(scales, *places, way.axis)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _taken(x: Array, taken: Array, given: Array, axis: str) -> Array:
    """Elements `taken` of all devices' x; the gradient takes too, where JAX would scatter."""
    everything = lax.all_gather(x, axis, tiled=True)
    return everything.at[taken].get(mode="fill", fill_value=0)


def _taken_forward(x, taken, given, axis):
    return _taken(x, taken, given, axis), (taken, given)


def _taken_backward(axis, saved, dy):
    taken, given = saved
    return _taken(dy, given, taken, axis), None, None


_taken.defvjp(_taken_forward, _taken_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def all_rounds(run, operands: tuple, plan: Plan) -> Array:
    """The sum of `run(operands, plan, number)` over the plan's rounds."""
    return _further(run, operands, plan, run(operands, plan, 0))


def _further(run, operands: tuple, plan: Plan, y: Array) -> Array:
    def body(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        number, y = carry
        return number + 1, y + run(operands, plan, number)

    return lax.while_loop(lambda c: c[0] < plan.rounds, body, (jnp.int32(1), y))[1]


def _all_rounds_forward(run, operands, plan):
    y, pull = jax.vjp(lambda o: run(o, plan, 0), operands)
    return _further(run, operands, plan, y), (pull, operands, plan)


def _all_rounds_backward(run, saved, dy):
    pull, operands, plan = saved

    def body(carry):
        number, gradients = carry
        _, pull = jax.vjp(lambda o: run(o, plan, number), operands)
        return number + 1, jax.tree.map(jnp.add, gradients, pull(dy)[0])

    start = jnp.int32(1), pull(dy)[0]
    return lax.while_loop(lambda c: c[0] < plan.rounds, body, start)[1], None


all_rounds.defvjp(_all_rounds_forward, _all_rounds_backward)
