"""Models small enough for tests, with weights in which every parameter matters."""

import functools
import zlib

import jax
import numpy as np

from jgpt import models
from jgpt.config import ModelConfig, MoEConfig
from jgpt.trees import map_with_path

VOCABULARY = 50


def tiny(**overrides):
    settings = {
        "vocab_size": VOCABULARY,
        "num_layers": 2,
        "hidden_size": 16,
        "num_heads": 4,
        "num_kv_heads": 2,
        "intermediate_size": 24,
        "max_length": 32,
    }
    return ModelConfig(**settings | overrides)


def tiny_moe(**overrides):
    return {"ffn_pattern": ("moe",), "moe": MoEConfig(**{"num_experts": 4} | overrides)}


def random_variables(config, seed=0):
    """Variables with all parameters random: biases, norms and sinks too, and far from 0 or 1."""

    def draw(path, leaf):
        generator = np.random.default_rng([seed, zlib.crc32(path.encode())])
        noise = generator.standard_normal(leaf.shape).astype(np.float32)
        kernel = len(leaf.shape) > 1
        return jax.numpy.asarray(0.3 * noise if kernel else 1.0 + 0.3 * noise, leaf.dtype)

    unrolled = ModelConfig(**config.__dict__ | {"scan_layers": "off"})
    variables = {"params": map_with_path(draw, models.abstract_params(unrolled))}
    if config.moe.selection_bias:
        generator = np.random.default_rng([seed, 1])
        shape = (models.num_moe_layers(config), config.moe.num_experts)
        variables["selection_bias"] = generator.standard_normal(shape).astype(np.float32)
    return variables


def random_tokens(*shape, seed=0):
    return np.random.default_rng([seed, 2]).integers(1, VOCABULARY, shape, dtype=np.int32)


@functools.cache
def forward(config, output="logits"):
    """Compiled `models.apply`, (variables, batch, key=None) -> (out, aux); one per config."""

    def run(variables, batch, key=None):
        return models.apply(config, variables, batch, output=output, key=key)

    return jax.jit(run)


def relative_error(found, expected):
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return np.abs(found - expected).max() / np.abs(expected).max()
