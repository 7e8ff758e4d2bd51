"""Folders that `transformers` writes: the same logits, loss and gradients here; and ours there."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jgpt import models
from jgpt.interop.configs import differences
from jgpt.interop.export import export
from jgpt.interop.folder import open_folder
from jgpt.interop.parity import compare, on_one_device, random_tokens
from jgpt.interop.weights import sources
from jgpt.models.layout import moe_layers
from jgpt.trees import leaves_by_path

torch = pytest.importorskip("torch", reason="transformers models run on torch")
transformers = pytest.importorskip("transformers", reason="writes and reads the folders")

pytestmark = pytest.mark.parity

SIZES = {
    "vocab_size": 60,
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "attn_implementation": "eager",
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}
GATED = SIZES | {"num_key_value_heads": 2, "tie_word_embeddings": False}
ODD = {"hidden_size": 24, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 8}
THETA = {"rope_theta": 5000.0}
LENGTH = {"original_max_position_embeddings": 16}
LONGROPE = {
    "rope_parameters": THETA
    | {"rope_type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3]}
    | {"long_factor": [1.0, 2.0, 3.0, 4.0]}
}
LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 6,
    "v_head_dim": 7,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.7,
}
GROUPS = {"n_group": 4, "topk_group": 2}
YARN = {"rope_type": "yarn", "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 0.5}


def rope(**parameters):
    return {"rope_parameters": THETA | parameters}


MODELS = {
    "llama": ("Llama", GATED),
    "llama, tied, odd heads": ("Llama", GATED | ODD | {"tie_word_embeddings": True}),
    "llama, biases": ("Llama", GATED | {"attention_bias": True, "mlp_bias": True}),
    "llama, linear": ("Llama", GATED | rope(rope_type="linear", factor=4.0)),
    "llama, yarn": ("Llama", GATED | rope(**YARN, **LENGTH)),
    "llama, llama3": ("Llama", GATED | rope(**LLAMA3, **LENGTH, factor=4.0)),
    "mistral": ("Mistral", GATED | {"sliding_window": 5, "head_dim": 16}),
    "mixtral": ("Mixtral", GATED | {"num_local_experts": 4, "sliding_window": None}),
    "qwen2": (
        "Qwen2",
        GATED | {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", GATED | {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen3_moe": (
        "Qwen3Moe",
        GATED
        | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
        | {"norm_topk_prob": True, "mlp_only_layers": [0]},
    ),
    "gemma2": (
        "Gemma2",
        GATED
        | {"head_dim": 16, "sliding_window": 5, "query_pre_attn_scalar": 24}
        | {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}
        | {"tie_word_embeddings": True},
    ),
    "gemma3": (
        "Gemma3Text",
        GATED
        | {"head_dim": 16, "sliding_window": 5, "query_pre_attn_scalar": 24}
        | {"num_hidden_layers": 3, "tie_word_embeddings": True}
        | {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"]},
    ),
    "gpt2": (
        "GPT2",
        {"vocab_size": 60, "n_layer": 2, "n_embd": 24, "n_head": 3, "n_positions": 40}
        | {"attn_implementation": "eager", "initializer_range": 0.2, "n_inner": 40}
        | {"bos_token_id": 1, "eos_token_id": 2}
        | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    ),
    "gpt_neox": ("GPTNeoX", SIZES | rope(rope_type="default", partial_rotary_factor=0.5)),
    "gpt_neox, in sequence": (
        "GPTNeoX",
        SIZES | {"use_parallel_residual": False, "hidden_act": "gelu_new"},
    ),
    "deepseek_v2": ("DeepseekV2", GATED | LATENT | {"q_lora_rank": None}),
    "deepseek_v2, groups": (
        "DeepseekV2",
        GATED
        | LATENT
        | GROUPS
        | {"topk_method": "group_limited_greedy", "q_lora_rank": 20, "attention_bias": True}
        | rope(**YARN, **LENGTH),
    ),
    "deepseek_v3": (
        "DeepseekV3",
        GATED | LATENT | GROUPS | {"q_lora_rank": 20, "num_hidden_layers": 3},
    ),
    "deepseek_v3, yarn": (
        "DeepseekV3",
        GATED
        | LATENT
        | {"n_group": 1, "topk_group": 1, "q_lora_rank": 20, "norm_topk_prob": False}
        | rope(**(YARN | {"mscale_all_dim": 1.0}), **LENGTH),
    ),
    "phi3, longrope, long": ("Phi3", GATED | LONGROPE | {"original_max_position_embeddings": 16}),
    "phi3, longrope, short": ("Phi3", GATED | LONGROPE | {"original_max_position_embeddings": 32}),
    "phi3": (
        "Phi3",
        GATED | {"sliding_window": 5} | rope(rope_type="default", partial_rotary_factor=0.5),
    ),
}


def random_model(name):
    """Theirs, with every parameter random: biases and norms too, and what moves routers."""
    kind, settings = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**settings)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
        for buffer_name, buffer in model.named_buffers():
            if buffer_name.endswith("e_score_correction_bias"):
                buffer.add_(0.3 * torch.randn_like(buffer))
    return model.eval()


def gradients_as_folder(model, path):
    """A folder with each parameter's gradient in the parameter's place."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.zeros(()) if parameter.grad is None else parameter.grad)
    model.save_pretrained(path)


def error(found, expected, floor=0.0):
    """Largest difference over the largest expected entry, or over `floor` if that is more."""
    found, expected = np.asarray(found), np.asarray(expected)
    return np.abs(found - expected).max() / max(np.abs(expected).max(), floor)


