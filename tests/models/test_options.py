"""Every field of the model's config does something: change it, and weights or outputs change."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from jgpt import models, trees
from jgpt.config import BlockSparse, ConfigError, LatentConfig, ModelConfig, MoEConfig, RopeScaling
from tests.models.tiny_models import forward, random_tokens, random_variables, tiny, tiny_moe

MOE = tiny_moe(dispatch="dense")
LOCAL = {"num_layers": 2, "attention_pattern": ("local", "global"), "window": 3}
YARN = {"head_dim": 16, "rope_theta": 100.0, "rope_scaling": RopeScaling("yarn", 4.0, 64)}
LLAMA3 = {"head_dim": 16, "rope_theta": 100.0, "rope_scaling": RopeScaling("llama3", 4.0, 64)}
GROUPS = tiny_moe(num_experts=8, num_groups=4, top_groups=1)
LATENT = {"num_kv_heads": 0, "latent": LatentConfig(8, 0, 4, 4, 4)}
LONG = RopeScaling("longrope", 4.0, 64, short_factors=(1.0,) * 8, long_factors=(2.0,) * 8)
SPARSE = BlockSparse(2, 1, 1, 0)

OPTIONS = {
    "vocab_size": ({}, 60),
    "num_layers": ({}, 2),
    "hidden_size": ({}, 32),
    "num_heads": ({}, 2),
    "num_kv_heads": ({}, 1),
    "head_dim": ({}, 6),
    "intermediate_size": ({}, 32),
    "max_length": ({"position": "learned"}, 16),
    "attention": ({}, "bidirectional"),
    "attention_pattern": ({"window": 3}, ("local",)),
    "window": (LOCAL, 4),
    "block_sparse": ({}, SPARSE),
    "attention_softcap": ({}, 2.0),
    "attention_scale": ({}, 2.0),
    "learned_attention_scale": ({}, True),
    "qk_norm": ({}, True),
    "attention_sinks": ({}, True),
    "latent": ({"num_kv_heads": 0}, LATENT["latent"]),
    "latent.kv_rank": (LATENT, 5),
    "latent.query_rank": (LATENT, 6),
    "latent.nope_dim": (LATENT, 3),
    "latent.rope_dim": (LATENT, 6),
    "latent.value_dim": (LATENT, 3),
    "attention_bias": ({}, True),
    "attention_output_bias": ({}, True),
    "position": ({}, "alibi"),
    "rope_theta": ({}, 100.0),
    "local_rope_theta": (LOCAL, 100.0),
    "rope_fraction": ({}, 0.5),
    "rope_scaling": ({}, RopeScaling("linear", 2.0)),
    "relative_buckets": ({"position": "relative"}, 16),
    "relative_max_distance": ({"position": "relative", "relative_buckets": 8}, 6),
    "norm": ({}, "layernorm"),
    "norm_placement": ({}, "sandwich"),
    "norm_epsilon": ({}, 0.5),
    "norm_unit_offset": ({}, True),
    "parallel_block": ({}, True),
    "ffn": ({}, "geglu"),
    "ffn_bias": ({}, True),
    "gelu_approximate": ({"ffn": "gelu"}, False),
    "ffn_pattern": (MOE, ("dense", "moe")),
    "num_leading_dense": (MOE, 1),
    "moe": (MOE, MoEConfig(num_experts=8)),
    "tied_embeddings": ({}, True),
    "head_bias": ({}, True),
    "embedding_scale": ({}, True),
    "final_softcap": ({}, 2.0),
    "attention_dropout": ({}, 0.3),
    "residual_dropout": ({}, 0.3),
    "embedding_dropout": ({}, 0.3),
    "encoder_layers": ({}, 1),
    "token_types": ({}, 2),
    "norm_bias": ({"norm": "layernorm"}, False),
    "embedding_norm": ({}, True),
    "first_attention_norm": ({}, False),
    "head_transform": ({}, True),
    "pooler": ({"pooling": "cls"}, "tanh"),
    "num_labels": ({"pooling": "cls"}, 3),
    "init_std": ({}, 0.1),
    "scale_residual_init": ({}, False),
    "mup_base_width": ({}, 8),
    "dtype": ({}, "bfloat16"),
    "param_dtype": ({}, "bfloat16"),
    "rope_scaling.kind": (LLAMA3, "ntk"),
    "rope_scaling.factor": (YARN, 2.0),
    "rope_scaling.original_length": (YARN, 8),
    "rope_scaling.beta_fast": (YARN, 2.0),
    "rope_scaling.beta_slow": (YARN, 0.01),
    "rope_scaling.low_frequency_factor": (LLAMA3, 0.01),
    "rope_scaling.high_frequency_factor": (LLAMA3, 1.1),
    "rope_scaling.attention_factor": (YARN, 2.0),
    "rope_scaling.short_factors": ({"head_dim": 16, "rope_scaling": LONG}, (1.5,) * 8),
    "rope_scaling.long_factors": (
        {"head_dim": 16, "rope_scaling": dataclasses.replace(LONG, original_length=8)},
        (3.0,) * 8,
    ),
    "block_sparse.block_size": ({"block_sparse": SPARSE}, 3),
    "block_sparse.num_local_blocks": ({"block_sparse": SPARSE}, 2),
    "block_sparse.num_global_blocks": ({"block_sparse": SPARSE}, 0),
    "block_sparse.stride": ({"block_sparse": SPARSE}, 2),
    "moe.num_experts": (MOE, 8),
    "moe.top_k": (MOE, 1),
    "moe.intermediate_size": (MOE, 8),
    "moe.router": (MOE, "sigmoid"),
    "moe.renormalize": (MOE, False),
    "moe.selection_bias": (MOE, True),
    "moe.routed_scale": (MOE, 2.0),
    "moe.jitter": (MOE, 0.3),
    "moe.num_shared_experts": (MOE, 1),
    "moe.capacity_factor": (tiny_moe(dispatch="capacity", capacity_factor=2.0), 0.5),
    "moe.num_groups": (GROUPS, 2),
    "moe.top_groups": (GROUPS, 3),
    "moe.group_size": (tiny_moe(dispatch="capacity", capacity_factor=0.5), 3),
}
"""Field: (the model it is tried in, another value)."""

FORM_ONLY = {
    "attention_backend": "the same values by another kernel",
    "loss_backend": "the same values by another kernel",
    "remat": "the same values, recomputed",
    "scan_layers": "the same values in another form",
    "decoder_start_id": "read by objectives and by generation",
    "pooling": "read by the outputs pooled and labels (tests/models/test_encoders.py)",
    "label_level": "read by the output labels (tests/models/test_encoders.py)",
    "moe.dispatch": "the same values where nothing is dropped",
    "moe.fused": "the same values in one kernel",
    "moe.backend": "the same values by another kernel",
    "moe.exchange": "read on a mesh (tests/layers/test_moe_parallel.py)",
    "moe.exchange_factor": "read on a mesh (tests/layers/test_moe_parallel.py)",
    "moe.bias_update_rate": "read by the training step",
    "moe.balance_coefficient": "read by the objective",
    "moe.z_coefficient": "read by the objective",
}


def fields(section, prefix=""):
    names = set()
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        names.add(prefix + field.name)
        if dataclasses.is_dataclass(value):
            names |= fields(value, f"{field.name}.")
    return names


def replace(config, name, value):
    if "." in name:
        section, name = name.split(".")
        value = dataclasses.replace(getattr(config, section), **{name: value})
        name = section
    return dataclasses.replace(config, **{name: value})


@functools.cache
def shapes(config):
    return trees.table(models.abstract_params(config))


@functools.cache
def outputs(config):
    """Logits in training from random weights."""
    batch = {"inputs": random_tokens(1, 12)}
    logits, _ = forward(config)(random_variables(config), batch, jax.random.key(0))
    return np.asarray(logits)


def test_the_table_lists_every_field():
    assert fields(ModelConfig()) == set(OPTIONS) | set(FORM_ONLY)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_changes_weights_or_outputs(name):
    base, value = OPTIONS[name]
    before = tiny(**{"num_layers": 1} | base)
    after = replace(before, name, value)
    if shapes(before) != shapes(after):
        return
    if name in ("init_std", "scale_residual_init"):
        weights = [
            models.init(c, jax.random.key(0))["layers_0"]["attention"]["output"]["kernel"]
            for c in (before, after)
        ]
        assert np.abs(weights[0] - weights[1]).max() > 1e-4
        return
    assert np.abs(outputs(before) - outputs(after)).max() > 1e-4


@pytest.mark.parametrize(
    "name, variables",
    [
        ("attention_sinks", "sinks"),
        ("learned_attention_scale", "scale"),
        ("qk_norm", "query_norm"),
        ("attention_bias", "bias"),
    ],
)
def test_optional_parameters_are_read(name, variables):
    """Options that add parameters change the outputs through them."""
    config = tiny(num_layers=1, **{name: True})
    first, second = random_variables(config), random_variables(config)
    attention = second["params"]["layers_0"]["attention"]
    if variables == "bias":
        attention["key"]["bias"] = attention["key"]["bias"] + 1.0
        attention["query"]["bias"] = attention["query"]["bias"] - 1.0
    else:
        attention[variables] = jax.tree.map(lambda x: x + 1.0, attention[variables])
    batch = {"inputs": random_tokens(1, 6)}
    one, two = (models.apply(config, v, batch)[0] for v in (first, second))
    assert np.abs(one - two).max() > 1e-4


def test_wrong_use_is_refused_in_one_line():
    config = tiny()
    variables = random_variables(config)
    batch = {"inputs": random_tokens(1, 6)}
    with pytest.raises(ConfigError, match="token_logps"):
        models.apply(config, variables, batch, output="logprobs")
    with pytest.raises(ConfigError, match="prefix_lengths"):
        models.apply(tiny(attention="prefix"), variables, batch)
    learned = tiny(position="learned", max_length=5)
    with pytest.raises(ConfigError, match=r"model\.max_length"):
        models.apply(learned, random_variables(learned), batch)
