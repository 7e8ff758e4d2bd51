"""Llama 2 and 3 (ELYZA, Swallow, llm-jp-3, Sarashina), and what other families share with them."""

from jgpt.interop.description import Always, Choice, Family, Field, linear, norm, only, tensor
from jgpt.interop.rope import Rope

SIZES = (
    Field("vocab_size", "vocab_size"),
    Field("num_layers", "num_hidden_layers"),
    Field("hidden_size", "hidden_size"),
    Field("num_heads", "num_attention_heads"),
    Field("num_kv_heads", "num_key_value_heads", None, none=0),
    Field("intermediate_size", "intermediate_size"),
    Field("max_length", "max_position_embeddings", 2048),
    Field("norm_epsilon", "rms_norm_eps", 1e-6),
)

TENSORS = (
    tensor("model.embed_tokens.weight", "embedding/table"),
    *norm("model.layers.{i}.input_layernorm", "layers_{i}/attention_norm"),
    *linear("model.layers.{i}.self_attn.q_proj", "layers_{i}/attention/query"),
    *linear("model.layers.{i}.self_attn.k_proj", "layers_{i}/attention/key"),
    *linear("model.layers.{i}.self_attn.v_proj", "layers_{i}/attention/value"),
    *linear("model.layers.{i}.self_attn.o_proj", "layers_{i}/attention/output"),
    *norm("model.layers.{i}.post_attention_layernorm", "layers_{i}/ffn_norm"),
    *linear("model.layers.{i}.mlp.gate_proj", "layers_{i}/ffn/gate"),
    *linear("model.layers.{i}.mlp.up_proj", "layers_{i}/ffn/up"),
    *linear("model.layers.{i}.mlp.down_proj", "layers_{i}/ffn/down"),
    *norm("model.norm", "final_norm"),
    *linear("lm_head", "head"),
)

BIASES = Choice(
    "attention_bias",
    (
        (False, {"attention_bias": False, "attention_output_bias": False}),
        (True, {"attention_bias": True, "attention_output_bias": True}),
    ),
    False,
)
"""On all four maps of attention, or on none."""

HEAD_DIM = Field("head_dim", "head_dim", None, none=0)
UNTIED = Field("tied_embeddings", "tie_word_embeddings", False)
"""A head of its own where nothing is said."""

STYLE = Always({"norm": "rmsnorm", "ffn": "swiglu", "position": "rope"})
ACTIVATION = only("hidden_act", "silu")
OLD_BUFFERS = (r"rotary_emb\.inv_freq$",)

LLAMA = Family(
    name="llama",
    architecture="LlamaForCausalLM",
    settings=(
        *SIZES,
        HEAD_DIM,
        UNTIED,
        BIASES,
        Field("ffn_bias", "mlp_bias", False),
        ACTIVATION,
        only("pretraining_tp", 1, 2, 4, 8),
        STYLE,
        Rope(),
    ),
    tensors=TENSORS,
    ignored=OLD_BUFFERS,
)
