"""Flash attention for NVIDIA GPUs in Pallas, forward and backward (Dao 2023, section 3.1).

This module chooses block sizes, cuts over a mesh and defines the derivative; `pallas_gpu_calls.py`
has the three calls, `pallas_gpu_kernels.py` what they run, `pallas_gpu_walk.py` which blocks they
visit. Arrays are read where they lie, [B, S, H, d]; nothing is padded, transposed or repeated.

The kernels go through Triton rather than Mosaic GPU: that is one program for Ampere, Ada and Hopper
(which gets its own matrix instructions), at any length and width, where Mosaic's is for one
generation and whole tiles (docs/kernels.md).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from jgpt.kernels.attention.over_mesh import Inputs, cut, on_every_device
from jgpt.kernels.attention.pallas_gpu_calls import (
    Extras,
    backward_keys,
    backward_queries,
    forward,
)
from jgpt.kernels.attention.pallas_gpu_kernels import LOG2_E, LOWEST, Static
from jgpt.kernels.attention.pallas_gpu_walk import Tile
from jgpt.kernels.device import device_kind
from jgpt.kernels.nvidia import KIB, PREFIX, shared_memory
from jgpt.typing import Array, Bias, Mask, RelativeBias


class Tiles(NamedTuple):
    """Of the three kernels."""

    forward: Tile
    dq: Tile
    dkv: Tile


HOPPER, A100 = 227 * KIB, 163 * KIB
TILES = {
    (A100, 2, 64): Tiles(Tile(128, 64, 4, 3), Tile(128, 64, 8, 3), Tile(64, 128, 8, 3)),
    (HOPPER, 2, 128): Tiles(Tile(128, 64, 8, 3), Tile(128, 64, 8, 2), Tile(32, 128, 8, 3)),
    (A100, 2, 128): Tiles(Tile(128, 64, 8, 3), Tile(64, 32, 4, 2), Tile(32, 64, 4, 2)),
    (A100, 2, 256): Tiles(Tile(64, 64, 8, 2), Tile(64, 32, 8, 2), Tile(16, 64, 8, 2)),
    (A100, 4, 64): Tiles(Tile(64, 32, 4, 2), Tile(64, 32, 4, 2), Tile(16, 64, 4, 2)),
    (A100, 4, 128): Tiles(Tile(32, 32, 8, 2), Tile(16, 16, 4, 2), Tile(16, 16, 4, 2)),
    (A100, 4, 256): Tiles(Tile(16, 16, 8, 1), Tile(16, 16, 8, 1), Tile(16, 16, 8, 1)),
    (0, 2, 64): Tiles(Tile(128, 64, 4, 2), Tile(64, 64, 4, 2), Tile(64, 64, 4, 2)),
    (0, 2, 128): Tiles(Tile(64, 64, 4, 2), Tile(64, 32, 4, 2), Tile(32, 64, 4, 2)),
    (0, 2, 256): Tiles(Tile(32, 32, 4, 1), Tile(32, 32, 8, 1), Tile(32, 32, 8, 1)),
    (0, 4, 64): Tiles(Tile(64, 32, 4, 1), Tile(32, 32, 4, 1), Tile(32, 32, 4, 1)),
    (0, 4, 128): Tiles(Tile(32, 32, 8, 1), Tile(16, 16, 4, 1), Tile(16, 16, 4, 1)),
    (0, 4, 256): Tiles(Tile(16, 16, 8, 1), Tile(16, 16, 8, 1), Tile(16, 16, 8, 1)),
}
"""From so many bytes of shared memory on, by bytes of an entry, up to this width."""
MOST_WIDTH = 256


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
    if not kind.startswith(PREFIX):
        return "the Pallas GPU kernel runs on NVIDIA GPUs"
    for reason, found in (
        ("a relative bias", isinstance(bias, RelativeBias)),
        ("dropout", bool(dropout)),
    ):
        if found:
            return f"the Pallas GPU kernel has no {reason.removeprefix('a ')}"
    if {str(x.dtype) for x in (q, k, v)} - {"bfloat16", "float16", "float32"}:
        return f"the Pallas GPU kernel takes bfloat16, float16 and float32, not {q.dtype}"
    if len({x.dtype for x in (q, k, v)}) > 1:
        return "the Pallas GPU kernel needs q, k and v of one dtype"
    widest = max(q.shape[3], v.shape[3])
    if widest > MOST_WIDTH:
        return f"the Pallas GPU kernel takes heads of width {MOST_WIDTH} at most, not {widest}"
    return cut("the Pallas GPU kernel", q.shape[0], k.shape[2]).reason


def choose_tiles(kind: str, dtype: jax.typing.DTypeLike, width: int) -> Tiles:
    """Found with the compiler (experiments/kernels/gpu.md): what fits, with few registers spilled.

    Args:
        kind: of the device.
        dtype: of q, k and v.
        width: the larger of the keys' and the values'.
    """
    row = [jnp.dtype(dtype).itemsize, max(64, pl.next_power_of_2(width))]
    sizes = [memory for memory, *rest in TILES if rest == row and memory <= shared_memory(kind)]
    return TILES[max(sizes), *row]


def attention(
    q: Array, k: Array, v: Array, mask: Mask, *, scale: float | Array, **options: Any
) -> Array:
    """The first of what `attention_with_logsumexp` gives."""
    return attention_with_logsumexp(q, k, v, mask, scale=scale, **options)[0]


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
    tiles: Tiles | None = None,
    interpret: bool = False,
    **_,
) -> tuple[Array, Array]:
    """See `jgpt.kernels.attention.attention_with_logsumexp`; `supports` says what this cannot.

    Args:
        q: see there.
        k: see there.
        v: see there.
        mask: see there.
        scale: see there.
        softcap: see there.
        bias: see there.
        sinks: see there.
        tiles: block sizes; None takes `choose_tiles`.
        interpret: runs on any device.
    """
    inputs = Inputs(q, k, v, jnp.asarray(scale, jnp.float32), bias, sinks, mask)
    run = functools.partial(_on_one_device, softcap=softcap, tiles=tiles, interpret=interpret)
    return on_every_device("the Pallas GPU kernel", run, inputs)


def _on_one_device(inputs: Inputs, softcap: float, tiles: Tiles | None, interpret: bool) -> Array:
    q, k, v, mask = inputs.q, inputs.k, inputs.v, inputs.mask
    width = max(q.shape[3], v.shape[3])
    tiles = tiles or choose_tiles(device_kind(), q.dtype, width)
    static = Static(
        mask=Mask(**{n: getattr(mask, n) for n in STRUCTURE}),
        queries=q.shape[1],
        keys=k.shape[1],
        width=q.shape[3],
        value_width=v.shape[3],
        group=q.shape[2] // k.shape[2],
        softcap=softcap,
        **tiles._asdict(),
        interpret=interpret,
    )
    extras = Extras(
        scale=inputs.scale.reshape(1),
        sinks=None if inputs.sinks is None else inputs.sinks.astype(jnp.float32),
        slopes=None if inputs.bias is None else inputs.bias.slopes.astype(jnp.float32),
        mask=jax.tree.map(lambda x: x.astype(jnp.int32), mask),
    )
    out, normalizer = _attend(static, q, k, v, extras)
    logsumexp = jnp.where(normalizer <= LOWEST, -jnp.inf, normalizer / LOG2_E)
    return out, jnp.moveaxis(logsumexp, 1, 2)


STRUCTURE = ("causal", "window", "block_size", "num_local_blocks", "num_global_blocks", "stride")
"""Fields of `Mask` that are no arrays."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(static: Static, q: Array, k: Array, v: Array, extras: Extras) -> tuple[Array, Array]:
    """The result, and the base-2 log-sum-exp [B, H, S]."""
    return forward(static, q, k, v, extras)


