"""Ring attention: rows longer than one device holds, cut over the mesh (Liu et al. 2023).

Every device keeps its own queries; keys and values travel round the ring of the devices that share
a row, and each part of the keys is attended to as it passes. Results are added up by their
log-sum-exp. While one part is computed the next is on its way. The backward pass is a ring of its
own: keys and values travel again, and their gradients with them, home to where they belong. No
device ever holds more than two parts of the keys, so memory falls with the number of devices.

What is computed when, and what is left out, `ring_schedule.py` knows in advance.
"""

import functools
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from jgpt.kernels.attention.ring_schedule import Call, Ring, Step, make_ring
from jgpt.sharding import RULES
from jgpt.typing import Array, Bias, Mask

log = logging.getLogger(__name__)

(AXIS,) = RULES["length"]
"""The mesh axis that the ring goes round."""
Attend = Callable[..., tuple[Array, Array]]
"""`attention_with_logsumexp` on one device."""
ARRAYS = ("prefix_lengths", "q_segment_ids", "kv_segment_ids", "q_positions", "kv_positions")


def ring_size() -> int:
    """Devices that share a row on the mesh that is set; 1 where a `shard_map` has cut already."""
    mesh = jax.sharding.get_abstract_mesh()
    named = {*RULES["batch"], *RULES["heads"], AXIS} <= set(mesh.axis_names)
    return 1 if AxisType.Manual in mesh.axis_types or not named else mesh.shape[AXIS]


def supports(q: Array, k: Array, v: Array, mask: Mask, *, dropout: float = 0.0, **_: Any) -> str:
    """Why not, or ''."""
    devices = ring_size()
    if devices == 1:
        return f"there is no ring: mesh.{AXIS} is 1, or cut already"
    if dropout:
        return "ring attention has no dropout"
    if mask.q_positions is not None or mask.kv_positions is not None or q.shape[1] != k.shape[1]:
        return "ring attention is for tokens that attend to themselves, not to a cache or a source"
    if mask.zigzag and mask.zigzag != devices:
        return f"the tokens lie in zigzag order for {mask.zigzag} devices, not for {devices}"
    return _misfit(*q.shape[:2], 2 * devices if mask.zigzag else devices)


def zigzag_devices(rows: int, length: int) -> int:
    """Devices for which tokens [rows, length] should lie in zigzag order; 0 for the rows' own."""
    devices = ring_size()
    return 0 if devices == 1 or _misfit(rows, length, 2 * devices) else devices


def _misfit(rows: int, length: int, parts: int) -> str:
    """Why tokens [rows, length] cannot be cut, each row into `parts`, or ''."""
    if length % parts:
        return f"rows of {length} tokens cannot be cut into {parts} parts"
    share = _parts(RULES["batch"])
    return f"{rows} rows cannot be cut into {share} parts" if rows % share else ""


def _parts(axes: tuple[str, ...]) -> int:
    shape = jax.sharding.get_abstract_mesh().shape
    return math.prod(shape.get(name, 1) for name in axes)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Smooth:
    """What the result is differentiable in."""

    q: Array
    k: Array
    v: Array
    scale: Array
    bias: Bias | None
    sinks: Array | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Fixed:
    """The rest, of a device's own rows."""

    segment_ids: Array | None
    prefix_lengths: Array | None


@dataclass(frozen=True, eq=False)
class Static:
    """What is known when the program is made."""

    ring: Ring
    mask: Mask
    """Its structure."""
    softcap: float
    attend: Attend


def attention(q: Array, k: Array, v: Array, mask: Mask, **options: Any) -> Array:
    """See `jgpt.kernels.attention.attention`; options as for `attention_with_logsumexp`."""
    return attention_with_logsumexp(q, k, v, mask, **options)[0]


