"""Mistral: Llama with a sliding window. Mixtral: experts in the place of the feed-forward layer."""

from jgpt.interop.description import Always, Family, Field, linear, only, tensor
from jgpt.interop.families.llama import (
    ACTIVATION,
    HEAD_DIM,
    OLD_BUFFERS,
    SIZES,
    STYLE,
    TENSORS,
    UNTIED,
)
from jgpt.interop.layer_kinds import Windows
from jgpt.interop.rope import Rope
from jgpt.interop.transforms import TRANSPOSED

MISTRAL = Family(
    name="mistral",
    architecture="MistralForCausalLM",
    settings=(*SIZES, HEAD_DIM, UNTIED, ACTIVATION, STYLE, Rope(), Windows(4096)),
    tensors=TENSORS,
    ignored=OLD_BUFFERS,
)

_EXPERT = "model.layers.{i}.block_sparse_moe.experts.{e}"

MIXTRAL = Family(
    name="mixtral",
    architecture="MixtralForCausalLM",
    settings=(
        *SIZES,
        HEAD_DIM,
        UNTIED,
        ACTIVATION,
        STYLE,
        Rope(theta=1e6),
        Windows(None),
        Field("moe.intermediate_size", "intermediate_size"),
        Field("moe.num_experts", "num_local_experts", 8),
        Field("moe.top_k", "num_experts_per_tok", 2),
        Always({"ffn_pattern": ("moe",), "moe.router": "softmax", "moe.renormalize": True}),
        only("router_jitter_noise", 0.0),
    ),
    tensors=(
        *TENSORS,
        *linear("model.layers.{i}.block_sparse_moe.gate", "layers_{i}/moe/router"),
        tensor(f"{_EXPERT}.w1.weight", "layers_{i}/moe/gate/kernel", TRANSPOSED),
        tensor(f"{_EXPERT}.w3.weight", "layers_{i}/moe/up/kernel", TRANSPOSED),
        tensor(f"{_EXPERT}.w2.weight", "layers_{i}/moe/down/kernel", TRANSPOSED),
    ),
    ignored=OLD_BUFFERS,
)
