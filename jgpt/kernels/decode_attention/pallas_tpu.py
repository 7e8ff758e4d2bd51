"""Decode attention for TPU: one Pallas kernel that reads each key and value in use once.

Flash-decoding (Dao et al. 2023) on paged keys (Kwon et al. 2023). The grid's one axis is the rows
of the batch; a loop inside walks a row's chunks of some hundred tokens, from the first inside the
window to the last below the length. A chunk of all key/value heads is copied to VMEM page by page,
as the table says, while the chunk before it is computed on; the last chunk of a row starts the
copy of the next row's first, so the memory is never idle between rows. The query heads of a group,
and all new tokens, are the rows of one product with their head's keys.

Inside, q is [B, K, R, d] with R = G Q rows (group, then token), padded to whole tiles of 8. Logits
are in base 2, as the hardware's exponential is 2**x.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType

from jgpt.kernels.attention.pallas_tpu_kernels import FORBIDDEN, LANES, LOG2_E, LOWEST
from jgpt.kernels.decode_attention.stored import Slots, Stored, num_slots
from jgpt.kernels.device import device_kind
from jgpt.typing import AlibiBias, Array, Bias, Mask

SUBLANES = 8
MOST_ROWS = 128
"""Query rows per key/value head; more of them are a prefill, which other kernels do better."""
CHUNK = 512
"""Tokens per chunk, about."""
BUFFER_BYTES = 4 * 2**20
"""Limit of one chunk's keys and values; there are two."""


def supports(
    q: Array,
    stored: Stored,
    mask: Mask,
    *,
    bias: Bias | None = None,
    **_,
) -> str:
    """Why not, or ''."""
    if not device_kind().startswith("TPU"):
        return "the Pallas TPU kernel runs on TPU"
    for reason, found in (
        ("relative bias", bias is not None and not isinstance(bias, AlibiBias)),
        ("block-sparse pattern", bool(mask.block_size)),
        ("mask that is not causal", not mask.causal),
    ):
        if found:
            return f"the Pallas TPU kernel has no {reason}"
    kinds = {stored.k.dtype, stored.v.dtype}
    if q.dtype not in ("bfloat16", "float32") or kinds - {q.dtype, jnp.dtype("int8")}:
        return (
            "the Pallas TPU kernel takes bfloat16 or float32 queries, and a cache of the same or "
            f"int8, not {q.dtype} and {stored.k.dtype}"
        )
    if q.shape[1] * q.shape[2] // stored.k.shape[1] > MOST_ROWS:
        return f"the Pallas TPU kernel takes {MOST_ROWS} query rows per key/value head"
    if stored.k.shape[3] % LANES or stored.v.shape[3] % LANES:
        return f"the Pallas TPU kernel copies heads whose width is a multiple of {LANES}"
    mesh = jax.sharding.get_abstract_mesh()
    cut = [n for n, size in mesh.shape.items() if size > 1]
    if any(mesh._name_to_type[n] != AxisType.Manual for n in cut):
        return "the Pallas TPU kernel is not cut over a mesh"
    return _unaligned(stored)


def _unaligned(stored: Stored) -> str:
    """Why copies of this cache would not hit whole tiles of memory; '' where they do."""
    if isinstance(stored, Slots):
        if num_slots(stored) % LANES:
            return f"the Pallas TPU kernel takes slots in multiples of {LANES}"
        return ""
    step = LANES if stored.k_scales is not None else 2 * SUBLANES * 2 // stored.k.dtype.itemsize
    if stored.page_size % step:
        return f"the Pallas TPU kernel takes {stored.k.dtype} pages in multiples of {step} tokens"
    return ""


@dataclass(frozen=True)
class Static:
    """What is known when the program is made."""

    paged: bool
    chunk: int
    """tokens"""
    page: int
    """tokens that are copied at once"""
    softcap: float
    window: int
    batch: int
    kv_heads: int


class Tables(NamedTuple):
    """Scalars that steer the walk, int32. In a cache of slots a chunk is one page."""

    first: Array
    """[B] first chunk of a row"""
    count: Array
    """[B] its chunks"""
    before: Array
    """[B] chunks of all rows before it, whose parity tells the buffer"""
    following: Array
    """[B + 1] the first row from this one on that has chunks, B where there is none"""
    stop: Array
    """[B] tokens of the row; slots up to the last one in use"""
    pages: Array
    """[B, M] pages of the row; [1, 1] and not read for slots"""


