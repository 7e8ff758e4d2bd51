"""Multi-head latent attention against its formulas, written out with loops in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgpt import models, sharding
from jgpt.config import ConfigError, LatentConfig, MoEConfig
from jgpt.layers.attention import Context
from jgpt.layers.latent_attention import LatentAttention
from jgpt.layers.positions import layer_rotary, rope_frequencies
from jgpt.training.optimizer import parameter_groups
from jgpt.trees import leaves_by_path
from jgpt.typing import Mask
from tests.models.tiny_models import forward, random_tokens, random_variables, relative_error, tiny

WIDTHS = {"kv_rank": 7, "nope_dim": 5, "rope_dim": 4, "value_dim": 3}


def latent(query_rank=0, **overrides):
    widths = LatentConfig(query_rank=query_rank, **WIDTHS)
    return tiny(**{"num_kv_heads": 0, "latent": widths} | overrides)


def rms(x, scale):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-6) * scale


def turned(x, position, theta):
    """RoPE by complex numbers: pairs (i, i + p / 2)."""
    half = len(x) // 2
    frequencies = rope_frequencies(len(x), theta, latent().rope_scaling)
    z = (x[:half] + 1j * x[half:]) * np.exp(1j * position * frequencies)
    return np.concatenate([z.real, z.imag])


def by_the_formulas(c, params, x):
    """DeepSeek-V2, equations 9 to 19, for one row [S, D]."""
    p = {path: np.asarray(leaf, np.float64) for path, leaf in leaves_by_path(params).items()}
    n, u, r = c.latent.nope_dim, c.latent.value_dim, c.latent.kv_rank
    compressed = x @ p["key_value_down/kernel"]
    vectors = rms(compressed[:, :r], p["key_value_norm/scale"])
    shared = [turned(key, t, c.rope_theta) for t, key in enumerate(compressed[:, r:])]
    if c.latent.query_rank:
        down = rms(x @ p["query_down/kernel"], p["query_norm/scale"])
        queries = down @ p["query_up/kernel"]
    else:
        queries = x @ p["query/kernel"]
    out = []
    for t in range(len(x)):
        heads = []
        for h in range(c.num_heads):
            q = queries[t].reshape(c.num_heads, -1)[h]
            q = np.concatenate([q[:n], turned(q[n:], t, c.rope_theta)])
            up = p["key_value_up/kernel"].reshape(r, c.num_heads, n + u)[:, h]
            keys = [np.concatenate([vectors[j] @ up[:, :n], shared[j]]) for j in range(t + 1)]
            scores = np.array([q @ k for k in keys]) / np.sqrt(len(q))
            weights = np.exp(scores - scores.max())
            weights /= weights.sum()
            heads.append(weights @ np.array([vectors[j] @ up[:, n:] for j in range(t + 1)]))
        out.append(np.concatenate(heads) @ p["output/kernel"])
    return np.array(out)


@pytest.mark.parametrize("query_rank", [0, 6])
@pytest.mark.parametrize("backend", ["reference", "blockwise"])
def test_the_layer_is_the_formulas(query_rank, backend):
    c = latent(query_rank, attention_backend=backend, rope_theta=100.0)
    params = random_variables(c)["params"]["layers_0"]["attention"]
    x = np.random.default_rng(0).standard_normal((2, 9, c.hidden_size)).astype(np.float32)
    positions = jnp.broadcast_to(jnp.arange(9), (2, 9))
    context = Context(
        masks={"global": Mask(causal=True)},
        rotary={"global": layer_rotary(c, "global", positions)},
        bias=None,
        positions=positions,
        token_mask=None,
    )
    y, _ = LatentAttention(c, "global").apply({"params": params}, x, context)
    for row in range(2):
        expected = by_the_formulas(c, params, x[row].astype(np.float64))
        assert relative_error(y[row], expected) < 1e-5


def test_the_cache_holds_the_compressed_vectors_only():
    c = latent()
    cache = models.init_cache(c, 2, 10)
    assert cache.layers[0].stored.k.shape == (2, 1, 10, WIDTHS["kv_rank"])
    assert cache.layers[0].stored.v.shape == (2, 1, 10, WIDTHS["rope_dim"])


def test_scanned_layers_are_the_unrolled_ones():
    c = latent(6, num_layers=3)
    variables, batch = random_variables(c), {"inputs": random_tokens(2, 6)}
    expected, _ = forward(c)(variables, batch)
    scanned = {"params": models.restack(variables["params"], c, True)}
    found, _ = forward(c)(scanned, batch)
    assert relative_error(found, expected) < 1e-5


def test_its_parameters_have_a_place_and_a_group():
    c = latent(6, attention_bias=True, attention_output_bias=True)
    axes = jax.tree.leaves(models.logical_axes(c), is_leaf=lambda x: isinstance(x, tuple))
    assert {name for names in axes for name in names if name} <= sharding.RULES.keys()
    groups = leaves_by_path(parameter_groups(models.abstract_params(c)))
    assert groups["layers_0/attention/key_value_up/kernel"] == "matrix"
    assert groups["layers_0/attention/key_value_norm/scale"] == "vector"


def test_flops_count_the_width_of_the_values():
    c = latent()
    wider = latent(latent=LatentConfig(**WIDTHS | {"value_dim": 5}))
    weights = 6 * c.num_layers * c.num_heads * 2 * (WIDTHS["kv_rank"] + c.hidden_size)
    scores = 12 * c.num_layers * c.num_heads * 1 * 64 / 2
    difference = models.flops_per_token(wider, 64) - models.flops_per_token(c, 64)
    assert difference == weights + scores


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"position": "alibi"}, "model.position='alibi' cannot be had with latent attention"),
        ({"num_kv_heads": 2}, "model.num_kv_heads=2"),
        ({"head_dim": 4}, "model.head_dim=4"),
        ({"qk_norm": True}, "model.qk_norm"),
        ({"latent": LatentConfig(8, 0, 0, 4, 4)}, "widths must be at least 1"),
        ({"latent": LatentConfig(8, 0, 4, 3, 4)}, "even width"),
    ],
)
def test_what_does_not_go_together_is_said(overrides, message):
    with pytest.raises(ConfigError, match=message):
        latent(**overrides)


@pytest.mark.parametrize(
    "moe, message",
    [
        ({"num_groups": 3, "top_groups": 1}, "must divide"),
        ({"num_groups": 4, "top_groups": 5}, "must lie between"),
        ({"num_groups": 4, "top_groups": 1, "top_k": 3}, "must lie between"),
        ({"num_groups": 8, "top_groups": 4, "router": "sigmoid"}, "two experts a group"),
    ],
)
def test_groups_that_do_not_fit_are_refused(moe, message):
    with pytest.raises(ConfigError, match=message):
        tiny(ffn_pattern=("moe",), moe=MoEConfig(**{"num_experts": 8} | moe))