def attention_with_logsumexp(
    q: Array,
    k: Array,
    v: Array,
    mask: Mask,
    *,
    attend: Attend,
    scale: float | Array,
    softcap: float = 0.0,
    bias: Bias | None = None,
    sinks: Array | None = None,
    **_: Any,
) -> tuple[Array, Array]:
    """See `jgpt.kernels.attention.attention_with_logsumexp`, and `supports`.

    Tokens lie in their rows' order, or in zigzag order where `mask.zigzag` says so: causal work is
    then the same on every device. Batch rows and heads are cut as `sharding.RULES` says; heads that
    cannot be are computed on every device of their axis.

    Args:
        q: see there, and so on up to `sinks`.
        k: see there.
        v: see there.
        mask: see there.
        attend: computes one part: `attention_with_logsumexp` of some backend.
        scale: see there.
        softcap: see there.
        bias: see there.
        sinks: see there.
    """
    devices, length = ring_size(), q.shape[1]
    structure = replace(mask, zigzag=0, **dict.fromkeys(ARRAYS))
    prefix = mask.prefix_lengths is not None
    ring = make_ring(structure, prefix, bias is not None, devices, bool(mask.zigzag), length)
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    smooth = Smooth(q, k, v, jnp.asarray(scale, dtype), bias, sinks)
    fixed = Fixed(mask.kv_segment_ids, mask.prefix_lengths)
    rows = RULES["batch"]
    heads = RULES["heads"] if k.shape[2] % _parts(RULES["heads"]) == 0 else None
    tokens = PartitionSpec(rows, AXIS, heads)
    specs = Smooth(
        q=tokens,
        k=tokens,
        v=tokens,
        scale=PartitionSpec(),
        bias=jax.tree.map(lambda x: PartitionSpec(*[None] * (x.ndim - 1), heads), bias),
        sinks=None if sinks is None else PartitionSpec(heads),
    )
    fixed_specs = Fixed(
        segment_ids=None if fixed.segment_ids is None else PartitionSpec(rows, AXIS),
        prefix_lengths=None if fixed.prefix_lengths is None else PartitionSpec(rows),
    )
    run = functools.partial(_attend, Static(ring, structure, softcap, attend))
    return jax.shard_map(
        run, in_specs=(specs, fixed_specs), out_specs=(tokens, tokens), check_vma=False
    )(smooth, fixed)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(static: Static, smooth: Smooth, fixed: Fixed) -> tuple[Array, Array]:
    """The result [B, s, H, u] and log-sum-exp [B, s, H] of a device's own queries."""
    return _forward(static, smooth, fixed)[0]


def _forward(static: Static, smooth: Smooth, fixed: Fixed) -> tuple[tuple[Array, Array], Any]:
    batch, queries, heads, _ = smooth.q.shape
    dtype = smooth.scale.dtype
    out = jnp.zeros((batch, queries, heads, smooth.v.shape[-1]), dtype)
    # A sink is one more part, with a value of 0: it is where the sum over parts starts.
    first = -jnp.inf if smooth.sinks is None else smooth.sinks.astype(dtype)
    logsumexp = jnp.broadcast_to(first, (batch, queries, heads)).astype(dtype)

    def visit(step: Step, tables: list[Array], keys: Fixed, state: Any) -> Any:
        for call, table in zip(step.calls, tables):
            pairs = _Pairs(static, call, table, batch)
            part = pairs.compute(smooth, keys, fixed)
            state = _add_parts(state, part, pairs)
        return state

    keys = smooth.k, smooth.v, fixed.segment_ids
    out, logsumexp = _travel(static.ring, visit, keys, (out, logsumexp))
    out = out.astype(smooth.q.dtype)
    return (out, logsumexp), (smooth, fixed, out, logsumexp)


