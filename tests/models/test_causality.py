"""What an output may depend on, seen from its gradient with respect to every input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgpt import models
from jgpt.config import BlockSparse
from tests.models.tiny_models import random_variables, tiny, tiny_moe

S = 12


def influence(config, batch=None):
    """[S, S] bool: output i changes with input j. Inputs are all different rows of the table."""
    variables = random_variables(config)
    inputs = np.arange(1, S + 1, dtype=np.int32)[None]
    direction = np.random.default_rng(0).standard_normal(config.hidden_size)

    def outputs(table):
        params = variables["params"] | {"embedding": {"table": table}}
        full = {"inputs": inputs, **(batch or {})}
        hidden, _ = models.apply(config, variables | {"params": params}, full, output="hidden")
        return hidden[0] @ jnp.asarray(direction, jnp.float32)

    @jax.jit
    def jacobian(table):
        _, pullback = jax.vjp(outputs, table)
        return jax.lax.map(lambda one: pullback(one)[0], jnp.eye(S))

    gradient = jacobian(variables["params"]["embedding"]["table"])
    size = np.abs(np.asarray(gradient)[:, inputs[0]]).max(axis=-1)
    assert np.isfinite(size).all()
    return size > 0


LOWER = np.tril(np.ones((S, S), bool))
QUERY, KEY = np.mgrid[:S, :S]

CAUSAL = {
    "grouped queries": {},
    "multi query": {"num_kv_heads": 1},
    "multi head, normed": {"num_kv_heads": 4, "qk_norm": True},
    "sinks and softcap": {"attention_sinks": True, "attention_softcap": 5.0},
    "learned scale, biases": {"learned_attention_scale": True, "attention_bias": True},
    "alibi": {"position": "alibi"},
    "relative": {"position": "relative"},
    "parallel block": {"parallel_block": True},
    "post norm": {"norm_placement": "post"},
    "experts": tiny_moe(),
}


@pytest.mark.parametrize("name", CAUSAL)
def test_an_output_depends_on_all_earlier_inputs_and_on_no_later_one(name):
    np.testing.assert_array_equal(influence(tiny(num_layers=1, **CAUSAL[name])), LOWER)


def test_a_window_reaches_as_far_as_it_says_in_each_layer():
    local = {"attention_pattern": ("local",), "window": 3}
    np.testing.assert_array_equal(influence(tiny(num_layers=1, **local)), LOWER & (QUERY - KEY < 3))
    np.testing.assert_array_equal(influence(tiny(**local)), LOWER & (QUERY - KEY < 5))


def test_block_sparse_layers_see_local_global_and_strided_blocks():
    sparse = BlockSparse(block_size=2, num_local_blocks=2, num_global_blocks=1, stride=3)
    query, key = QUERY // 2, KEY // 2
    seen = (query - key < 2) | (key == 0) | (key == 2) | (key == 5)
    np.testing.assert_array_equal(influence(tiny(num_layers=1, block_sparse=sparse)), LOWER & seen)


def test_bidirectional_outputs_depend_on_everything():
    assert influence(tiny(num_layers=1, attention="bidirectional")).all()


def test_a_prefix_is_seen_by_all():
    prefix = {"prefix_lengths": np.asarray([5], np.int32)}
    found = influence(tiny(num_layers=1, attention="prefix"), prefix)
    np.testing.assert_array_equal(found, LOWER | (KEY < 5))


def test_documents_of_a_row_do_not_see_each_other():
    segments = np.asarray([[1] * 5 + [2] * 4 + [0] * 3], np.int32)
    same = (segments[0][:, None] == segments[0]) & (segments[0] != 0)
    found = influence(tiny(num_layers=2), {"segment_ids": segments})
    np.testing.assert_array_equal(found[:9], (LOWER & same)[:9])
