"""Flash attention for TPU in Pallas, forward and backward (Dao 2023, section 3.1).

This module pads, cuts over a mesh and defines the derivative; `pallas_tpu_calls.py` has the two
calls, `pallas_tpu_kernels.py` what they run, on the blocks of `pallas_tpu_steps.py` and the parts
of `pallas_tpu_block.py`. Inside, q is [B, H, S, d], k and v are [B, K, T, d], lengths are padded to
whole blocks, and widths are left as they are.
"""

import functools
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jgpt.kernels.attention.mask import relative_bucket, row_indices
from jgpt.kernels.attention.over_mesh import Inputs, cut, on_every_device
from jgpt.kernels.attention.pallas_tpu_block import LANES, LOG2_E, LOWEST
from jgpt.kernels.attention.pallas_tpu_calls import backward, forward
from jgpt.kernels.attention.pallas_tpu_steps import (
    Blocks,
    Extras,
    Static,
    Steps,
    make_steps,
    spans,
)
from jgpt.kernels.attention.schedule import make_schedule
from jgpt.kernels.device import device_kind
from jgpt.typing import AlibiBias, Array, Bias, Mask, RelativeBias

MIB = 2**20


class Chip(NamedTuple):
    """What a TPU generation wants."""

    blocks: Blocks
    """Limits: shorter rows have smaller ones."""
    vmem_bytes: int
    """What a kernel may use of the on-chip memory."""


CHIPS = {
    "TPU v5 lite": Chip(Blocks(1024, 1024, (256, 512), (512, 256)), 100 * MIB),
    "TPU v5": Chip(Blocks(1024, 1024, (256, 512), (512, 256)), 56 * MIB),
    "TPU v6 lite": Chip(Blocks(1024, 1024, (256, 1024), (512, 256)), 100 * MIB),
}
"""By device kind."""
OTHER_CHIP = Chip(Blocks(512, 512, (256, 512), (512, 256)), 14 * MIB)
"""For kinds that are not in the table: fits every generation's default."""
STEPS_BYTES = 512 * 1024
"""What the tables of the walk may take of the scalar memory (1 MiB in every generation)."""

ATTENDED = "attended"
"""Name of what the forward kernel leaves, by which `remat='dots'` knows to keep it."""


