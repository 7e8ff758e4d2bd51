"""Flash attention for TPU in Pallas, forward and backward (Dao 2023, section 3.1).

This module pads, cuts over a mesh and defines the derivative; `pallas_tpu_calls.py` has the two
calls, `pallas_tpu_kernels.py` what they run. Inside, q is [B, H, S, d], k and v are [B, K, T, d],
lengths are padded to whole blocks, and widths are left as they are.
"""

import functools
import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

from jgpt.kernels.attention.pallas_tpu_calls import backward, forward
from jgpt.kernels.attention.pallas_tpu_kernels import (
    LANES,
    LOG2_E,
    Extras,
    Static,
    Steps,
    make_steps,
)
from jgpt.kernels.attention.schedule import make_schedule
from jgpt.sharding import RULES
from jgpt.typing import AlibiBias, Array, Bias, Mask, RelativeBias

MIB = 2**20


class Chip(NamedTuple):
    """What a TPU generation wants."""

    query_block: int
    key_block: int
    vmem_bytes: int
    """What a kernel may use of the on-chip memory."""


CHIPS = {
    "TPU v5 lite": Chip(1024, 1024, 100 * MIB),
    "TPU v5": Chip(1024, 1024, 56 * MIB),
    "TPU v6 lite": Chip(1024, 1024, 100 * MIB),
}
"""By device kind; blocks are limits, shorter rows have smaller ones."""
OTHER_CHIP = Chip(512, 512, 14 * MIB)
"""For kinds that are not in the table: fits every generation's default."""


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
    for reason, found in (
        ("a relative bias", isinstance(bias, RelativeBias)),
        ("dropout", bool(dropout)),
        ("explicit positions", mask.q_positions is not None or mask.kv_positions is not None),
    ):
        if found:
            return f"the Pallas TPU kernel has no {reason.removeprefix('a ')}"
    if {x.dtype for x in (q, k, v)} - {jnp.dtype("bfloat16"), jnp.dtype("float32")}:
        return f"the Pallas TPU kernel takes bfloat16 and float32, not {q.dtype} and {k.dtype}"
    if len({x.dtype for x in (q, k, v)}) > 1:
        return "the Pallas TPU kernel needs q, k and v of one dtype"
    chip = _chip(kind)
    most = longest(chip, q.shape[3], v.shape[3])
    if k.shape[1] > most:
        return f"the Pallas TPU kernel's backward pass holds up to {most} keys, not {k.shape[1]}"
    return _cut(q.shape[0], k.shape[2]).reason


def device_kind() -> str:
    """Of the devices that the program is for: those of the mesh that is set, else the default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.device_kind if device is not None else jax.devices()[0].device_kind


def _chip(kind: str) -> Chip:
    return CHIPS.get(kind, OTHER_CHIP)


def longest(chip: Chip, width: int, value_width: int) -> int:
    """Keys of which the gradients fit in VMEM, twice in float32, beside six blocks of scores."""
    lanes = _up(width, LANES) + _up(value_width, LANES)
    room = chip.vmem_bytes - 6 * 4 * chip.query_block * chip.key_block
    return room // (2 * 4 * lanes) // LANES * LANES


def _up(size: int, step: int) -> int:
    return -(-size // step) * step


class Cut(NamedTuple):
    """How rows and heads lie on the mesh that is set."""

    batch: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    needed: bool = False
    reason: str = ""
    """Why they cannot lie there."""


def _cut(batch: int, kv_heads: int) -> Cut:
    """Batch rows and heads over the axes that `RULES` names; kernels cannot be cut by themselves.

    Nothing to do without a mesh, on one device, or where a `shard_map` has cut already.
    """
    mesh = jax.sharding.get_abstract_mesh()
    sizes = {name: size for name, size in mesh.shape.items() if size > 1}
    manual = [n for n in sizes if mesh._name_to_type[n] == AxisType.Manual]
    if not sizes or len(manual) == len(sizes):
        return Cut()
    if manual:
        return Cut(reason=f"the Pallas TPU kernel cannot be cut where {manual} are cut already")
    rows = tuple(n for n in RULES["batch"] if n in sizes)
    heads = tuple(n for n in RULES["heads"] if n in sizes)
    other = set(sizes) - {*rows, *heads}
    if other:
        return Cut(reason=f"the Pallas TPU kernel is not cut over {sorted(other)}")
    for what, size, axes in (("rows", batch, rows), ("key/value heads", kv_heads, heads)):
        parts = math.prod(sizes[n] for n in axes)
        if size % parts:
            return Cut(reason=f"{size} {what} cannot be cut into {parts} for the Pallas TPU kernel")
    return Cut(rows, heads, True)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Inputs:
    """Every array of a call."""

    q: Array
    k: Array
    v: Array
    scale: Array
    bias: AlibiBias | None
    sinks: Array | None
    mask: Mask


def attention(
    q: Array,
    k: Array,
    v: Array,
    mask: Mask,
    *,
    scale: float | Array,
    softcap: float = 0.0,
    bias: Bias | None = None,
    sinks: Array | None = None,
    blocks: tuple[int, int] | None = None,
    interpret: Any = False,
    **_,
) -> Array:
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
        blocks: limits of a block of queries and of keys; None takes the chip's from `CHIPS`.
        interpret: what `pallas_call` takes: True or `pltpu.InterpretParams` run on any device.
    """
    inputs = _Inputs(q, k, v, jnp.asarray(scale, jnp.float32), bias, sinks, mask)
    run = functools.partial(_padded, softcap=softcap, blocks=blocks, interpret=interpret)
    cut = _cut(q.shape[0], k.shape[2])
    if not cut.needed:
        return run(inputs)
    rows, heads = cut.batch or None, cut.heads or None
    tokens, by_head = PartitionSpec(rows, None, heads), PartitionSpec(heads)
    specs = _Inputs(
        q=tokens,
        k=tokens,
        v=tokens,
        scale=PartitionSpec(),
        bias=None if bias is None else AlibiBias(by_head),
        sinks=None if sinks is None else by_head,
        mask=jax.tree.map(lambda x: PartitionSpec(rows), mask),
    )
    return jax.shard_map(run, in_specs=(specs,), out_specs=tokens, check_vma=False)(inputs)