def _backward(static: Static, saved: Any, cotangents: tuple[Array, Array]) -> tuple[Smooth, None]:
    """Gradients; those of keys and values are added to as they pass, and end at home."""
    smooth, fixed, out, logsumexp = saved
    dout, dlogsumexp = cotangents
    batch, dtype = smooth.q.shape[0], logsumexp.dtype

    def visit(step: Step, tables: list[Array], keys: Any, state: Any) -> Any:
        dq, dkv, dscale, dbias = state
        arrived = _rotate(dkv, step.hop, static.ring.devices)
        added = jax.tree.map(lambda x: jnp.zeros(x.shape, dtype), dkv)
        for call, table in zip(step.calls, tables):
            pairs = _Pairs(static, call, table, batch)
            gradient = pairs.gradient(smooth, keys, fixed, (out, logsumexp), cotangents)
            dq = pairs.add_to_queries(dq, gradient.q)
            added = pairs.add_to_keys(added[0], gradient.k), pairs.add_to_keys(added[1], gradient.v)
            dscale += gradient.scale
            dbias = jax.tree.map(jnp.add, dbias, gradient.bias)
        return dq, jax.tree.map(jnp.add, arrived, added), dscale, dbias

    def zeros(x: Any) -> Any:
        return jax.tree.map(lambda x: jnp.zeros(x.shape, dtype), x)

    keys = smooth.k, smooth.v, fixed.segment_ids
    state = tuple(map(zeros, (smooth.q, (smooth.k, smooth.v), smooth.scale, smooth.bias)))
    dq, dkv, dscale, dbias = _travel(static.ring, visit, keys, state)
    dk, dv = _rotate(dkv, -static.ring.last, static.ring.devices)
    dsinks = None
    if smooth.sinks is not None:
        # A sink's probability takes from what the other probabilities mix.
        along = (dout.astype(dtype) * out.astype(dtype)).sum(-1) - dlogsumexp
        whole = jnp.where(jnp.isfinite(logsumexp), logsumexp, 0)
        dsinks = -(jnp.exp(smooth.sinks.astype(dtype) - whole) * along).sum((0, 1))
    gradient = Smooth(dq, dk, dv, dscale, dbias, dsinks)
    return jax.tree.map(lambda g, x: g.astype(x.dtype), gradient, smooth), None


_attend.defvjp(_forward, _backward)


def _travel(ring: Ring, visit: Callable, keys: Any, state: Any) -> Any:
    """`state` after `state = visit(step, tables, keys, state)` at every step, with the keys there.

    The keys of the next step leave as those of this one are worked on. Steps of one form are one
    loop: its body cannot start before the last one ended, which bounds what is held.
    """
    device = lax.axis_index(AXIS)

    def one(step: Step, keys: Any, state: Any, tables: list[Array]) -> tuple[Any, Any]:
        following = _rotate(keys, step.next_hop, ring.devices)
        own = [lax.dynamic_index_in_dim(table, device, keepdims=False) for table in tables]
        return following, visit(step, own, keys, state)

    for run in ring.runs():
        step = run[0]
        if len(run) == 1:
            keys, state = one(step, keys, state, [jnp.asarray(c.table) for c in step.calls])
        else:
            of_run = [np.stack([s.calls[i].table for s in run]) for i in range(len(step.calls))]

            def body(carry: Any, tables: list[Array], step: Step = step) -> tuple[Any, None]:
                return one(step, *carry, tables), None

            (keys, state), _ = lax.scan(body, (keys, state), of_run)
        keys, state = lax.optimization_barrier((keys, state))
    return state


def _rotate(tree: Any, hop: int, devices: int) -> Any:
    """Every array from device i to device i + hop."""
    if hop % devices == 0:
        return tree
    way = [(i, (i + hop) % devices) for i in range(devices)]
    return jax.tree.map(lambda x: lax.ppermute(x, AXIS, way), tree)


