"""GPT-2 (rinna): learned positions; maps stored (in, out), query, key and value side by side."""

from jgpt.interop.description import Always, Choice, Family, Field, linear, norm, only, tensor
from jgpt.interop.layer_kinds import Width
from jgpt.interop.transforms import SAME, Fused

GELUS = (
    ("gelu_new", {"gelu_approximate": True}),
    ("gelu_pytorch_tanh", {"gelu_approximate": True}),
    ("gelu_fast", {"gelu_approximate": True}),
    ("gelu", {"gelu_approximate": False}),
)
"""The tanh form under its names, and the exact one."""

BIASED_GELU = Always(
    {
        "norm": "layernorm",
        "ffn": "gelu",
        "ffn_bias": True,
        "attention_bias": True,
        "attention_output_bias": True,
    }
)
_QKV = ("query", "key", "value")


def _in_out(theirs: str, ours: str):
    return tensor(f"{theirs}.weight", f"{ours}/kernel"), tensor(f"{theirs}.bias", f"{ours}/bias")


GPT2 = Family(
    name="gpt2",
    architecture="GPT2LMHeadModel",
    settings=(
        Field("vocab_size", "vocab_size", 50257),
        Field("num_layers", "n_layer", 12),
        Field("hidden_size", "n_embd", 768),
        Field("num_heads", "n_head", 12),
        Field("max_length", "n_positions", 1024),
        Field("norm_epsilon", "layer_norm_epsilon", 1e-5),
        Field("tied_embeddings", "tie_word_embeddings", True),
        Width("n_inner", 4),
        Choice("activation_function", GELUS, "gelu_new"),
        BIASED_GELU,
        Always({"position": "learned"}),
        only("scale_attn_weights", True),
        only("scale_attn_by_inverse_layer_idx", False),
        only("add_cross_attention", False),
    ),
    tensors=(
        tensor("transformer.wte.weight", "embedding/table"),
        tensor("transformer.wpe.weight", "position/table"),
        *norm("transformer.h.{i}.ln_1", "layers_{i}/attention_norm"),
        tensor(
            "transformer.h.{i}.attn.c_attn.weight",
            [f"layers_{{i}}/attention/{name}/kernel" for name in _QKV],
            Fused(SAME, axis=1),
        ),
        tensor(
            "transformer.h.{i}.attn.c_attn.bias",
            [f"layers_{{i}}/attention/{name}/bias" for name in _QKV],
            Fused(SAME, axis=0),
        ),
        *_in_out("transformer.h.{i}.attn.c_proj", "layers_{i}/attention/output"),
        *norm("transformer.h.{i}.ln_2", "layers_{i}/ffn_norm"),
        *_in_out("transformer.h.{i}.mlp.c_fc", "layers_{i}/ffn/up"),
        *_in_out("transformer.h.{i}.mlp.c_proj", "layers_{i}/ffn/down"),
        *norm("transformer.ln_f", "final_norm"),
        *linear("lm_head", "head"),
    ),
    ignored=(r"\.attn\.(masked_)?bias$",),
    optional_prefix="transformer.",
)