def _padded(
    inputs: _Inputs, softcap: float, blocks: tuple[int, int] | None, interpret: Any
) -> Array:
    """`attention` on one device."""
    q, k, v, mask = inputs.q, inputs.k, inputs.v, inputs.mask
    queries, keys = q.shape[1], k.shape[1]
    chip = _chip(device_kind())
    query_block, key_block = blocks or (
        even_block(queries, chip.query_block),
        even_block(keys, chip.key_block),
    )
    schedule = make_schedule(mask, queries, keys, query_block, key_block)
    prefix_lengths, q_segments, kv_segments = (
        None if x is None else x.astype(jnp.int32)
        for x in (mask.prefix_lengths, mask.q_segment_ids, mask.kv_segment_ids)
    )
    static = Static(
        schedule=schedule,
        mask=replace(mask, prefix_lengths=None, q_segment_ids=None, kv_segment_ids=None),
        prefix=prefix_lengths is not None,
        keys=keys,
        group=q.shape[2] // k.shape[2],
        softcap=softcap,
        vmem_bytes=chip.vmem_bytes,
        interpret=interpret,
    )
    extras = Extras(
        scale=inputs.scale.reshape(1),
        sinks=None if inputs.sinks is None else inputs.sinks.astype(jnp.float32),
        slopes=None if inputs.bias is None else inputs.bias.slopes.astype(jnp.float32),
        q_segments=_pad(q_segments, query_block),
        kv_segments=_pad(kv_segments, key_block),
    )
    arrays = [
        jnp.moveaxis(_pad(x, block), 2, 1)
        for x, block in ((q, query_block), (k, key_block), (v, key_block))
    ]
    steps = make_steps(static, extras, prefix_lengths)
    out = _attend(static, *arrays, extras, steps)
    return jnp.moveaxis(out, 1, 2)[:, :queries]


def even_block(length: int, limit: int) -> int:
    """The block size, a multiple of 128, that cuts `length` into as few and as even blocks as can
    be of at most `limit`."""
    blocks = -(-length // limit)
    return _up(-(-length // blocks), LANES)


def _pad(x: Array | None, block: int) -> Array | None:
    """Zeros behind axis 1 up to whole blocks."""
    missing = 0 if x is None else -x.shape[1] % block
    return jnp.pad(x, [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2)) if missing else x


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(static: Static, q: Array, k: Array, v: Array, extras: Extras, steps: Steps) -> Array:
    return forward(static, steps, q, k, v, extras)[0]


def _forward(static: Static, q: Array, k: Array, v: Array, extras: Extras, steps: Steps):
    out, normalizer = forward(static, steps, q, k, v, extras)
    return out, (q, k, v, extras, steps, out, normalizer)


def _backward(static: Static, saved: Any, dout: Array):
    q, k, v, extras, steps, out, normalizer = saved
    along = jnp.einsum("bhsd,bhsd->bhs", dout, out, preferred_element_type=jnp.float32)
    along = along[:, :, None]
    got = backward(static, steps, q, k, v, extras, dout, normalizer, along)
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
        q_segments=None,
        kv_segments=None,
    )
    dk = (got["dk"] * extras.scale).astype(k.dtype)
    return got["dq"], dk, got["dv"].astype(v.dtype), dextras, None


_attend.defvjp(_forward, _backward)
