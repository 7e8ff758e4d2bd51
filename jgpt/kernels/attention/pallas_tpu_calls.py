"""The two `pallas_call`s of attention on TPU: grids, block specs, shapes.

The bodies are in `pallas_tpu_kernels.py`, what the tables hold is in `pallas_tpu_steps.py`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jgpt.kernels.attention.pallas_tpu_block import LANES
from jgpt.kernels.attention.pallas_tpu_kernels import backward_kernel, forward_kernel
from jgpt.kernels.attention.pallas_tpu_steps import Extras, Static, Steps
from jgpt.typing import Array

SMEM = pl.BlockSpec(memory_space=pltpu.SMEM)


def _call(
    static: Static,
    body: Any,
    name: str,
    grid: tuple[int, ...],
    steps: Steps,
    inputs: dict[str, tuple[Array, pl.BlockSpec]],
    outputs: dict[str, tuple[jax.ShapeDtypeStruct, pl.BlockSpec]],
    scratch: dict[str, tuple[int, ...]],
    flops: int,
) -> dict[str, Array]:
    """One `pallas_call` whose body gets all its refs by name; absent inputs are None there."""
    present = {n: pair for n, pair in inputs.items() if pair[0] is not None}
    tables = ("rows", "columns", "kinds", "prefixes")
    names = (*tables, *present, *outputs, *scratch)

    def kernel(*refs):
        absent = dict.fromkeys((*inputs, "dslopes", "ddistances"))
        facts = {"grid": grid, "dynamic": len(steps.columns) > 1}
        body(static, absent | facts | dict(zip(names, refs, strict=True)))

    shapes = [shape for shape, _ in outputs.values()]
    arrays = [array for array, _ in present.values()]
    moved = sum(x.size * x.dtype.itemsize for x in arrays + shapes)
    outs = pl.pallas_call(
        kernel,
        out_shape=shapes,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(tables),
            grid=grid,
            in_specs=[spec for _, spec in present.values()],
            out_specs=[spec for _, spec in outputs.values()],
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch.values()],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", *["arbitrary"] * (len(grid) - 2)),
            vmem_limit_bytes=static.vmem_bytes,
        ),
        cost_estimate=pl.CostEstimate(flops=flops, transcendentals=0, bytes_accessed=moved),
        interpret=static.interpret,
        name=name,
    )(steps.rows, steps.columns, steps.kinds, steps.prefixes, *arrays)
    return dict(zip(outputs, outs, strict=True))


def _flops(static: Static, products: int, batch: int, heads: int, width: int) -> int:
    blocks = sum(map(len, static.schedule.rows))
    area = blocks * static.schedule.query_block * static.schedule.key_block
    return 2 * products * batch * heads * area * width


def _specs(static: Static, steps: Steps, head_axes: int) -> dict[str, Any]:
    """Block specs by what they follow: the row or the column of a step.

    The grid is (B, H, P), or with `head_axes` 2 it is (B, K, G, P).
    """
    schedule = static.schedule
    dynamic = len(steps.columns) > 1
    group = static.group

    def heads(at: tuple) -> tuple[Array, Array]:
        """Query head and key/value head."""
        if head_axes == 1:
            return at[1], at[1] // group
        return at[1] * group + at[2], at[1]

    def row(at):
        rows = at[-4]
        return rows[at[head_axes + 1]]

    def column(at):
        return at[-3][at[0] if dynamic else 0, at[head_axes + 1]]

    def of_rows(width):
        shape = (None, None, schedule.query_block, width)
        return pl.BlockSpec(shape, lambda *at: (at[0], heads(at)[0], row(at), 0))

    def of_columns(width):
        shape = (None, None, schedule.key_block, width)
        return pl.BlockSpec(shape, lambda *at: (at[0], heads(at)[1], column(at), 0))

    query, key = schedule.query_block, schedule.key_block
    return {
        "distances": pl.BlockSpec((None, 1, sum(static.padded)), lambda *at: (heads(at)[0], 0, 0)),
        "rows": of_rows,
        "columns": of_columns,
        "statistics": pl.BlockSpec(
            (None, None, 1, query), lambda *at: (at[0], heads(at)[0], 0, row(at))
        ),
        "down rows": pl.BlockSpec((None, query, 1), lambda *at: (at[0], row(at), 0)),
        "along rows": pl.BlockSpec((None, 1, query), lambda *at: (at[0], 0, row(at))),
        "down columns": pl.BlockSpec((None, key, 1), lambda *at: (at[0], column(at), 0)),
        "along columns": pl.BlockSpec((None, 1, key), lambda *at: (at[0], 0, column(at))),
    }


def _down(ids: Array | None) -> Array | None:
    return None if ids is None else ids[:, :, None]


def _along(ids: Array | None) -> Array | None:
    return None if ids is None else ids[:, None, :]


def forward(
    static: Static, steps: Steps, q: Array, k: Array, v: Array, extras: Extras
) -> tuple[Array, Array]:
    """The result [B, H, S, u] in q's dtype and base-2 log-sum-exp [B, H, 1, S] float32.

    Args:
        static: of the program.
        steps: from `make_steps`.
        q: [B, H, S, d], S a multiple of the schedule's query block.
        k: [B, K, T, d], T a multiple of its key block.
        v: [B, K, T, u].
        extras: the rest.
    """
    batch, heads, queries, width = q.shape
    value_width, rows = v.shape[3], static.schedule.query_block
    specs = _specs(static, steps, 1)
    outs = _call(
        static,
        forward_kernel,
        "attention_forward",
        (batch, heads, len(steps.rows)),
        steps,
        inputs={
            "scale": (extras.scale, SMEM),
            "sinks": (extras.sinks, SMEM),
            "slopes": (extras.slopes, SMEM),
            "distances": (extras.distances, specs["distances"]),
            "q_segments": (_down(extras.q_segments), specs["down rows"]),
            "kv_segments": (_along(extras.kv_segments), specs["along columns"]),
            "q_positions": (_down(extras.q_positions), specs["down rows"]),
            "kv_positions": (_along(extras.kv_positions), specs["along columns"]),
            "q": (q, specs["rows"](width)),
            "k": (k, specs["columns"](width)),
            "v": (v, specs["columns"](value_width)),
        },
        outputs={
            "out": (
                jax.ShapeDtypeStruct((batch, heads, queries, value_width), q.dtype),
                specs["rows"](value_width),
            ),
            "normalizer": (
                jax.ShapeDtypeStruct((batch, heads, 1, queries), jnp.float32),
                specs["statistics"],
            ),
        },
        scratch={
            "highest": (rows, LANES),
            "total": (rows, LANES),
            "mixed": (rows, value_width),
        },
        flops=_flops(static, 1, batch, heads, width + value_width),
    )
    return outs["out"], outs["normalizer"]


def backward(
    static: Static,
    steps: Steps,
    q: Array,
    k: Array,
    v: Array,
    extras: Extras,
    dout: Array,
    normalizer: Array,
    along: Array,
    dq_dtype: jnp.dtype,
) -> dict[str, Array]:
    """Gradients like q, k and v: `dq` in `dq_dtype`, `dk` (not yet scaled) and `dv` in float32;
    with ALiBi also `dslopes` [B, H, 1, S] float32, by query, with a relative bias `ddistances`
    [B, H, 1, S + T] float32.

    Args:
        static: as for `forward`, and so on up to `extras`.
        steps: see there.
        q: see there.
        k: see there.
        v: see there.
        extras: see there, but `distances` are in the order of query index - key index.
        dout: [B, H, S, u].
        normalizer: [B, H, 1, S] from `forward`.
        along: [B, H, 1, S] float32, the sum of out * dout over u, less what the log-sum-exp gets.
        dq_dtype: of `dq`; float32 where more is to be added to it.
    """
    batch, heads, queries, width = q.shape
    kv_heads, keys, value_width = v.shape[1:]
    specs = _specs(static, steps, 2)

    def whole(size):
        return (
            jax.ShapeDtypeStruct((batch, kv_heads, keys, size), jnp.float32),
            pl.BlockSpec((None, None, keys, size), lambda *at: (at[0], at[1], 0, 0)),
        )

    statistics = jax.ShapeDtypeStruct((batch, heads, 1, queries), jnp.float32)
    outputs = {
        "dq": (jax.ShapeDtypeStruct(q.shape, dq_dtype), specs["rows"](width)),
        "dk": whole(width),
        "dv": whole(value_width),
    }
    if extras.slopes is not None:
        outputs["dslopes"] = (statistics, specs["statistics"])
    if extras.distances is not None:
        length = sum(static.padded)
        shape = jax.ShapeDtypeStruct((batch, heads, 1, length), jnp.float32)
        head = lambda *at: (at[0], at[1] * static.group + at[2], 0, 0)  # noqa: E731
        outputs["ddistances"] = (shape, pl.BlockSpec((None, None, 1, length), head))
    return _call(
        static,
        backward_kernel,
        "attention_backward",
        (batch, kv_heads, heads // kv_heads, len(steps.rows)),
        steps,
        inputs={
            "scale": (extras.scale, SMEM),
            "slopes": (extras.slopes, SMEM),
            "distances": (extras.distances, specs["distances"]),
            "q_segments": (_along(extras.q_segments), specs["along rows"]),
            "kv_segments": (_down(extras.kv_segments), specs["down columns"]),
            "q_positions": (_along(extras.q_positions), specs["along rows"]),
            "kv_positions": (_down(extras.kv_positions), specs["down columns"]),
            "q": (q, specs["rows"](width)),
            "k": (k, specs["columns"](width)),
            "v": (v, specs["columns"](value_width)),
            "dout": (dout, specs["rows"](value_width)),
            "normalizer": (normalizer, specs["statistics"]),
            "along": (along, specs["statistics"]),
        },
        outputs=outputs,
        scratch={"dq_sum": (static.schedule.query_block, width)},
        flops=_flops(static, 1, batch, heads, 3 * width + 2 * value_width),
    )
