"""NF4: four bits per weight in blocks of 64 (Dettmers et al. 2023, section 3; bitsandbytes 0.50).

Codes and bytes are those of bitsandbytes, bit for bit; only the arrays' shapes are ours: a weight
[out, in] has codes [out, in / 2] and scales [out, in / 64], so that it can be cut over devices. A
Flax kernel is its transpose.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jgpt.typing import Array

BLOCK = 64
"""Weights that share a scale, neighbours along `in`."""
SCALE_BLOCK = 256
"""Scales that share a scale of their own, in the order of the flattened scales."""
LEVELS = np.array(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
    np.float32,
)
"""Quantiles of a normal distribution, scaled to [-1, 1]: 7 negative ones, 0, 8 positive ones."""
SMALLEST = np.finfo(np.float32).tiny
"""A block of zeros is divided by this. bitsandbytes has 1e-38, which XLA would take for 0."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DoubleScales:
    """Scales in 8 bits: `map[codes] * scales[block of 256] + offset`."""

    codes: Array
    """[out, in / 64] uint8"""
    scales: Array
    """[ceil(out * in / 64 / 256)] float32"""
    offset: Array
    """[] float32: the mean of all scales"""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Nf4:
    """A frozen weight [out, in]: `LEVELS[code] * scale of the block`."""

    codes: Array
    """[out, in / 2] uint8, the first of two in the high four bits"""
    scales: Array | DoubleScales
    """[out, in / 64] float32: the block's largest magnitude"""

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], 2 * self.codes.shape[1]


def dynamic_map() -> np.ndarray:
    """The 256 levels of the scales' 8-bit code, ascending: a sign, an exponent of ten whose unary
    length varies, and a linear fraction in the bits that are left (Dettmers 2016)."""
    levels = [0.0, 1.0]
    for exponent in range(7):
        count = 2**exponent + 1
        step = (np.float32(1) - np.float32(0.1)) / np.float32(count - 1)
        # from both ends towards the middle and rounded once, as torch.linspace does
        up = np.arange(count) * np.float64(step)
        low, high = np.float32(0.1) + up, 1 - up[::-1]
        bounds = np.where(np.arange(count) < count // 2, low, high).astype(np.float32)
        means = (bounds[:-1] + bounds[1:]) / np.float32(2)
        means = np.float32(10.0 ** (exponent - 6)) * means
        levels += [*means, *-means]
    return np.sort(np.array(levels, np.float32))


DYNAMIC_MAP = dynamic_map()


def _codes(x: Array, levels: np.ndarray) -> Array:
    """Number of the nearest level as uint8; half way between two the lower one."""
    bounds = (levels[:-1] + levels[1:]) / np.float32(2)
    return jnp.searchsorted(bounds, x, side="left", method="compare_all").astype(jnp.uint8)


def _normalized(blocks: Array) -> tuple[Array, Array]:
    """(blocks [..., n] divided by their largest magnitude, and that [...])."""
    largest = abs(blocks).max(-1)
    divided = blocks * (1 / jnp.maximum(largest, SMALLEST))[..., None]
    return jnp.clip(divided, -1, 1), largest


def quantize(weight: Array, *, double: bool = True) -> Nf4:
    """A weight [out, in] in NF4.

    Args:
        weight: float, in a multiple of 64. The transpose of a Flax kernel.
        double: whether the scales are quantised too: 4.127 bits per weight against 4.5.

    Raises:
        ValueError: another shape.
    """
    if weight.ndim != 2 or weight.shape[1] % BLOCK:
        raise ValueError(
            f"NF4 blocks of {BLOCK} do not fit a weight [out, in] of {weight.shape}; leave it as "
            "it is, or pad its inputs"
        )
    out, width = weight.shape
    divided, scales = _normalized(weight.astype(jnp.float32).reshape(out, -1, BLOCK))
    codes = _codes(divided, LEVELS).reshape(out, width)
    packed = codes[:, ::2] << 4 | codes[:, 1::2]
    return Nf4(packed, quantize_scales(scales) if double else scales)


def quantize_scales(scales: Array) -> DoubleScales:
    """Scales [out, in / 64] in 8 bits; their mean is taken off first."""
    offset = scales.mean()
    flat = (scales - offset).reshape(-1)
    flat = jnp.pad(flat, (0, -flat.size % SCALE_BLOCK))
    divided, largest = _normalized(flat.reshape(-1, SCALE_BLOCK))
    codes = _codes(divided, DYNAMIC_MAP).reshape(-1)[: scales.size]
    return DoubleScales(codes.reshape(scales.shape), largest, offset)


def whole_scales(packed: Nf4) -> Array:
    """[out, in / 64] float32."""
    scales = packed.scales
    if not isinstance(scales, DoubleScales):
        return scales
    levels = jnp.asarray(DYNAMIC_MAP)[scales.codes]
    # by number and not by repetition, so that on a mesh each device makes its own
    rows, columns = (lax.broadcasted_iota(jnp.int32, levels.shape, axis) for axis in (0, 1))
    each = scales.scales[(rows * levels.shape[1] + columns) // SCALE_BLOCK]
    return levels * each + scales.offset


def unpacked(codes: Array) -> Array:
    """[out, in / 2] bytes as [out, in] codes."""
    return jnp.stack([codes >> 4, codes & 15], axis=-1).reshape(codes.shape[0], -1)


def dequantize(packed: Nf4) -> Array:
    """The weight [out, in] in float32."""
    return dequantized(packed.codes, whole_scales(packed))


def dequantized(codes: Array, scales: Array) -> Array:
    """[out, in] float32 of codes [out, in / 2] and scales [out, in / 64]."""
    levels = jnp.asarray(LEVELS)[unpacked(codes)]
    return (levels.reshape(*scales.shape, BLOCK) * scales[..., None]).reshape(levels.shape)
