"""Laws of positions: rotary, ALiBi, sinusoids."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgpt.config import RopeScaling
from jgpt.layers.positions import (
    alibi_slopes,
    rope_frequencies,
    rope_temperature,
    rotary_tables,
    rotate,
    sinusoids,
)

NONE = RopeScaling()


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def rotated(x, positions, scaling=NONE, rotary_dim=None):
    tables = rotary_tables(jnp.asarray(positions), rotary_dim or x.shape[-1], 100.0, scaling)
    return np.asarray(rotate(jnp.asarray(x), tables))


def test_rotated_products_depend_on_distance_alone():
    q, k = random(1, 1, 2, 8), random(1, 1, 2, 8, seed=1)
    products = [
        (rotated(q, [[i]]) * rotated(k, [[j]])).sum(-1) for i, j in ((3, 1), (12, 10), (40, 38))
    ]
    np.testing.assert_allclose(products[1:], [products[0]] * 2, rtol=1e-4)
    assert np.abs(products[0] - (rotated(q, [[3]]) * rotated(k, [[0]])).sum(-1)).max() > 1e-2


def test_pairs_are_halves_of_the_head_and_turn_by_their_frequency():
    x = random(1, 1, 1, 6)
    turned = rotated(x, [[5]])
    plane = x[..., :3] + 1j * x[..., 3:]
    expected = plane * np.exp(5j * 100.0 ** (-np.arange(3) / 3))
    np.testing.assert_allclose(turned[..., :3], expected.real, rtol=1e-5)
    np.testing.assert_allclose(turned[..., 3:], expected.imag, rtol=1e-5)


def test_partial_rotation_leaves_the_rest_of_the_head_alone():
    x = random(2, 3, 2, 8)
    turned = rotated(x, np.tile(np.arange(3) + 1, (2, 1)), rotary_dim=4)
    np.testing.assert_array_equal(turned[..., 4:], x[..., 4:])
    assert (np.abs(turned[..., :4] - x[..., :4]).max(axis=(0, 1, 2)) > 1e-3).all()


def test_gradient_of_a_rotation_is_its_transpose():
    x, dy = random(2, 3, 2, 8), random(2, 3, 2, 8, seed=1)
    yarn = RopeScaling("yarn", 4.0, original_length=16)  # its tables are longer than 1
    tables = rotary_tables(np.tile(np.arange(3) + 1, (2, 1)), 6, 100.0, yarn)
    (dx,) = jax.vjp(lambda x: rotate(x, tables), x)[1](dy)
    basis = np.eye(8, dtype=np.float32)[:, None, None, None]  # a rotation is linear in x
    columns = np.stack([np.asarray(rotate(x * 0 + e, tables)) for e in basis])
    np.testing.assert_allclose(dx, np.einsum("jbsnd,bsnd->bsnj", columns, dy), rtol=2e-5, atol=1e-6)


def test_linear_scaling_is_position_interpolation():
    x = random(1, 4, 2, 8)
    stretched = rotated(x, np.arange(4)[None] * 4, RopeScaling("linear", 4.0))
    np.testing.assert_allclose(stretched, rotated(x, np.arange(4)[None]), rtol=1e-4, atol=1e-6)


def test_ntk_divides_the_slowest_frequency_and_keeps_the_fastest():
    plain = rope_frequencies(64, 10000.0, NONE)
    ntk = rope_frequencies(64, 10000.0, RopeScaling("ntk", 8.0))
    assert ntk[0] == plain[0] == 1.0
    assert ntk[-1] == pytest.approx(plain[-1] / 8.0)
    assert (np.diff(plain / ntk) > 0).all()


@pytest.mark.parametrize("kind", ["yarn", "llama3"])
def test_scaling_by_parts_keeps_fast_pairs_and_divides_slow_ones(kind):
    plain = rope_frequencies(128, 500000.0, NONE)
    ratio = plain / rope_frequencies(128, 500000.0, RopeScaling(kind, 8.0, 8192))
    rotations = 8192 * plain / (2 * math.pi)
    fast, slow = (32.0, 1.0) if kind == "yarn" else (4.0, 1.0)
    np.testing.assert_allclose(ratio[rotations > 1.5 * fast], 1.0)
    np.testing.assert_allclose(ratio[rotations < 0.8 * slow], 8.0)
    assert (np.diff(ratio) >= -1e-9).all() and ((ratio > 1.01) & (ratio < 7.9)).any()


def test_yarn_multiplies_cos_and_sin_by_its_temperature():
    scaling = RopeScaling("yarn", 8.0, 16)
    assert rope_temperature(scaling) == pytest.approx(0.1 * math.log(8.0) + 1.0)
    assert rope_temperature(RopeScaling("yarn", 8.0, 16, attention_factor=0.7)) == 0.7
    assert rope_temperature(RopeScaling("linear", 8.0)) == 1.0
    x = random(1, 1, 1, 8)
    norms = np.linalg.norm(rotated(x, [[9]], scaling)) / np.linalg.norm(x)
    assert norms == pytest.approx(rope_temperature(scaling), rel=1e-5)


def test_alibi_slopes():
    np.testing.assert_allclose(alibi_slopes(8), 2.0 ** -np.arange(1, 9))
    np.testing.assert_allclose(alibi_slopes(16)[:3], 2.0 ** -(np.arange(1, 4) / 2))
    expected = [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]
    np.testing.assert_allclose(alibi_slopes(6), expected)
    assert alibi_slopes(1) == [2.0**-8] and len(alibi_slopes(12)) == len(set(alibi_slopes(12)))


@pytest.mark.parametrize("width", [6, 7])
def test_sinusoids_interleave_sine_and_cosine(width):
    table = sinusoids(jnp.asarray([[0, 1, 30]]), width)
    assert table.shape == (1, 3, width)
    for i in range(width):
        angle = np.asarray([0, 1, 30]) / 10000 ** (2 * (i // 2) / width)
        wave = np.cos(angle) if i % 2 else np.sin(angle)
        np.testing.assert_allclose(table[0, :, i], wave, atol=1e-5)


def test_longrope_changes_its_factors_at_the_first_position_past_the_original_length():
    scaling = RopeScaling("longrope", 4.0, 16, short_factors=(1.0, 2.0), long_factors=(4.0, 8.0))
    temperature = math.sqrt(1 + math.log(4.0) / math.log(16))
    for last, factors in ((15, (1.0, 2.0)), (16, (4.0, 8.0))):
        positions = np.asarray([[3, last]])
        cos, _ = rotary_tables(jnp.asarray(positions), 4, 100.0, scaling)
        angles = positions[..., None] * np.asarray([1.0, 0.1]) / np.asarray(factors)
        np.testing.assert_allclose(cos, temperature * np.cos(angles), rtol=1e-5, atol=1e-6)
