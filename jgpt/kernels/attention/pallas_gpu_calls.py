"""The three `pallas_call`s of attention on GPU: grids, block specs, shapes.

The bodies are in `pallas_gpu_kernels.py`, the blocks that they visit in `pallas_gpu_walk.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton

from jgpt.kernels.attention.pallas_gpu_kernels import (
    Static,
    dkv_kernel,
    dq_kernel,
    forward_kernel,
)
from jgpt.kernels.attention.pallas_gpu_walk import Tile, Walk, make_walk
from jgpt.typing import Array, Mask


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Extras:
    """What goes with q, k and v."""

    scale: Array
    """[1] float32"""
    sinks: Array | None
    """[H] float32"""
    slopes: Array | None
    """[H] float32: ALiBi's."""
    mask: Mask
    """Its arrays are int32."""


Named = dict[str, tuple[Array | None, pl.BlockSpec | None]]
"""Inputs by name; None where a call has none of that name."""
Shaped = dict[str, tuple[jax.ShapeDtypeStruct, pl.BlockSpec]]


@dataclass(frozen=True)
class _Grid:
    """Programs (line of blocks, head, batch row), and the block specs that follow them."""

    lines: int
    heads: int
    batch: int
    last_first: bool
    """Under a causal mask the last rows of blocks have most work, and go first."""

    def line(self, i: Array) -> Array:
        return self.lines - 1 - i if self.last_first else i

    def own_rows(self, block: int, width: int) -> pl.BlockSpec:
        """[block, width] of [B, length, heads, width]: the program's line and head."""
        shape = (None, block, None, _padded(width))
        return pl.BlockSpec(shape, lambda i, h, b: (b, self.line(i), h, 0))

    def own_entries(self, block: int) -> pl.BlockSpec:
        """[block] of [B, heads, length]."""
        return pl.BlockSpec((None, None, block), lambda i, h, b: (b, h, self.line(i)))

    def all_rows(self, length: int, width: int, group: int) -> pl.BlockSpec:
        """[length, width] of [B, length, K, width]: the head that the program's head reads."""
        shape = (None, length, None, _padded(width))
        return pl.BlockSpec(shape, lambda i, h, b: (b, 0, h // group, 0))

    def group_rows(self, length: int, width: int, group: int) -> pl.BlockSpec:
        """[length, group, width] of [B, length, H, width]: the heads that read the program's."""
        shape = (None, length, group, _padded(width))
        return pl.BlockSpec(shape, lambda i, h, b: (b, 0, h, 0))

    def group_entries(self, length: int, group: int) -> pl.BlockSpec:
        """[group, length] of [B, H, length]."""
        return pl.BlockSpec((None, group, length), lambda i, h, b: (b, h, 0))

    def of_line(self, table: Array | None) -> tuple[Array | None, pl.BlockSpec | None]:
        """[n] of [1 or B, lines, n]."""
        if table is None:
            return None, None
        shape = (None, None, table.shape[2])
        if len(table) == 1:
            return table, pl.BlockSpec(shape, lambda i, h, b: (0, self.line(i), 0))
        return table, pl.BlockSpec(shape, lambda i, h, b: (b, self.line(i), 0))

    def of_batch(self, entries: Array | None) -> tuple[Array | None, pl.BlockSpec | None]:
        """[length] of [1 or B, length]."""
        if entries is None:
            return None, None
        shape = (None, entries.shape[1])
        if len(entries) == 1:
            return entries, pl.BlockSpec(shape, lambda i, h, b: (0, 0))
        return entries, pl.BlockSpec(shape, lambda i, h, b: (b, 0))

    def of_head(self, entries: Array | None, group: int = 1) -> tuple:
        """[group] of [H]: the program's heads."""
        return entries, pl.BlockSpec((group,), lambda i, h, b: (h,))


def _padded(width: int) -> int:
    """Matrices in a kernel have powers of 2, and at least what the tensor cores take."""
    return max(16, pl.next_power_of_2(width))


def _call(
    static: Static,
    body: Callable[[Static, dict], None],
    name: str,
    tile: Tile,
    grid: _Grid,
    walk: Walk,
    extras: Extras,
    inputs: Named,
    outputs: Shaped,
    group: int = 1,
) -> dict[str, Array]:
    """One `pallas_call` whose body gets all its refs by name; absent inputs are None there."""
    mask = extras.mask
    prefix = None if mask.prefix_lengths is None else mask.prefix_lengths[:, None]
    inputs = {
        "bounds": grid.of_line(walk.bounds),
        "order": grid.of_line(walk.order),
        "scale": (extras.scale, pl.BlockSpec((1,), lambda i, h, b: (0,))),
        "slopes": grid.of_head(extras.slopes, group),
        "prefix": grid.of_batch(prefix),
        "q_segments": grid.of_batch(mask.q_segment_ids),
        "kv_segments": grid.of_batch(mask.kv_segment_ids),
        "q_positions": grid.of_batch(mask.q_positions),
        "kv_positions": grid.of_batch(mask.kv_positions),
        **inputs,
    }
    present = {n: pair for n, pair in inputs.items() if pair[0] is not None}
    names = (*present, *outputs)

    def kernel(*refs):
        facts = {"loops": walk.loops, "line": grid.line(pl.program_id(0))}
        body(static, dict.fromkeys(inputs) | facts | dict(zip(names, refs, strict=True)))

    kernel.__name__ = name  # what profiles and dumps call it
    outs = pl.pallas_call(
        kernel,
        grid=(grid.lines, grid.heads, grid.batch),
        in_specs=[spec for _, spec in present.values()],
        out_shape=[shape for shape, _ in outputs.values()],
        out_specs=[spec for _, spec in outputs.values()],
        compiler_params=pltriton.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
        interpret=static.interpret,
        name=name,
    )(*(array for array, _ in present.values()))
    return dict(zip(outputs, outs, strict=True))


def forward(static: Static, q: Array, k: Array, v: Array, extras: Extras) -> tuple[Array, Array]:
    """The result [B, S, H, u] in q's dtype and base-2 log-sum-exp [B, H, S] float32, LOWEST where a
    query sees no key.

    Args:
        static: of the program.
        q: [B, S, H, d].
        k: [B, T, K, d].
        v: [B, T, K, u].
        extras: the rest.
    """
    tile, (batch, queries, heads, width), keys = static.forward, q.shape, k.shape[1]
    grid = _Grid(pl.cdiv(queries, tile.query_block), heads, batch, last_first=True)
    rows = tile.query_block
    outs = _call(
        static,
        forward_kernel,
        "attention_forward",
        tile,
        grid,
        make_walk(extras.mask, queries, keys, tile, columns=False),
        extras,
        inputs={
            "sinks": grid.of_head(extras.sinks),
            "q": (q, grid.own_rows(rows, width)),
            "k": (k, grid.all_rows(keys, width, static.group)),
            "v": (v, grid.all_rows(keys, v.shape[3], static.group)),
        },
        outputs={
            "out": (
                jax.ShapeDtypeStruct((*q.shape[:3], v.shape[3]), q.dtype),
                grid.own_rows(rows, v.shape[3]),
            ),
            "normalizer": (
                jax.ShapeDtypeStruct((batch, heads, queries), jnp.float32),
                grid.own_entries(rows),
            ),
        },
    )
    return outs["out"], outs["normalizer"]


def backward_queries(
    static: Static, q: Array, k: Array, v: Array, extras: Extras, dout: Array, *statistics: Array
) -> dict[str, Array]:
    """`dq` like q; `dscale` and, with ALiBi, `dslopes`: [B, H, S] float32, by query.

    Args:
        static: as for `forward`, and so on up to `extras`.
        q: see there.
        k: see there.
        v: see there.
        extras: see there.
        dout: [B, S, H, u].
        *statistics: [B, H, S] float32: base-2 log-sum-exp, and `along`, what is taken off
            the gradient of a row's probabilities.
    """
    tile, (batch, queries, heads, width), keys = static.dq, q.shape, k.shape[1]
    grid = _Grid(pl.cdiv(queries, tile.query_block), heads, batch, last_first=True)
    rows = tile.query_block
    by_query = jax.ShapeDtypeStruct((batch, heads, queries), jnp.float32), grid.own_entries(rows)
    return _call(
        static,
        dq_kernel,
        "attention_backward_dq",
        tile,
        grid,
        make_walk(extras.mask, queries, keys, tile, columns=False),
        extras,
        inputs={
            "q": (q, grid.own_rows(rows, width)),
            "dout": (dout, grid.own_rows(rows, v.shape[3])),
            "normalizer": (statistics[0], grid.own_entries(rows)),
            "along": (statistics[1], grid.own_entries(rows)),
            "k": (k, grid.all_rows(keys, width, static.group)),
            "v": (v, grid.all_rows(keys, v.shape[3], static.group)),
        },
        outputs={
            "dq": (jax.ShapeDtypeStruct(q.shape, q.dtype), grid.own_rows(rows, width)),
            "dscale": by_query,
            **({} if extras.slopes is None else {"dslopes": by_query}),
        },
    )


def backward_keys(
    static: Static, q: Array, k: Array, v: Array, extras: Extras, dout: Array, *statistics: Array
) -> tuple[Array, Array]:
    """Gradients of k and v, like them; the arguments are those of `backward_queries`."""
    tile, (batch, queries, _, width) = static.dkv, q.shape
    keys, kv_heads, value_width = v.shape[1:]
    group, columns = static.group, tile.key_block
    grid = _Grid(pl.cdiv(keys, columns), kv_heads, batch, last_first=False)
    own_key, own_value = grid.own_rows(columns, width), grid.own_rows(columns, value_width)
    outs = _call(
        static,
        dkv_kernel,
        "attention_backward_dkv",
        tile,
        grid,
        make_walk(extras.mask, queries, keys, tile, columns=True),
        extras,
        inputs={
            "k": (k, own_key),
            "v": (v, own_value),
            "q": (q, grid.group_rows(queries, width, group)),
            "dout": (dout, grid.group_rows(queries, value_width, group)),
            "normalizer": (statistics[0], grid.group_entries(queries, group)),
            "along": (statistics[1], grid.group_entries(queries, group)),
        },
        outputs={
            "dk": (jax.ShapeDtypeStruct(k.shape, k.dtype), own_key),
            "dv": (jax.ShapeDtypeStruct(v.shape, v.dtype), own_value),
        },
        group=group,
    )
    return outs["dk"], outs["dv"]
