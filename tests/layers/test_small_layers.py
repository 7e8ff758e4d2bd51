"""Norms, linear maps, feed-forward layers, dropout and the cache, each against its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from jgpt.config import ModelConfig
from jgpt.kernels.decode_attention import Slots
from jgpt.layers.cache import KVCache, update
from jgpt.layers.ffn import FFN
from jgpt.layers.initialization import Normal
from jgpt.layers.linear import Linear
from jgpt.layers.norm import Norm, layer_norm, rms_norm
from jgpt.layers.residual import Residual, dropout
from jgpt.trees import leaves_by_path


def random(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def small(**overrides):
    return ModelConfig(
        **{"vocab_size": 9, "hidden_size": 8, "num_heads": 2, "intermediate_size": 12} | overrides
    )


def test_norms_equal_float64():
    x, scale, bias = 3 + 5 * random(4, 16), random(16), random(16, seed=1)
    exact = x.astype(np.float64)
    rms = exact / np.sqrt((exact**2).mean(-1, keepdims=True) + 1e-5) * scale
    np.testing.assert_allclose(rms_norm(x, scale, 1e-5), rms, rtol=1e-5)
    centred = exact - exact.mean(-1, keepdims=True)
    layer = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * scale + bias
    np.testing.assert_allclose(layer_norm(x, scale, bias, 1e-5), layer, rtol=1e-4, atol=1e-5)


def test_statistics_are_taken_in_float32():
    """In bfloat16 the squares, their mean and the product would each be rounded."""
    x = (1.3 + 0.5 * random(2, 512)).astype(jnp.bfloat16)
    config = small(dtype="bfloat16")
    y = Norm(config).apply({"params": {"scale": jnp.ones(512)}}, x)
    assert y.dtype == jnp.bfloat16
    exact = x.astype(np.float64)
    exact = exact / np.sqrt((exact**2).mean(-1, keepdims=True) + 1e-5)
    np.testing.assert_array_equal(y, exact.astype(np.float32).astype(jnp.bfloat16))


def test_unit_offset_adds_one_to_the_scale():
    x, scale = random(3, 8), random(8)
    offset = Norm(small(norm_unit_offset=True)).apply({"params": {"scale": scale}}, x)
    np.testing.assert_allclose(offset, rms_norm(x, 1 + scale, 1e-5), rtol=1e-5)


def test_linear_is_a_matrix_and_a_bias():
    x, kernel, bias = random(2, 3, 5), random(5, 4), random(4)
    layer = Linear(4, ("embed", "mlp"), use_bias=True)
    y = layer.apply({"params": {"kernel": kernel, "bias": bias}}, x)
    np.testing.assert_allclose(y, x @ kernel + bias, rtol=1e-5, atol=1e-6)
    boxes = layer.init(jax.random.key(0), x)["params"]
    assert boxes["kernel"].names == ("embed", "mlp") and boxes["bias"].names == ("mlp",)
    assert boxes["kernel"].initializer == Normal(0.02)


@pytest.mark.parametrize(
    "kind, activation",
    [
        ("swiglu", lambda z: z / (1 + np.exp(-z))),
        ("geglu", lambda z: jax.nn.gelu(z, approximate=True)),
        ("gelu", lambda z: jax.nn.gelu(z, approximate=True)),
    ],
)
def test_feed_forward_formulas(kind, activation):
    layer, x = FFN(small(ffn=kind, ffn_bias=True)), random(2, 3, 8)
    shapes = meta.unbox(jax.eval_shape(layer.init, jax.random.key(0), x))["params"]
    params = jax.tree.map(lambda leaf: random(*leaf.shape), shapes)
    y = layer.apply({"params": params}, x)

    def linear(name, x):
        return x @ params[name]["kernel"] + params[name]["bias"]

    hidden = activation(linear("gate" if kind != "gelu" else "up", x))
    if kind != "gelu":
        hidden = hidden * linear("up", x)
    np.testing.assert_allclose(y, linear("down", hidden), rtol=1e-4, atol=1e-4)
    assert ("gate/kernel" in leaves_by_path(shapes)) == (kind != "gelu")


def test_dropout_keeps_the_mean_and_scales_what_it_keeps():
    x = jnp.ones((100, 100))
    y = np.asarray(dropout(x, 0.25, jax.random.key(0)))
    assert set(np.unique(y)) == {0.0, np.float32(1 / 0.75)}
    assert (y == 0).mean() == pytest.approx(0.25, abs=0.02)
    np.testing.assert_array_equal(dropout(x, 0.25, None), x)
    np.testing.assert_array_equal(dropout(x, 0.0, jax.random.key(0)), x)


def test_residual_adds():
    r, h = random(1, 2, 3), random(1, 2, 3, seed=1)
    np.testing.assert_array_equal(Residual().apply({}, r, h), r + h)


def test_a_ring_keeps_the_newest_tokens_of_every_row():
    slots = 4
    zeros = jnp.zeros((2, 1, slots, 2))
    empty = KVCache(Slots(zeros, zeros, jnp.full((2, slots), -1, jnp.int32)))
    k, v = random(2, 6, 1, 2), random(2, 6, 1, 2, seed=1)
    positions = np.asarray([[0, 1, 2, 3, 4, 5], [0, 1, -1, -1, -1, -1]], np.int32)
    cache = update(empty, k, v, positions)
    backwards = update(empty, k[:, ::-1], v[:, ::-1], positions[:, ::-1])
    jax.tree.map(np.testing.assert_array_equal, cache, backwards)
    kept = cache.stored
    np.testing.assert_array_equal(kept.positions, [[4, 5, 2, 3], [0, 1, -1, -1]])
    np.testing.assert_array_equal(kept.k[0, 0], k[0, [4, 5, 2, 3], 0])
    np.testing.assert_array_equal(kept.v[1, 0, :2], v[1, :2, 0])
    np.testing.assert_array_equal(kept.v[1, 0, 2:], 0)
