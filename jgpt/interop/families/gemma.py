"""Gemma 2 and 3 (text): sandwich norms around both sublayers, scales stored minus one."""

from jgpt.interop.description import Always, Family, Field, norm, only
from jgpt.interop.families.llama import BIASES, OLD_BUFFERS, SIZES, TENSORS
from jgpt.interop.layer_kinds import ScoreScale, Windows
from jgpt.interop.rope import Rope

_STYLE = (
    *SIZES,
    Field("head_dim", "head_dim", 256),
    Field("tied_embeddings", "tie_word_embeddings", True),
    BIASES,
    only("hidden_activation", "gelu_pytorch_tanh"),
    only("use_bidirectional_attention", None, False),
    ScoreScale(),
    Always(
        {
            "norm": "rmsnorm",
            "norm_placement": "sandwich",
            "norm_unit_offset": True,
            "ffn": "geglu",
            "gelu_approximate": True,
            "position": "rope",
            "embedding_scale": True,
        }
    ),
)

_TENSORS = (
    *norm("model.layers.{i}.post_attention_layernorm", "layers_{i}/attention_post_norm"),
    *norm("model.layers.{i}.pre_feedforward_layernorm", "layers_{i}/ffn_norm"),
    *norm("model.layers.{i}.post_feedforward_layernorm", "layers_{i}/ffn_post_norm"),
    *TENSORS,
)

GEMMA2 = Family(
    name="gemma2",
    architecture="Gemma2ForCausalLM",
    settings=(
        *_STYLE,
        Field("attention_softcap", "attn_logit_softcapping", 50.0, none=0.0),
        Field("final_softcap", "final_logit_softcapping", 30.0, none=0.0),
        Rope(),
        Windows(4096, "alternate"),
    ),
    tensors=_TENSORS,
    ignored=OLD_BUFFERS,
)

GEMMA3 = Family(
    name="gemma3_text",
    architecture="Gemma3ForCausalLM",
    settings=(
        *_STYLE,
        Field("attention_softcap", "attn_logit_softcapping", None, none=0.0),
        Field("final_softcap", "final_logit_softcapping", None, none=0.0),
        Always({"qk_norm": True}),
        Rope(theta=1e6, local_theta=1e4),
        Windows(4096, "pattern"),
    ),
    tensors=(
        *norm("model.layers.{i}.self_attn.q_norm", "layers_{i}/attention/query_norm"),
        *norm("model.layers.{i}.self_attn.k_norm", "layers_{i}/attention/key_norm"),
        *_TENSORS,
    ),
    ignored=OLD_BUFFERS,
)