@pytest.mark.parametrize("name", MODELS)
def test_there_and_back(name, tmp_path):
    """Logits, loss and gradients; then our export, loaded strictly, gives the same logits."""
    model = random_model(name)
    model.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    ours, variables = on_one_device(tmp_path / "theirs")
    tokens = np.random.default_rng(0).integers(1, 60, (2, 17))
    out = model(torch.tensor(tokens), labels=torch.tensor(tokens), use_cache=False)
    out.loss.backward()

    logits, loss, gradients = run(ours, variables, tokens)
    assert error(logits, out.logits.detach()) < 1e-4
    assert error(loss, out.loss.detach()) < 1e-5
    gradients_as_folder(model, tmp_path / "gradients")
    _, expected = on_one_device(tmp_path / "gradients")
    check_gradients(gradients, expected["params"])

    exported_again(tmp_path, ours, variables, out.logits.detach(), tokens)


def run(config, variables, tokens):
    """(logits, mean loss of the next token, its gradients)."""
    batch = {"inputs": tokens.astype(np.int32), "targets": np.roll(tokens, -1, 1).astype(np.int32)}
    batch["loss_weights"] = np.ones(tokens.shape, np.float32)
    batch["loss_weights"][:, -1] = 0.0

    @jax.jit
    def both(params):
        def loss(params):
            given = variables | {"params": params}
            sums, _ = models.apply(config, given, batch, output="cross_entropy")
            return sums.total / sums.weight

        logits, _ = models.apply(config, variables | {"params": params}, batch)
        return logits, *jax.value_and_grad(loss)(params)

    return both(variables["params"])


def check_gradients(found, expected):
    expected = leaves_by_path(expected)
    # A key's bias moves all of a query's scores alike: its gradient is 0 but for rounding.
    floor = 1e-3 * max(float(np.abs(leaf).max()) for leaf in expected.values())
    for path, leaf in leaves_by_path(found).items():
        assert error(leaf, expected[path], floor) < 1e-4, path


def exported_again(tmp_path, config, variables, logits, tokens):
    """Exports, compares every tensor bit for bit, and has transformers load it strictly."""
    leaves = {path: np.asarray(leaf) for path, leaf in leaves_by_path(variables["params"]).items()}
    for row, layer in enumerate(moe_layers(config) if config.moe.selection_bias else ()):
        leaves[f"selection_bias/layers_{layer}"] = np.asarray(variables["selection_bias"][row])
    family = open_folder(tmp_path / "theirs").family.name
    export(
        tmp_path / "ours",
        config,
        leaves.__getitem__,
        dtype=np.dtype(np.float32),
        family=family,
        extra={"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
        largest_shard=20_000,
    )
    theirs, ours = open_folder(tmp_path / "theirs"), open_folder(tmp_path / "ours")
    assert theirs.files.keys() == ours.files.keys()
    assert len({file.path for file in ours.files.values()}) > 1
    for name in theirs.files:
        np.testing.assert_array_equal(theirs.view(name), ours.view(name), err_msg=name)
    assert not differences(theirs.model, ours.model)
    again, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(info.values()), info
    with torch.no_grad():
        found = again.eval()(torch.tensor(tokens), use_cache=False).logits
    assert torch.equal(found, logits)


def test_bfloat16_stays_bfloat16(tmp_path):
    model = random_model("qwen2").to(torch.bfloat16)
    model.save_pretrained(tmp_path / "theirs")
    folder = open_folder(tmp_path / "theirs")
    found = sources(folder, folder.model)
    table = found["embedding/table"].read((slice(None), slice(None)))
    expected = model.get_input_embeddings().weight.detach().view(torch.int16).numpy()
    assert table.dtype.name == "bfloat16"
    np.testing.assert_array_equal(table.view(np.int16), expected)


def test_the_older_form_of_their_config(tmp_path):
    """`config.json` as version 4 wrote it is read as the same model."""
    for name in ("llama, yarn", "gemma3", "gpt_neox", "phi3"):
        path = tmp_path / name
        random_model(name).save_pretrained(path)
        expected = open_folder(path).model
        values = json.loads((path / "config.json").read_text())
        parameters = values.pop("rope_parameters")
        values.pop("dtype")
        if "full_attention" in parameters:
            values["rope_local_base_freq"] = parameters["sliding_attention"]["rope_theta"]
            values["sliding_window_pattern"] = 3
            values.pop("layer_types")
            parameters = parameters["full_attention"]
        base = "rotary_emb_base" if name == "gpt_neox" else "rope_theta"
        values[base] = parameters.pop("rope_theta")
        share = "rotary_pct" if name == "gpt_neox" else "partial_rotary_factor"
        values[share] = parameters.pop("partial_rotary_factor", 1.0)
        kind = parameters.pop("rope_type")
        values["rope_scaling"] = None if kind == "default" else parameters | {"type": kind}
        (path / "config.json").write_text(json.dumps(values))
        assert not differences(open_folder(path).model, expected), name


def test_verify_sees_a_difference(tmp_path):
    random_model("llama").save_pretrained(tmp_path)
    model, variables = on_one_device(tmp_path)
    tokens = random_tokens(model)
    assert compare(tmp_path, model, variables, tokens).relative < 1e-5
    wrong = dataclasses.replace(model, rope_theta=9000.0)
    assert compare(tmp_path, wrong, variables, tokens).relative > 1e-4
