"""What models share equals `transformers`: the router's balance loss, rope scaling.

Whole models are compared through the folders they are saved in: `tests/interop`.
"""

import jax
import numpy as np
import pytest

from jgpt import models
from jgpt.config import RopeScaling
from jgpt.interop.parity import on_one_device
from jgpt.layers.positions import rope_frequencies, rope_temperature

torch = pytest.importorskip("torch", reason="compares with transformers models, which run on torch")
transformers = pytest.importorskip("transformers", reason="compares with transformers models")

pytestmark = pytest.mark.parity

LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 16,
}
LLAMA3 = YARN | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SCALINGS = {
    "linear": (LINEAR, RopeScaling("linear", 4.0)),
    "yarn": (YARN, RopeScaling("yarn", 4.0, 16)),
    "llama3": (LLAMA3, RopeScaling("llama3", 4.0, 16)),
}


def random_weights(model):
    """`model` with every parameter random, and without dropout."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.add_(0.3 * noise)
            else:
                parameter.copy_(0.2 * noise)
    return model.eval()


def nested(flat):
    tree = {}
    for path, leaf in flat.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def error(found, expected, floor=0.0):
    """Largest difference over the largest expected entry, or over `floor` if that is more."""
    found, expected = np.asarray(found), np.asarray(expected)
    return np.abs(found - expected).max() / max(np.abs(expected).max(), floor)


def test_mixtral_balance_loss_is_k_times_ours_over_all_layers_pooled(tmp_path):
    config = transformers.MixtralConfig(
        vocab_size=60,
        num_hidden_layers=2,
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        num_local_experts=4,
        num_experts_per_tok=2,
        pad_token_id=0,
    )
    model = random_weights(transformers.AutoModelForCausalLM.from_config(config))
    model.save_pretrained(tmp_path)
    tokens = np.random.default_rng(1).integers(1, 60, (2, 17))
    out = model(torch.tensor(tokens), output_router_logits=True, use_cache=False)
    ours, variables = on_one_device(tmp_path)
    _, aux = models.apply(ours, variables, {"inputs": tokens.astype(np.int32)}, output="hidden")
    pooled = jax.tree.map(lambda leaf: leaf.sum(0), aux.router)
    experts, k = ours.moe.num_experts, ours.moe.top_k
    fractions = pooled.assignments / (pooled.tokens * k)
    balance = experts * (fractions * pooled.probabilities / pooled.tokens).sum()
    assert error(k * balance, out.aux_loss.detach()) < 1e-5


@pytest.mark.parametrize("kind", SCALINGS)
@pytest.mark.parametrize("head_dim, theta, original", [(64, 10000.0, 16), (128, 5e5, 8192)])
def test_rope_frequencies_and_temperature(kind, head_dim, theta, original):
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters, scaling = SCALINGS[kind]
    parameters = parameters | {"rope_theta": theta}
    if kind != "linear":
        parameters["original_max_position_embeddings"] = original
    scaling = RopeScaling(scaling.kind, scaling.factor, original)
    config = transformers.LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        head_dim=head_dim,
        max_position_embeddings=4 * original,
        rope_parameters=parameters,
    )
    expected, temperature = ROPE_INIT_FUNCTIONS[kind](config, "cpu")
    found = rope_frequencies(head_dim, theta, scaling)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5)
    assert rope_temperature(scaling) == pytest.approx(temperature)
