"""Qwen2, 2.5 and 3, and the mixture of experts of Qwen3 (TinySwallow, ABEJA)."""

from jgpt.interop.description import Always, Family, Field, linear, norm, only, tensor
from jgpt.interop.families.llama import (
    ACTIVATION,
    BIASES,
    HEAD_DIM,
    OLD_BUFFERS,
    SIZES,
    STYLE,
    TENSORS,
    UNTIED,
)
from jgpt.interop.layer_kinds import SparseLayers, Windows
from jgpt.interop.rope import Rope
from jgpt.interop.transforms import TRANSPOSED

QWEN2 = Family(
    name="qwen2",
    architecture="Qwen2ForCausalLM",
    settings=(
        *SIZES,
        HEAD_DIM,
        UNTIED,
        ACTIVATION,
        STYLE,
        Always({"attention_bias": True}),
        Rope(),
        Windows(4096, "after"),
    ),
    tensors=TENSORS,
    ignored=OLD_BUFFERS,
)

_WIDE_HEADS = Field("head_dim", "head_dim", 128, none=0)
_NORMS = (
    *norm("model.layers.{i}.self_attn.q_norm", "layers_{i}/attention/query_norm"),
    *norm("model.layers.{i}.self_attn.k_norm", "layers_{i}/attention/key_norm"),
)

QWEN3 = Family(
    name="qwen3",
    architecture="Qwen3ForCausalLM",
    settings=(
        *SIZES,
        _WIDE_HEADS,
        UNTIED,
        ACTIVATION,
        STYLE,
        BIASES,
        Always({"qk_norm": True}),
        Rope(),
        Windows(4096, "after"),
    ),
    tensors=(*TENSORS, *_NORMS),
    ignored=OLD_BUFFERS,
)

_EXPERT = "model.layers.{i}.mlp.experts.{e}"

QWEN3_MOE = Family(
    name="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    settings=(
        *SIZES,
        HEAD_DIM,
        UNTIED,
        ACTIVATION,
        STYLE,
        BIASES,
        Always({"qk_norm": True, "moe.router": "softmax"}),
        Rope(),
        only("use_sliding_window", False),
        Field("moe.num_experts", "num_experts", 128, also="num_local_experts"),
        Field("moe.top_k", "num_experts_per_tok", 8),
        Field("moe.intermediate_size", "moe_intermediate_size", 768),
        Field("moe.renormalize", "norm_topk_prob", False),
        SparseLayers(),
    ),
    tensors=(
        *TENSORS,
        *_NORMS,
        *linear("model.layers.{i}.mlp.gate", "layers_{i}/moe/router"),
        tensor(f"{_EXPERT}.gate_proj.weight", "layers_{i}/moe/gate/kernel", TRANSPOSED),
        tensor(f"{_EXPERT}.up_proj.weight", "layers_{i}/moe/up/kernel", TRANSPOSED),
        tensor(f"{_EXPERT}.down_proj.weight", "layers_{i}/moe/down/kernel", TRANSPOSED),
    ),
    ignored=OLD_BUFFERS,
)
