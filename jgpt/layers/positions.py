"""Where a token is: rotary, ALiBi, sinusoidal and learned positions.

T5's relative buckets are a bias of the attention kernels (`jgpt.typing.RelativeBias`).
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jgpt.config import ModelConfig, RopeScaling
from jgpt.kernels.fence import fenced
from jgpt.layers.initialization import normal
from jgpt.typing import Array

Rotary = tuple[Array, Array]
"""cos and sin, each [B, S, rotary_dim / 2] float32."""


def rope_frequencies(
    rotary_dim: int, theta: float, scaling: RopeScaling, long: bool = False
) -> np.ndarray:
    """Radians per position of each rotated pair, [rotary_dim / 2] float64.

    `theta**(-2 i / rotary_dim)` (Su et al. 2021), stretched as `scaling` says:

    - linear: divided by the factor (position interpolation; Chen et al. 2023);
    - ntk: theta times `factor**(d / (d - 2))`, so that the slowest is divided by the factor and the
      fastest is kept;
    - yarn: kept where a pair turns more than beta_fast times over the original length, divided
      where it turns less than beta_slow times, a linear ramp over the pair's index between (Peng
      et al. 2023, section 3.2);
    - llama3: kept below wavelength original_length / high_frequency_factor, divided above
      original_length / low_frequency_factor, smooth between (Llama 3.1's release);
    - longrope: each divided by a factor of its own (Ding et al. 2024), of another set when `long`.
    """
    exponents = np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim
    if scaling.kind == "ntk":
        theta = theta * scaling.factor ** (rotary_dim / (rotary_dim - 2))
    frequencies = theta**-exponents
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    if scaling.kind == "longrope":
        return frequencies / np.asarray(scaling.long_factors if long else scaling.short_factors)
    if scaling.kind == "yarn":
        kept = _yarn_kept_share(rotary_dim, theta, scaling)
    elif scaling.kind == "llama3":
        kept = _llama3_kept_share(frequencies, scaling)
    else:
        return frequencies
    return frequencies * (kept + (1.0 - kept) / scaling.factor)


def _yarn_kept_share(rotary_dim: int, theta: float, scaling: RopeScaling) -> np.ndarray:
    def index_of(rotations: float) -> float:
        """The (fractional) pair that turns this often over the original length."""
        wavelength = scaling.original_length / (rotations * 2 * math.pi)
        return rotary_dim * math.log(wavelength) / (2 * math.log(theta))

    low = max(math.floor(index_of(scaling.beta_fast)), 0)
    high = min(math.ceil(index_of(scaling.beta_slow)), rotary_dim - 1)
    ramp = (np.arange(rotary_dim // 2) - low) / max(high - low, 1e-3)
    return 1.0 - np.clip(ramp, 0.0, 1.0)


def _llama3_kept_share(frequencies: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    rotations = scaling.original_length * frequencies / (2 * math.pi)
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    return np.clip((rotations - low) / (high - low), 0.0, 1.0)


def rope_temperature(scaling: RopeScaling) -> float:
    """What cos and sin are multiplied by: `0.1 ln(factor) + 1` of YaRN, else 1.

    LongRoPE: `sqrt(1 + ln(factor) / ln(original_length))`.
    """
    if scaling.kind not in ("yarn", "longrope"):
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.factor <= 1.0:
        return 1.0
    if scaling.kind == "longrope":
        return math.sqrt(1.0 + math.log(scaling.factor) / math.log(scaling.original_length))
    return 0.1 * math.log(scaling.factor) + 1.0


def rotary_tables(
    positions: Int[Array, "B S"], rotary_dim: int, theta: float, scaling: RopeScaling
) -> Rotary:
    """cos and sin of every position's angles; computed once for all layers of a kind."""
    frequencies = jnp.asarray(rope_frequencies(rotary_dim, theta, scaling), jnp.float32)
    if scaling.kind == "longrope":
        # One choice for the whole batch, by its last position, as the public models are run.
        long = rope_frequencies(rotary_dim, theta, scaling, long=True)
        is_long = jnp.max(positions) >= scaling.original_length
        frequencies = jnp.where(is_long, jnp.asarray(long, jnp.float32), frequencies)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    temperature = rope_temperature(scaling)
    return fenced(lambda a: (jnp.cos(a) * temperature, jnp.sin(a) * temperature))(angles)


def layer_rotary(config: ModelConfig, kind: str, positions: Int[Array, "B S"]) -> Rotary:
    """The tables of `global` or `local` layers.

    Local layers with a base of their own (`local_rope_theta`) never look past their window, and are
    not stretched (Gemma 3).
    """
    if kind == "local" and config.local_rope_theta:
        return rotary_tables(positions, config.rotary_dim, config.local_rope_theta, RopeScaling())
    return rotary_tables(positions, config.rotary_dim, config.rope_theta, config.rope_scaling)


@jax.custom_vjp
def rotate(x: Float[Array, "B S N d"], rotary: Rotary) -> Float[Array, "B S N d"]:
    """Turns the first rotary_dim entries of every head in pairs `(i, i + rotary_dim / 2)`.

    The layout of Hugging Face's rotate_half; computed in float32, returned in x's dtype. The
    gradient is the turn back; the tables have none.
    """
    return fenced(_turned)(x, rotary)


def _turned(x: Array, rotary: Rotary) -> Array:
    cos, sin = (table[..., None, :] for table in rotary)
    half = cos.shape[-1]
    first = x[..., :half].astype(jnp.float32)
    second = x[..., half : 2 * half].astype(jnp.float32)
    turned = [first * cos - second * sin, second * cos + first * sin]
    turned = [part.astype(x.dtype) for part in turned]
    return jnp.concatenate([*turned, x[..., 2 * half :]], axis=-1)


def _turn_back(rotary: Rotary, dy: Array) -> tuple[Array, None]:
    cos, sin = rotary
    return rotate(dy, (cos, -sin)), None


rotate.defvjp(lambda x, rotary: (rotate(x, rotary), rotary), _turn_back)


def alibi_slopes(num_heads: int) -> np.ndarray:
    """Slope of each head's linear bias, [H] float32 (Press et al. 2022, section 3).

    `2**(-8 i / n)` for i = 1..n with n the largest power of two not above `num_heads`; the rest
    take every other slope of the sequence for 2n.
    """
    n = 2 ** int(math.log2(num_heads))
    slopes = [2.0 ** (-8.0 * i / n) for i in range(1, n + 1)]
    between = [2.0 ** (-8.0 * i / (2 * n)) for i in range(1, 2 * n + 1, 2)]
    return np.asarray(slopes + between[: num_heads - n], np.float32)


def sinusoids(positions: Int[Array, "B S"], width: int) -> Float[Array, "B S D"]:
    """Sine on even and cosine on odd entries, float32 (Vaswani et al. 2017, section 3.5)."""
    pairs = (width + 1) // 2
    frequencies = 10000.0 ** -(np.arange(pairs, dtype=np.float64) * 2 / width)
    angles = positions[..., None].astype(jnp.float32) * jnp.asarray(frequencies, jnp.float32)
    table = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return table.reshape(*positions.shape, 2 * pairs)[..., :width]


class LearnedPositions(nn.Module):
    """Rows of `table` [max_length, D] by position."""

    config: ModelConfig

    @nn.compact
    def __call__(self, positions: Int[Array, "B S"]) -> Float[Array, "B S D"]:
        c = self.config
        table = self.param(
            "table",
            normal(c.init_std, "positions", "embed"),
            (c.max_length, c.hidden_size),
            c.param_dtype,
        )
        return jnp.take(table, positions, axis=0, mode="clip").astype(c.dtype)


class RelativeTable(nn.Module):
    """T5's bias per bucket and head, [buckets, H], shared by all layers (Raffel et al. 2020)."""

    config: ModelConfig

    @nn.compact
    def __call__(self) -> Float[Array, "buckets H"]:
        c = self.config
        shape = (c.relative_buckets, c.num_heads)
        init = normal(c.init_std, "buckets", "head_count")
        return self.param("table", init, shape, c.param_dtype).astype(jnp.float32)
