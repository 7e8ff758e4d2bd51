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

import functools
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec

from jgpt.kernels.attention.over_mesh import cut
from jgpt.kernels.attention.pallas_tpu_block import LANES, LOG2_E
from jgpt.kernels.decode_attention.pallas_tpu_kernels import Static, Tables, kernel
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
    reason = cut("the Pallas TPU kernel", q.shape[0], stored.k.shape[1]).reason
    return reason or _unaligned(stored)


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
    inputs = _Inputs(q, stored, mask, jnp.asarray(scale, jnp.float32), bias, sinks)
    run = functools.partial(_on_one_device, softcap=softcap, chunk=chunk, interpret=interpret)
    lies = cut("the Pallas TPU kernel", q.shape[0], stored.k.shape[1])
    if not lies.needed:
        return run(inputs)
    rows, heads = lies.batch or None, lies.heads or None
    tokens = PartitionSpec(rows, None, heads)
    specs = _Inputs(
        q=tokens,
        stored=_lies(stored, rows, heads),
        mask=jax.tree.map(lambda x: PartitionSpec(rows), mask),
        scale=PartitionSpec(),
        bias=None if bias is None else AlibiBias(PartitionSpec(heads)),
        sinks=None if sinks is None else PartitionSpec(heads),
    )
    placed = jax.shard_map(run, in_specs=(specs,), out_specs=(tokens, tokens), check_vma=False)
    return placed(inputs)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Inputs:
    """Every array of a call."""

    q: Array
    stored: Stored
    mask: Mask
    scale: Array
    bias: AlibiBias | None
    sinks: Array | None


def _lies(stored: Stored, rows: Any, heads: Any) -> Stored:
    """Specs of a cache cut by rows and heads; any row may have any page, so of the pool only heads
    are cut."""
    paged = not isinstance(stored, Slots)
    pool = PartitionSpec(None if paged else rows, heads)
    by_row = PartitionSpec(rows)
    whose = {"table": by_row, "lengths": by_row} if paged else {"positions": by_row}
    scales = None if stored.k_scales is None else pool
    return replace(stored, k=pool, v=pool, k_scales=scales, v_scales=scales, **whose)


def _on_one_device(
    inputs: _Inputs, softcap: float, chunk: int | None, interpret: Any
) -> tuple[Array, Array]:
    q, stored, mask, bias, sinks = (
        getattr(inputs, name) for name in ("q", "stored", "mask", "bias", "sinks")
    )
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
    arrays = {
        "scale": inputs.scale.reshape(1),
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
    out, logsumexp = _call(static, make_tables(stored, mask, chunk), arrays, interpret)
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

    def body(*refs):
        absent = dict.fromkeys(inputs)
        kernel(static, streams, absent | dict(zip(names, refs, strict=True)))

    shapes = [
        jax.ShapeDtypeStruct((batch, kv_heads, rows, value_width), q.dtype),
        jax.ShapeDtypeStruct((batch, kv_heads, rows, 1), jnp.float32),
    ]
    return pl.pallas_call(
        body,
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
