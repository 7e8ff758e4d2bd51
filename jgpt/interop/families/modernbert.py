"""ModernBERT (sbintuitions, llm-jp): pre norms, rotary positions, windows, no biases."""

from jgpt.interop.description import Always, Choice, Family, Field, linear, norm, only, tensor
from jgpt.interop.encoders import (
    MASKED,
    NO_LABELS,
    PLAIN,
    ClassifierPooling,
    Heads,
    ModernRope,
    ModernWindows,
    sequence,
)
from jgpt.interop.families.gpt2 import GELUS
from jgpt.interop.transforms import TRANSPOSED, Fused

_QKV = ("query", "key", "value")

MODERNBERT = Family(
    name="modernbert",
    architecture="ModernBertForMaskedLM",
    settings=(
        Field("vocab_size", "vocab_size"),
        Field("num_layers", "num_hidden_layers"),
        Field("hidden_size", "hidden_size"),
        Field("num_heads", "num_attention_heads"),
        Field("intermediate_size", "intermediate_size"),
        Field("max_length", "max_position_embeddings", 8192),
        Field("norm_epsilon", "norm_eps", 1e-5),
        Field("tied_embeddings", "tie_word_embeddings", True),
        Choice("hidden_activation", GELUS, "gelu"),
        Always(
            {
                "attention": "bidirectional",
                "position": "rope",
                "norm": "layernorm",
                "norm_bias": False,
                "norm_placement": "pre",
                "first_attention_norm": False,
                "embedding_norm": True,
                "ffn": "geglu",
            }
        ),
        ModernWindows(),
        ModernRope(),
        only("norm_bias", False),
        only("attention_bias", False),
        only("mlp_bias", False),
        only("classifier_bias", False),
        only("decoder_bias", True),
        only("classifier_activation", "gelu"),
        Heads(
            (
                ("ModernBertForMaskedLM", MASKED),
                ("ModernBertModel", PLAIN | NO_LABELS),
                ("ModernBertForSequenceClassification", sequence("cls", "gelu_norm")),
                ("ModernBertForSequenceClassification", sequence("mean", "gelu_norm")),
            )
        ),
        ClassifierPooling(),
    ),
    tensors=(
        tensor("model.embeddings.tok_embeddings.weight", "embedding/table"),
        *norm("model.embeddings.norm", "embedding_norm"),
        *norm("model.layers.{i}.attn_norm", "layers_{i}/attention_norm"),
        tensor(
            "model.layers.{i}.attn.Wqkv.weight",
            [f"layers_{{i}}/attention/{name}/kernel" for name in _QKV],
            Fused(TRANSPOSED, axis=0),
        ),
        *linear("model.layers.{i}.attn.Wo", "layers_{i}/attention/output"),
        *norm("model.layers.{i}.mlp_norm", "layers_{i}/ffn_norm"),
        tensor(
            "model.layers.{i}.mlp.Wi.weight",
            [f"layers_{{i}}/ffn/{name}/kernel" for name in ("gate", "up")],
            Fused(TRANSPOSED, axis=0),
        ),
        *linear("model.layers.{i}.mlp.Wo", "layers_{i}/ffn/down"),
        *norm("model.final_norm", "final_norm"),
        *linear("head.dense", "head_transform/dense"),
        *norm("head.norm", "head_transform/norm"),
        *linear("head.dense", "pooler/dense"),
        *norm("head.norm", "pooler/norm"),
        *linear("decoder", "head"),
        *linear("classifier", "classifier"),
    ),
    optional_prefix="model.",
)