def supports(
    q: Array,
    k: Array,
    v: Array,
    mask: Mask,
    *,
    bias: Bias | None = None,
    dropout: float = 0.0,
    **_,
) -> str:
    """Why not, or ''."""
    kind = device_kind()
    if not kind.startswith("TPU"):
        return "the Pallas TPU kernel runs on TPU"
    if dropout:
        return "the Pallas TPU kernel has no dropout"
    explicit = mask.q_positions is not None or mask.kv_positions is not None
    if isinstance(bias, RelativeBias) and explicit:
        return "the Pallas TPU kernel has no relative bias with explicit positions"
    if {x.dtype for x in (q, k, v)} - {jnp.dtype("bfloat16"), jnp.dtype("float32")}:
        return f"the Pallas TPU kernel takes bfloat16 and float32, not {q.dtype} and {k.dtype}"
    if len({x.dtype for x in (q, k, v)}) > 1:
        return "the Pallas TPU kernel needs q, k and v of one dtype"
    blocks = _chip(kind).blocks
    steps = -(-q.shape[1] // blocks.queries) * -(-k.shape[1] // blocks.keys)
    tables = q.shape[0] if explicit or _changes(mask) else 1
    if 4 * steps * (1 + 2 * tables) > STEPS_BYTES:
        return f"the Pallas TPU kernel's tables have no room for {steps} blocks of {tables} rows"
    return cut("the Pallas TPU kernel", q.shape[0], k.shape[2]).reason


def _changes(mask: Mask) -> bool:
    """Whether the blocks to compute differ by batch row."""
    return mask.q_segment_ids is not None or mask.prefix_lengths is not None


def _chip(kind: str) -> Chip:
    return CHIPS.get(kind, OTHER_CHIP)


def longest(chip: Chip, width: int, value_width: int) -> int:
    """Keys of which the gradients fit in VMEM, twice in float32, beside six blocks of scores;
    of more of them, the backward pass takes so many at a time."""
    lanes = _up(width, LANES) + _up(value_width, LANES)
    room = chip.vmem_bytes - 6 * 4 * chip.blocks.queries * chip.blocks.keys
    return room // (2 * 4 * lanes) // LANES * LANES


def _up(size: int, step: int) -> int:
    return -(-size // step) * step


MASK_ARRAYS = (
    "prefix_lengths",
    "q_segment_ids",
    "kv_segment_ids",
    "q_positions",
    "kv_positions",
)


def attention(q: Array, k: Array, v: Array, mask: Mask, **options: Any) -> Array:
    """See `jgpt.kernels.attention.attention`; options as for `attention_with_logsumexp`."""
    return attention_with_logsumexp(q, k, v, mask, **options)[0]


def attention_with_logsumexp(
    q: Array,
    k: Array,
    v: Array,
    mask: Mask,
    *,
    scale: float | Array,
    softcap: float = 0.0,
    bias: Bias | None = None,
    sinks: Array | None = None,
    known: tuple[Array, Array] | None = None,
    blocks: Blocks | None = None,
    interpret: Any = False,
    **_,
) -> tuple[Array, Array]:
    """See `jgpt.kernels.attention.attention`, and `supports` for what this does not do.

    Args:
        q: see there.
        k: see there.
        v: see there.
        mask: see there.
        scale: see there.
        softcap: see there.
        bias: see there.
        sinks: see there.
        known: see there.
        blocks: how to cut; None takes the chip's from `CHIPS`.
        interpret: what `pallas_call` takes: True or `pltpu.InterpretParams` run on any device.
    """
    inputs = Inputs(q, k, v, jnp.asarray(scale, jnp.float32), bias, sinks, mask, known)
    run = functools.partial(_padded, softcap=softcap, blocks=blocks, interpret=interpret)
    return on_every_device("the Pallas TPU kernel", run, inputs)


def _padded(
    inputs: Inputs, softcap: float, blocks: Blocks | None, interpret: Any
) -> tuple[Array, Array]:
    """`attention_with_logsumexp` on one device."""
    q, k, v, mask = inputs.q, inputs.k, inputs.v, inputs.mask
    batch, queries, keys = *q.shape[:2], k.shape[1]
    chip = _chip(device_kind())
    if blocks is None:
        limits = chip.blocks
        blocks = limits._replace(
            queries=even_block(queries, limits.queries), keys=even_block(keys, limits.keys)
        )
    explicit = mask.q_positions is not None or mask.kv_positions is not None
    static = Static(
        schedule=make_schedule(mask, queries, keys, blocks.queries, blocks.keys),
        mask=replace(mask, **dict.fromkeys(MASK_ARRAYS)),
        prefix=mask.prefix_lengths is not None,
        positions=explicit,
        keys=keys,
        group=q.shape[2] // k.shape[2],
        softcap=softcap,
        blocks=blocks,
        vmem_bytes=chip.vmem_bytes,
        longest=longest(chip, q.shape[3], v.shape[3]),
        interpret=interpret,
    )
    at = row_indices(mask, queries, keys)
    positions = [
        jnp.broadcast_to(x, (batch, x.shape[1])) if explicit else None for x in (at.query, at.key)
    ]
    bias = inputs.bias
    extras = Extras(
        scale=inputs.scale.reshape(1),
        sinks=None if inputs.sinks is None else inputs.sinks.astype(jnp.float32),
        slopes=bias.slopes.astype(jnp.float32) if isinstance(bias, AlibiBias) else None,
        distances=_by_distance(static, bias) if isinstance(bias, RelativeBias) else None,
        q_segments=_pad_ids(mask.q_segment_ids, blocks.queries),
        kv_segments=_pad_ids(mask.kv_segment_ids, blocks.keys),
        q_positions=_pad_ids(positions[0], blocks.queries),
        kv_positions=_pad_ids(positions[1], blocks.keys, -1),
    )
    arrays = [
        jnp.moveaxis(_pad(x, block), 2, 1)
        for x, block in ((q, blocks.queries), (k, blocks.keys), (v, blocks.keys))
    ]
    steps = make_steps(static, extras, _pad_ids(mask.prefix_lengths, 1))
    known = jax.tree.map(lambda x: jnp.moveaxis(_pad(x, blocks.queries), 2, 1), inputs.known)
    out, logsumexp = _attend(static, *arrays, extras, steps, known)
    return jnp.moveaxis(out, 1, 2)[:, :queries], jnp.moveaxis(logsumexp, 1, 2)[:, :queries]


def even_block(length: int, limit: int) -> int:
    """The block size, a multiple of 128, that cuts `length` into as few and as even blocks as can
    be of at most `limit`."""
    blocks = -(-length // limit)
    return _up(-(-length // blocks), LANES)


def _pad(x: Array, block: int, value: int = 0) -> Array:
    """`value` behind axis 1 up to whole blocks."""
    missing = -x.shape[1] % block
    widths = [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2)
    return jnp.pad(x, widths, constant_values=value) if missing else x


def _pad_ids(ids: Array | None, block: int, value: int = 0) -> Array | None:
    if ids is None or ids.ndim == 1:
        return None if ids is None else ids.astype(jnp.int32)
    return _pad(ids.astype(jnp.int32), block, value)


def _by_distance(static: Static, bias: RelativeBias) -> Array:
    """[H, 1, S + T]: what `bias` adds at each key index - query index, S of them below 0."""
    queries, keys = static.padded
    distance = jnp.arange(-queries, keys, dtype=jnp.int32)
    bucket = relative_bucket(distance, len(bias.table), bias.max_distance, bias.bidirectional)
    return bias.table.astype(jnp.float32).T[:, None, bucket]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    static: Static,
    q: Array,
    k: Array,
    v: Array,
    extras: Extras,
    steps: Steps,
    known: tuple[Array, Array] | None,
) -> tuple[Array, Array]:
    """The result [B, H, S, u] and its log-sum-exp [B, H, S] float32."""
    return _forward(static, q, k, v, extras, steps, known)[0]


def _forward(
    static: Static,
    q: Array,
    k: Array,
    v: Array,
    extras: Extras,
    steps: Steps,
    known: tuple[Array, Array] | None,
):
    if known is not None:
        normalizer = jnp.maximum(known[1] * LOG2_E, LOWEST)[:, :, None]
        return known, (q, k, v, extras, steps, known[0], normalizer)
    out, normalizer = forward(static, steps, q, k, v, extras)
    out, normalizer = (checkpoint_name(x, ATTENDED) for x in (out, normalizer))
    logsumexp = normalizer[:, :, 0] * (1 / LOG2_E)
    logsumexp = jnp.where(normalizer[:, :, 0] <= LOWEST, -jnp.inf, logsumexp)
    return (out, logsumexp), (q, k, v, extras, steps, out, normalizer)


def _backward(static: Static, saved: Any, cotangents: tuple[Array, Array]):
    q, k, v, extras, steps, out, normalizer = saved
    dout, dlogsumexp = cotangents
    along = jnp.einsum("bhsd,bhsd->bhs", dout, out, preferred_element_type=jnp.float32)
    # A score's gradient is p * (dp - along) from the result and p * dlogsumexp from the other one.
    along = (along - dlogsumexp)[:, :, None]
    got = _column_spans(static, steps, q, k, v, extras, dout, normalizer, along)
    # scores are scale * q . k, and dk lacks the scale: its product with k sums over all pairs
    dscale = (got["dk"] * k).sum().reshape(1)
    dsinks = None
    if extras.sinks is not None:
        taken = jnp.exp2(extras.sinks[:, None, None] * LOG2_E - normalizer) * along
        dsinks = -taken.sum((0, 2, 3))
    dextras = Extras(
        scale=dscale,
        sinks=dsinks,
        slopes=None if extras.slopes is None else got["dslopes"].sum((0, 2, 3)),
        distances=None if extras.distances is None else _turned(got["ddistances"].sum(0)),
    )
    dk = (got["dk"] * extras.scale).astype(k.dtype)
    return got["dq"].astype(q.dtype), dk, got["dv"].astype(v.dtype), dextras, None, None


def _column_spans(
    static: Static,
    steps: Steps,
    q: Array,
    k: Array,
    v: Array,
    extras: Extras,
    dout: Array,
    normalizer: Array,
    along: Array,
) -> dict[str, Array]:
    """`backward`, of as many keys at a time as fit on the chip; every score is computed once."""
    if extras.distances is not None:
        extras = replace(extras, distances=_turned(extras.distances))
    parts = spans(static, static.longest)
    if len(parts) == 1:
        return backward(static, steps, q, k, v, extras, dout, normalizer, along, q.dtype)
    prefixes = steps.prefixes if static.prefix else None
    found, start = [], 0
    for part in parts:
        size = len(part.schedule.columns) * part.schedule.key_block
        k_part, v_part = (x[:, :, start : start + size] for x in (k, v))
        of_keys = {
            name: None if x is None else x[:, start : start + size]
            for name in ("kv_segments", "kv_positions")
            for x in [getattr(extras, name)]
        }
        those = replace(extras, **of_keys)
        walk = make_steps(part, those, prefixes)
        found.append(
            backward(part, walk, q, k_part, v_part, those, dout, normalizer, along, jnp.float32)
        )
        start += size
    joined = {name: jnp.concatenate([x[name] for x in found], axis=2) for name in ("dk", "dv")}
    return joined | {n: sum(x[n] for x in found) for n in found[0] if n not in joined}


def _turned(distances: Array) -> Array:
    """Entries by key index - query index + S as entries by query index - key index + T, or back.

    The first entry is of no pair.
    """
    return jnp.roll(distances[..., ::-1], 1, axis=-1)


_attend.defvjp(_forward, _backward)
