"""Bottleneck adapters against their formulas, written out in numpy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgpt.config import BottleneckConfig, ModelConfig, PeftConfig
from jgpt.kernels.matmul import matmul
from jgpt.peft import METHODS, make_peft
from jgpt.peft.method import Call

WIDTH = 32
MODEL = ModelConfig(
    vocab_size=8, num_layers=1, hidden_size=WIDTH, num_heads=2, intermediate_size=16
)
RNG = np.random.default_rng(0)
R, H = RNG.standard_normal((2, 2, 3, WIDTH))


def leaves_of(size):
    shapes = {"down": (WIDTH, size), "down_bias": (size,), "up": (size, WIDTH), "up_bias": (WIDTH,)}
    return {name: RNG.standard_normal(shape) for name, shape in shapes.items()}


def relu(x):
    return np.maximum(x, 0)


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def silu(x):
    return x / (1 + np.exp(-x))


def norm(x):
    return (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)


def adapter(x, leaves, act):
    return act(x @ leaves["down"] + leaves["down_bias"]) @ leaves["up"] + leaves["up_bias"]


@pytest.mark.parametrize(
    "method, after, settings, size, expected",
    [
        ("houlsby", None, {}, 2, lambda a: R + H + a(H, gelu)),
        ("houlsby", norm, {"activation": "silu", "size": 5}, 5, lambda a: R + H + a(H, silu)),
        ("pfeiffer", None, {}, 2, lambda a: R + H + a(R + H, relu)),
        ("pfeiffer", norm, {"scale": 0.5}, 2, lambda a: R + H + 0.5 * a(norm(R + H), relu)),
        ("parallel", None, {}, 16, lambda a: R + H + 4 * a(R, relu)),
    ],
)
def test_the_stream_after_a_sublayer(method, after, settings, size, expected):
    settings = PeftConfig(method=method, bottleneck=BottleneckConfig(**settings))
    target = make_peft(settings, MODEL).targets[0]
    leaves = leaves_of(size)
    described = METHODS[method].leaves(target)
    assert {name: leaf.shape for name, leaf in described.items()} == {
        name: leaf.shape for name, leaf in leaves.items()
    }
    call = Call(
        leaves={name: jnp.asarray(leaf, jnp.float32) for name, leaf in leaves.items()},
        settings=settings,
        base=lambda r, h: r + h,
        product=matmul,
        lookup=lambda vector: vector,
        rows=None,
        kind="residual",
    )
    around = (jnp.asarray(R, jnp.float32), jnp.asarray(H, jnp.float32))
    found = METHODS[method].call(call, *around, *([after] if after else []))
    right = expected(lambda x, act: adapter(x, leaves, act))
    np.testing.assert_allclose(found, right, rtol=0, atol=1e-5 * abs(right).max())


def test_which_sublayers_have_one():
    def sites(method):
        return [t.site.path for t in make_peft(PeftConfig(method=method), MODEL).targets]

    assert sites("houlsby") == ["layers_0/attention_residual", "layers_0/ffn_residual"]
    assert sites("pfeiffer") == sites("parallel") == ["layers_0/ffn_residual"]


def test_the_initial_values_of_bert_are_no_identity():
    settings = PeftConfig(method="pfeiffer", bottleneck=BottleneckConfig(init="bert", size=400))
    leaves = METHODS["pfeiffer"].leaves(make_peft(settings, MODEL).targets[0])
    for name in ("down", "up"):
        drawn = leaves[name].initializer(jax.random.key(0), leaves[name].shape, jnp.float32)
        assert 0.019 < drawn.std() < 0.021