@dataclass(frozen=True)
class _Pairs:
    """The pairs of chunks of one call, on one device."""

    static: Static
    call: Call
    table: Array
    """[pairs, 5], as in `Call.table`."""
    batch: int

    def _chunk(self, x: Array, pair: int, column: int) -> Array:
        size = self.static.ring.chunk
        return lax.dynamic_slice_in_dim(x, self.table[pair, column] * size, size, 1)

    def _stack(self, x: Array | None, column: int) -> Array | None:
        """The chunks of all pairs one behind the other along the batch."""
        if x is None:
            return None
        return jnp.concatenate([self._chunk(x, p, column) for p in range(len(self.table))])

    def queries(self, x: Array | None) -> Array | None:
        return self._stack(x, 0)

    def keys(self, x: Array | None) -> Array | None:
        return self._stack(x, 1)

    def _add(self, total: Array, parts: Array, column: int) -> Array:
        size = self.static.ring.chunk
        for pair, part in enumerate(jnp.split(parts, len(self.table))):
            sum_ = self._chunk(total, pair, column) + part
            total = lax.dynamic_update_slice_in_dim(total, sum_, self.table[pair, column] * size, 1)
        return total

    def add_to_queries(self, total: Array, parts: Array) -> Array:
        return self._add(total, parts, 0)

    def add_to_keys(self, total: Array, parts: Array) -> Array:
        return self._add(total, parts, 1)

    def _mask(self, kv_segment_ids: Array | None, fixed: Fixed) -> Mask:
        segments = {
            "q_segment_ids": self.queries(fixed.segment_ids),
            "kv_segment_ids": self.keys(kv_segment_ids),
        }
        if self.call.kind == "full":
            return Mask(causal=False, **segments)
        if self.call.kind == "diagonal":
            return replace(self.static.mask, **segments)
        token = jnp.arange(self.static.ring.chunk, dtype=jnp.int32)
        q_positions = self.table[:, 2, None] + token
        kv_positions = jnp.where(self.table[:, 4, None] > 0, self.table[:, 3, None] + token, -1)
        prefix = fixed.prefix_lengths
        return replace(
            self.static.mask,
            **segments,
            q_positions=jnp.repeat(q_positions, self.batch, axis=0),
            kv_positions=jnp.repeat(kv_positions, self.batch, axis=0),
            prefix_lengths=None if prefix is None else jnp.tile(prefix, len(self.table)),
        )

    def _function(
        self, keys: Any, fixed: Fixed, known: tuple[Array, Array] | None = None
    ) -> Callable[..., tuple[Array, Array]]:
        mask = self._mask(keys[2], fixed)
        options = {"softcap": self.static.softcap, "known": known}

        def attend(q: Array, k: Array, v: Array, scale: Array, bias: Bias | None):
            return self.static.attend(q, k, v, mask, scale=scale, bias=bias, **options)

        return attend

    def _arguments(self, smooth: Smooth, keys: Any) -> tuple[Any, ...]:
        bias = None if self.call.kind == "full" else smooth.bias
        return self.queries(smooth.q), self.keys(keys[0]), self.keys(keys[1]), smooth.scale, bias

    def compute(self, smooth: Smooth, keys: Any, fixed: Fixed) -> tuple[Array, Array]:
        """Results [pairs * B, c, H, u] and log-sum-exps [pairs * B, c, H] over these keys alone."""
        return self._function(keys, fixed)(*self._arguments(smooth, keys))

    def gradient(
        self,
        smooth: Smooth,
        keys: Any,
        fixed: Fixed,
        known: tuple[Array, Array],
        cotangents: tuple[Array, Array],
    ) -> Smooth:
        """What these pairs add to the gradients; of q, k and v stacked like their results.

        Args:
            smooth: of the device.
            keys: those there are.
            fixed: of the device.
            known: the result and log-sum-exp over all keys.
            cotangents: theirs.
        """
        known, cotangents = jax.tree.map(self.queries, (known, cotangents))
        function = self._function(keys, fixed, known)
        d = jax.vjp(function, *self._arguments(smooth, keys))[1](cotangents)
        bias = d[4]
        if bias is None and smooth.bias is not None:
            bias = jax.tree.map(jnp.zeros_like, smooth.bias)
        return Smooth(*d[:4], bias, None)


def _add_parts(
    state: tuple[Array, Array], part: tuple[Array, Array], pairs: _Pairs
) -> tuple[Array, Array]:
    """The result and log-sum-exp over the keys so far, with those of one call added."""
    count, size = len(pairs.table), pairs.static.ring.chunk
    for pair, (added, its) in enumerate(zip(*(jnp.split(x, count) for x in part))):
        start = pairs.table[pair, 0] * size
        out, logsumexp = (lax.dynamic_slice_in_dim(x, start, size, 1) for x in state)
        total = jnp.logaddexp(logsumexp, its)
        finite = jnp.where(jnp.isfinite(total), total, 0)
        out = out * jnp.exp(logsumexp - finite)[..., None]
        out += added.astype(out.dtype) * jnp.exp(its - finite)[..., None]
        state = tuple(
            lax.dynamic_update_slice_in_dim(x, new, start, 1) for x, new in zip(state, (out, total))
        )
    return state