def _forward(static: Static, q: Array, k: Array, v: Array, extras: Extras):
    out, normalizer = forward(static, q, k, v, extras)
    return (out, normalizer), (q, k, v, extras, out, normalizer)


def _backward(static: Static, saved: Any, gradients: tuple[Array, Array]):
    q, k, v, extras, out, normalizer = saved
    dout, dnormalizer = gradients
    # a score's gradient is its probability times dout . v - along: the normalizer's goes with along
    along = jnp.einsum("bshd,bshd->bhs", dout, out, preferred_element_type=jnp.float32)
    along -= dnormalizer * LOG2_E
    statistics = normalizer, along
    got = backward_queries(static, q, k, v, extras, dout, *statistics)
    dk, dv = backward_keys(static, q, k, v, extras, dout, *statistics)
    dsinks = None
    if extras.sinks is not None:
        taken = jnp.exp2(extras.sinks[:, None] * LOG2_E - normalizer) * along
        dsinks = -taken.sum((0, 2))
    dextras = Extras(
        scale=got["dscale"].sum().reshape(1),
        sinks=dsinks,
        slopes=None if extras.slopes is None else got["dslopes"].sum((0, 2)),
        mask=None,
    )
    return got["dq"], dk, dv, dextras


_attend.defvjp(_forward, _backward)
