"""Logits, loss and gradients equal those of `transformers` from the same random weights."""

import hf_models
import jax
import numpy as np
import pytest

from jgpt import models
from jgpt.config import ModelConfig, MoEConfig, RopeScaling
from jgpt.layers.positions import rope_frequencies, rope_temperature
from jgpt.trees import leaves_by_path

torch = pytest.importorskip("torch", reason="compares with transformers models, which run on torch")
transformers = pytest.importorskip("transformers", reason="compares with transformers models")

pytestmark = pytest.mark.parity

SHAPE = {"vocab_size": 60, "num_layers": 2, "hidden_size": 32, "num_heads": 4}
HF_SHAPE = {
    "vocab_size": 60,
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "attn_implementation": "eager",
    "pad_token_id": 0,
}
GATED = SHAPE | {"num_kv_heads": 2, "intermediate_size": 48}
HF_GATED = HF_SHAPE | {
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "tie_word_embeddings": False,
    "initializer_range": 0.2,
}


def llama():
    theirs = transformers.LlamaConfig(**HF_GATED, rms_norm_eps=1e-5)
    return ModelConfig(**GATED), theirs, hf_models.LLAMA, None


def llama_rope(parameters, scaling):
    def make():
        theirs = transformers.LlamaConfig(**HF_GATED, rms_norm_eps=1e-5, rope_parameters=parameters)
        return ModelConfig(**GATED, rope_scaling=scaling), theirs, hf_models.LLAMA, None

    return make


def mistral():
    ours = ModelConfig(**GATED, attention_pattern=("local",), window=5)
    theirs = transformers.MistralConfig(**HF_GATED, sliding_window=5, rms_norm_eps=1e-5)
    return ours, theirs, hf_models.LLAMA, None


def mixtral():
    moe = MoEConfig(num_experts=4, top_k=2)
    ours = ModelConfig(**GATED, ffn_pattern=("moe",), moe=moe)
    theirs = transformers.MixtralConfig(
        **HF_GATED,
        num_local_experts=4,
        num_experts_per_tok=2,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        sliding_window=None,
        output_router_logits=False,
    )
    return ours, theirs, hf_models.MIXTRAL, hf_models.mixtral_experts


def qwen2():
    ours = ModelConfig(**GATED, attention_bias=True, norm_epsilon=1e-6)
    return ours, transformers.Qwen2Config(**HF_GATED), hf_models.LLAMA, None


def qwen3():
    ours = ModelConfig(**GATED, head_dim=16, qk_norm=True, norm_epsilon=1e-6)
    return ours, transformers.Qwen3Config(**HF_GATED, head_dim=16), hf_models.LLAMA, None


def gemma2():
    ours = ModelConfig(
        **GATED,
        head_dim=16,
        attention_pattern=("local", "global"),
        window=5,
        attention_softcap=5.0,
        final_softcap=3.0,
        attention_scale=(16 / 24) ** 0.5,
        norm_placement="sandwich",
        norm_unit_offset=True,
        norm_epsilon=1e-6,
        ffn="geglu",
        embedding_scale=True,
        tied_embeddings=True,
    )
    theirs = transformers.Gemma2Config(
        **HF_GATED | {"tie_word_embeddings": True},
        head_dim=16,
        sliding_window=5,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=3.0,
        query_pre_attn_scalar=24,
    )
    return ours, theirs, hf_models.GEMMA2, None


def gpt2():
    ours = ModelConfig(
        **SHAPE,
        intermediate_size=128,
        max_length=40,
        position="learned",
        norm="layernorm",
        ffn="gelu",
        ffn_bias=True,
        attention_bias=True,
        attention_output_bias=True,
        tied_embeddings=True,
    )
    theirs = transformers.GPT2Config(
        vocab_size=60,
        n_layer=2,
        n_embd=32,
        n_head=4,
        n_positions=40,
        attn_implementation="eager",
        initializer_range=0.2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return ours, theirs, hf_models.GPT2, hf_models.gpt2_maps


def gpt_neox(parallel):
    def make():
        ours = ModelConfig(
            **SHAPE,
            intermediate_size=128,
            norm="layernorm",
            ffn="gelu",
            gelu_approximate=False,
            ffn_bias=True,
            attention_bias=True,
            attention_output_bias=True,
            rope_fraction=0.5,
            parallel_block=parallel,
        )
        theirs = transformers.GPTNeoXConfig(
            **HF_SHAPE,
            intermediate_size=128,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
            },
            use_parallel_residual=parallel,
            hidden_act="gelu",
            initializer_range=0.2,
            tie_word_embeddings=False,
        )
        return ours, theirs, hf_models.GPT_NEOX, hf_models.neox_query_key_value(4)

    return make


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

MODELS = {
    "llama": llama,
    "mistral": mistral,
    "mixtral": mixtral,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "gemma2": gemma2,
    "gpt2": gpt2,
    "gpt_neox": gpt_neox(parallel=True),
    "gpt_neox, in sequence": gpt_neox(parallel=False),
    "llama, yarn": llama_rope(*SCALINGS["yarn"]),
}


def random_model(config):
    """Theirs, with every parameter random: biases and norms too."""
    return random_weights(transformers.AutoModelForCausalLM.from_config(config))


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


@pytest.mark.parametrize("name", MODELS)
def test_logits_loss_and_gradients(name):
    ours, theirs, names, fused = MODELS[name]()
    model = random_model(theirs)
    tokens = np.random.default_rng(0).integers(1, 60, (2, 17))
    out = model(torch.tensor(tokens), labels=torch.tensor(tokens), use_cache=False)
    out.loss.backward()

    template = leaves_by_path(models.abstract_params(ours))
    weights = hf_models.params_like(template, hf_models.tensors(model), names, fused)
    batch = {"inputs": tokens.astype(np.int32), "targets": np.roll(tokens, -1, 1).astype(np.int32)}
    batch["loss_weights"] = np.ones(tokens.shape, np.float32)
    batch["loss_weights"][:, -1] = 0.0

    @jax.jit
    def run(params):
        logits, _ = models.apply(ours, {"params": params}, batch)

        def loss(params):
            sums, _ = models.apply(ours, {"params": params}, batch, output="cross_entropy")
            return sums.total / sums.weight

        return logits, *jax.value_and_grad(loss)(params)

    logits, loss, gradients = run(nested(weights))
    assert error(logits, out.logits.detach()) < 1e-4
    assert error(loss, out.loss.detach()) < 1e-5
    gradient_arrays = hf_models.tensors(model, gradients=True)
    expected = hf_models.params_like(template, gradient_arrays, names, fused)
    # A key's bias moves all of a query's scores alike: its gradient is 0 but for rounding.
    floor = 1e-3 * max(np.abs(leaf).max() for leaf in expected.values())
    for path, leaf in leaves_by_path(gradients).items():
        assert error(leaf, expected[path], floor) < 1e-4, path


def test_mixtral_balance_loss_is_k_times_ours_over_all_layers_pooled():
    ours, theirs, names, fused = mixtral()
    model = random_model(theirs)
    tokens = np.random.default_rng(1).integers(1, 60, (2, 17))
    out = model(torch.tensor(tokens), output_router_logits=True, use_cache=False)
    template = leaves_by_path(models.abstract_params(ours))
    weights = hf_models.params_like(template, hf_models.tensors(model), names, fused)
    _, aux = models.apply(
        ours, {"params": nested(weights)}, {"inputs": tokens.astype(np.int32)}, output="hidden"
    )
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