def make_tables(stored: Stored, mask: Mask, chunk: int) -> Tables:
    """The walk over chunks of `chunk` tokens."""
    query, window = mask.q_positions, mask.window
    slots, batch = num_slots(stored), query.shape[0]
    oldest = jnp.min(jnp.where(query < 0, jnp.iinfo(jnp.int32).max // 2, query), axis=1)
    newest = query.max(1)
    start = oldest - window + 1 if window else jnp.zeros_like(oldest)
    if isinstance(stored, Slots):
        key = stored.positions
        used = (key >= 0) & (key >= start[:, None]) & (key <= newest[:, None])
        index = jnp.arange(slots)
        first = jnp.min(jnp.where(used, index, slots), axis=1)
        stop = jnp.max(jnp.where(used, index + 1, 0), axis=1)
        pages = jnp.zeros((1, 1), jnp.int32)
    else:
        first, stop = jnp.maximum(start, 0), jnp.minimum(stored.lengths, newest + 1)
        pages = jnp.maximum(stored.table, 0)
    first = jnp.where(stop > first, first // chunk, 0)
    count = jnp.where(stop > first * chunk, -(-stop // chunk) - first, 0)
    rows = jnp.arange(batch)
    busy = jnp.where(count > 0, rows, batch)
    following = lax.cummin(jnp.append(busy, batch), reverse=True)
    made = first, count, jnp.cumsum(count) - count, following, stop, pages
    return Tables(*(x.astype(jnp.int32) for x in made))


def decode_attention(
    q: Array,
    stored: Stored,
    mask: Mask,
    *,
    scale: float | Array,
    softcap: float = 0.0,
    bias: Bias | None = None,
    sinks: Array | None = None,
    chunk: int | None = None,
    interpret: Any = False,
) -> tuple[Array, Array]:
    """See `jgpt.kernels.decode_attention.decode_attention`; always gives both results.

    Args:
        q: see there.
        stored: see there.
        mask: see there.
        scale: see there.
        softcap: see there.
        bias: see there.
        sinks: see there.
        chunk: tokens computed on at once, a multiple of the page size or a divisor of the slots.
        interpret: what `pallas_call` takes: True or `pltpu.InterpretParams` run on any device.
    """
    batch, queries, heads, _ = q.shape
    kv_heads = stored.k.shape[1]
    group = heads // kv_heads
    chunk = chunk or _chunk(stored)
    paged = not isinstance(stored, Slots)
    static = Static(
        paged=paged,
        chunk=chunk,
        page=stored.page_size if paged else chunk,
        softcap=softcap,
        window=mask.window,
        batch=batch,
        kv_heads=kv_heads,
    )

    def by_row(x: Array) -> Array:
        """[H] to [K, R, 1]."""
        return _pad_rows(jnp.repeat(x.reshape(kv_heads, group), queries, axis=1)[..., None])

    rows = jnp.moveaxis(q.reshape(batch, queries, kv_heads, group, -1), 1, 3)
    rows = _pad_rows(rows.reshape(batch, kv_heads, group * queries, -1))
    inputs = {
        "scale": jnp.asarray(scale, jnp.float32).reshape(1),
        "query": _pad_rows(jnp.tile(mask.q_positions, (1, group))[..., None], -1),
        "slopes": None if bias is None else by_row(bias.slopes.astype(jnp.float32) * LOG2_E),
        "sinks": None if sinks is None else by_row(sinks.astype(jnp.float32) * LOG2_E),
        "positions": None if paged else stored.positions[:, None],
        "q": rows,
        "k": stored.k,
        "v": stored.v,
        "k_scales": stored.k_scales,
        "v_scales": stored.v_scales,
    }
    out, logsumexp = _call(static, make_tables(stored, mask, chunk), inputs, interpret)
    return _ungrouped(out, queries, group), _ungrouped(logsumexp, queries, group)[..., 0]


def _chunk(stored: Stored) -> int:
    """Tokens that fit the buffers: whole pages, or a part of the slots that divides them."""
    kv_heads = stored.k.shape[1]
    width = (stored.k.shape[3] + stored.v.shape[3]) * stored.k.dtype.itemsize
    most = max(min(CHUNK * 2 // stored.k.dtype.itemsize, BUFFER_BYTES // (kv_heads * width)), 1)
    if isinstance(stored, Slots):
        slots = num_slots(stored)
        sizes = [n for n in range(LANES, most + 1, LANES) if slots % n == 0]
        return max(sizes, default=LANES)
    pages = min(max(most // stored.page_size, 1), stored.table.shape[1])
    return pages * stored.page_size


def _pad_rows(x: Array, value: int = 0) -> Array:
    """Whole tiles of the second-last axis."""
    missing = -x.shape[-2] % SUBLANES
    return jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, missing), (0, 0)], constant_values=value)


def _ungrouped(x: Array, queries: int, group: int) -> Array:
    """[B, K, R, m] to [B, Q, K G, m]."""
    batch, kv_heads, _, width = x.shape
    x = x[:, :, : group * queries].reshape(batch, kv_heads, group, queries, width)
    return jnp.moveaxis(x, 3, 1).reshape(batch, queries, kv_heads * group, width)


def _call(static: Static, tables: Tables, inputs: dict, interpret: Any) -> tuple[Array, Array]:
    q, value_width = inputs["q"], inputs["v"].shape[3]
    batch, kv_heads, rows, _ = q.shape

    def of_row(x: Array) -> pl.BlockSpec:
        shape = (None, *x.shape[1:])
        return pl.BlockSpec(shape, lambda b, *_: (b, *[0] * (len(shape) - 1)))

    whole = pl.BlockSpec(memory_space=pltpu.VMEM)
    stays = pl.BlockSpec(memory_space=pl.ANY)
    specs = {
        "scale": pl.BlockSpec(memory_space=pltpu.SMEM),
        "query": of_row(inputs["query"]),
        "slopes": whole,
        "sinks": whole,
        "positions": None if static.paged else of_row(inputs["positions"]),
        "q": of_row(q),
        **dict.fromkeys(("k", "v", "k_scales", "v_scales"), stays),
    }
    present = {name: x for name, x in inputs.items() if x is not None}
    streams = [name for name in ("k", "v", "k_scales", "v_scales") if name in present]
    buffers = {
        f"{name}_buffer": pltpu.VMEM((2, kv_heads, static.chunk, *x.shape[3:]), x.dtype)
        for name, x in present.items()
        if name in streams
    }
    scratch = {
        **buffers,
        "arrived": pltpu.SemaphoreType.DMA((2, len(streams))),
        "highest": pltpu.VMEM((kv_heads, rows, 1), jnp.float32),
        "total": pltpu.VMEM((kv_heads, rows, 1), jnp.float32),
        "mixed": pltpu.VMEM((kv_heads, rows, value_width), jnp.float32),
    }
    names = (*Tables._fields, *present, "out", "logsumexp", *scratch)

    def kernel(*refs):
        absent = dict.fromkeys(inputs)
        _kernel(static, streams, absent | dict(zip(names, refs, strict=True)))

    shapes = [
        jax.ShapeDtypeStruct((batch, kv_heads, rows, value_width), q.dtype),
        jax.ShapeDtypeStruct((batch, kv_heads, rows, 1), jnp.float32),
    ]
    return pl.pallas_call(
        kernel,
        out_shape=shapes,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(tables),
            grid=(batch,),
            in_specs=[specs[name] for name in present],
            out_specs=[of_row(x) for x in shapes],
            scratch_shapes=list(scratch.values()),
        ),
        # Rows hand the buffers on to each other, so they go one after the other.
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary",), vmem_limit_bytes=32 * 2**20
        ),
        interpret=interpret,
        name="decode_attention",
    )(*tables, *present.values())


def _kernel(static: Static, streams: list[str], refs: dict[str, Any]) -> None:
    """One row of the batch."""
    row = pl.program_id(0)
    first, count, before = (refs[name][row] for name in ("first", "count", "before"))

    @pl.when(row == 0)
    def _():
        for name in streams:
            # A chunk's last pages may stay away, and 0 times what lies there must be 0.
            refs[f"{name}_buffer"][...] = jnp.zeros_like(refs[f"{name}_buffer"])
        begin = refs["following"][0]

        @pl.when(begin < static.batch)
        def _():
            _copy(static, streams, refs, begin, refs["first"][begin], 0, "start")

    if refs["sinks"] is None:
        refs["highest"][...] = jnp.full_like(refs["highest"], LOWEST)
        refs["total"][...] = jnp.zeros_like(refs["total"])
    else:
        refs["highest"][...] = refs["sinks"][...]
        refs["total"][...] = jnp.ones_like(refs["total"])
    refs["mixed"][...] = jnp.zeros_like(refs["mixed"])

    def step(i: Array, _: None) -> None:
        buffer = lax.rem(before + i, 2)
        ends = i == count - 1
        next_row = jnp.where(ends, refs["following"][row + 1], row)

        @pl.when(next_row < static.batch)
        def _():
            chunk = jnp.where(ends, refs["first"][next_row], first + i + 1)
            _copy(static, streams, refs, next_row, chunk, 1 - buffer, "start")

        _copy(static, streams, refs, row, first + i, buffer, "wait")
        _compute(static, refs, row, first + i, buffer)

    lax.fori_loop(0, count, step, None)
    total = refs["total"][...]
    inverse = 1 / jnp.where(total == 0, 1, total)
    refs["out"][...] = (refs["mixed"][...] * inverse).astype(refs["out"].dtype)
    known = (refs["highest"][...] + jnp.log2(jnp.where(total == 0, 1, total))) * math.log(2)
    refs["logsumexp"][...] = jnp.where(total == 0, -jnp.inf, known)


def _copy(
    static: Static,
    streams: list[str],
    refs: dict[str, Any],
    row: Array,
    chunk: Array,
    buffer: Array,
    act: str,
) -> None:
    """Starts copying a chunk of a row into a buffer, or waits until it is there."""

    def move(page: Array, source: Any) -> None:
        at = pl.ds(pl.multiple_of(page * static.page, static.page), static.page)
        for stream, name in enumerate(streams):
            copy = pltpu.make_async_copy(
                source(refs[name]),
                refs[f"{name}_buffer"].at[buffer, :, at],
                refs["arrived"].at[buffer, stream],
            )
            getattr(copy, act)()

    if not static.paged:
        start = pl.multiple_of(chunk * static.chunk, static.chunk)
        move(0, lambda ref: ref.at[row, :, pl.ds(start, static.chunk)])
        return
    pages = static.chunk // static.page
    left = (refs["stop"][row] + static.page - 1) // static.page - chunk * pages

    def one(j: Array, _: None) -> None:
        page = refs["pages"][row, chunk * pages + j]
        move(j, lambda ref: ref.at[page])

    lax.fori_loop(0, jnp.minimum(left, pages), one, None)


def _compute(static: Static, refs: dict[str, Any], row: Array, chunk: Array, buffer: Array) -> None:
    """The online softmax over one chunk, head by head."""
    query = refs["query"][...]
    start = chunk * static.chunk
    if static.paged:
        key = start + lax.broadcasted_iota(jnp.int32, (1, static.chunk), 1)
        allowed = (key <= query) & (key < refs["stop"][row])
    else:
        key = refs["positions"][:, pl.ds(pl.multiple_of(start, static.chunk), static.chunk)]
        allowed = (key <= query) & (key >= 0)
    if static.window:
        allowed &= key > query - static.window
    scale = refs["scale"][0] * (1.0 if static.softcap else LOG2_E)
    for head in range(static.kv_heads):
        q, v = refs["q"][head], refs["v_buffer"][buffer, head].astype(refs["q"].dtype)
        s = _dot(q, refs["k_buffer"][buffer, head].astype(q.dtype), 1) * scale
        if refs["k_scales"] is not None:
            s *= refs["k_scales_buffer"][buffer, pl.ds(head, 1)]
        if static.softcap:
            s = jnp.tanh(s / static.softcap) * (static.softcap * LOG2_E)
        if refs["slopes"] is not None:
            s -= refs["slopes"][head] * abs(query - key).astype(jnp.float32)
        s = jnp.where(allowed, s, FORBIDDEN)
        highest = refs["highest"][head]
        new = jnp.maximum(highest, s.max(axis=1, keepdims=True))
        weights, fade = jnp.exp2(s - new), jnp.exp2(highest - new)
        refs["highest"][head] = new
        refs["total"][head] = refs["total"][head] * fade + weights.sum(axis=1, keepdims=True)
        if refs["v_scales"] is not None:
            weights *= refs["v_scales_buffer"][buffer, pl.ds(head, 1)]
        mixed = _dot(weights.astype(v.dtype), v, 0)
        refs["mixed"][head] = refs["mixed"][head] * fade + mixed


def _dot(a: Array, b: Array, axis: int) -> Array:
    """a [R, m] with b summed over its `axis`, in float32."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return lax.dot_general(
        a,
        b,
        (((1,), (axis,)), ((), ())),
        precision=precision,
        preferred_element_type=jnp.float32,
    )
