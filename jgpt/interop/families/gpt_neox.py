"""GPT-NeoX (rinna, CyberAgent): query, key and value in one map, head by head."""

from jgpt.interop.description import Always, Choice, Family, Field, linear, norm, tensor
from jgpt.interop.families.gpt2 import GELUS
from jgpt.interop.families.llama import BIASES, UNTIED
from jgpt.interop.rope import Rope
from jgpt.interop.transforms import SAME, TRANSPOSED, FusedPerHead

_LAYER = "gpt_neox.layers.{i}"
_QKV = ("query", "key", "value")

GPT_NEOX = Family(
    name="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    settings=(
        Field("vocab_size", "vocab_size", 50432),
        Field("num_layers", "num_hidden_layers", 44),
        Field("hidden_size", "hidden_size", 6144),
        Field("num_heads", "num_attention_heads", 64),
        Field("intermediate_size", "intermediate_size", 24576),
        Field("max_length", "max_position_embeddings", 2048),
        Field("norm_epsilon", "layer_norm_eps", 1e-5),
        Field("parallel_block", "use_parallel_residual", True),
        UNTIED,
        Choice("hidden_act", (GELUS[-1], *GELUS[:-1]), "gelu"),
        Always({"norm": "layernorm", "ffn": "gelu", "ffn_bias": True, "position": "rope"}),
        BIASES,
        Rope(fraction=0.25, theta_name="rotary_emb_base", fraction_name="rotary_pct"),
    ),
    tensors=(
        tensor("gpt_neox.embed_in.weight", "embedding/table"),
        *norm(f"{_LAYER}.input_layernorm", "layers_{i}/attention_norm"),
        tensor(
            f"{_LAYER}.attention.query_key_value.weight",
            [f"layers_{{i}}/attention/{name}/kernel" for name in _QKV],
            FusedPerHead(TRANSPOSED),
        ),
        tensor(
            f"{_LAYER}.attention.query_key_value.bias",
            [f"layers_{{i}}/attention/{name}/bias" for name in _QKV],
            FusedPerHead(SAME),
        ),
        *linear(f"{_LAYER}.attention.dense", "layers_{i}/attention/output"),
        *norm(f"{_LAYER}.post_attention_layernorm", "layers_{i}/ffn_norm"),
        *linear(f"{_LAYER}.mlp.dense_h_to_4h", "layers_{i}/ffn/up"),
        *linear(f"{_LAYER}.mlp.dense_4h_to_h", "layers_{i}/ffn/down"),
        *norm("gpt_neox.final_layer_norm", "final_norm"),
        *linear("embed_out", "head"),
    ),
    ignored=(r"\.attention\.(masked_)?bias$", r"rotary_emb\.inv_freq$"),
)
