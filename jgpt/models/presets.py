"""The architectures of public models, exact in size: `PRESETS[name]()` is a `ModelConfig`.

Each factory takes overrides: `PRESETS["llama3-8b"](num_layers=2)`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

from jgpt.config import LatentConfig, ModelConfig, MoEConfig, RopeScaling


def _model(
    overrides: dict[str, Any], base: Callable[..., ModelConfig], **settings: Any
) -> ModelConfig:
    return base(**settings | overrides)


def gpt2(**overrides: Any) -> ModelConfig:
    """GPT-2 small (Radford et al. 2019): learned positions, LayerNorm, biases, tied head."""
    return _model(
        overrides,
        ModelConfig,
        vocab_size=50257,
        num_layers=12,
        hidden_size=768,
        num_heads=12,
        intermediate_size=3072,
        max_length=1024,
        position="learned",
        norm="layernorm",
        ffn="gelu",
        ffn_bias=True,
        attention_bias=True,
        attention_output_bias=True,
        tied_embeddings=True,
    )


def gpt_neox(**overrides: Any) -> ModelConfig:
    """rinna/japanese-gpt-neox-3.6b: GPT-NeoX (Black et al. 2022), whole heads rotated.

    The sublayers follow one another, as rinna trained it; NeoX-20B has `parallel_block=True` and
    `rope_fraction=0.25`.
    """
    return _model(
        overrides,
        ModelConfig,
        vocab_size=32000,
        num_layers=36,
        hidden_size=2816,
        num_heads=22,
        intermediate_size=11264,
        max_length=2048,
        norm="layernorm",
        ffn="gelu",
        gelu_approximate=False,
        ffn_bias=True,
        attention_bias=True,
        attention_output_bias=True,
    )


def llama2_7b(**overrides: Any) -> ModelConfig:
    """Llama 2 7B (Touvron et al. 2023)."""
    return _model(
        overrides,
        ModelConfig,
        vocab_size=32000,
        num_layers=32,
        hidden_size=4096,
        num_heads=32,
        intermediate_size=11008,
        max_length=4096,
    )


def llama3_8b(**overrides: Any) -> ModelConfig:
    """Llama 3 8B (Dubey et al. 2024); 3.1 adds `rope_scaling` of kind llama3, factor 8."""
    return _model(
        overrides,
        ModelConfig,
        vocab_size=128256,
        num_layers=32,
        hidden_size=4096,
        num_heads=32,
        num_kv_heads=8,
        intermediate_size=14336,
        max_length=8192,
        rope_theta=500000.0,
    )


def llama_1b(**overrides: Any) -> ModelConfig:
    """Llama 3.2 1B: tied head, positions stretched 32 times."""
    return _model(
        overrides,
        llama3_8b,
        num_layers=16,
        hidden_size=2048,
        intermediate_size=8192,
        max_length=131072,
        rope_scaling=RopeScaling(kind="llama3", factor=32.0, original_length=8192),
        tied_embeddings=True,
    )


def mistral_7b(**overrides: Any) -> ModelConfig:
    """Mistral 7B v0.1 (Jiang et al. 2023): every layer sees a window of 4096 tokens."""
    return _model(
        overrides,
        ModelConfig,
        vocab_size=32000,
        num_layers=32,
        hidden_size=4096,
        num_heads=32,
        num_kv_heads=8,
        intermediate_size=14336,
        max_length=32768,
        attention_pattern=("local",),
        window=4096,
    )


def mixtral_8x7b(**overrides: Any) -> ModelConfig:
    """Mixtral 8x7B (Jiang et al. 2024): 8 experts, 2 per token, no window."""
    return _model(
        overrides,
        mistral_7b,
        attention_pattern=("global",),
        window=0,
        rope_theta=1e6,
        ffn_pattern=("moe",),
        moe=MoEConfig(num_experts=8, top_k=2),
    )


def qwen2_0_5b(**overrides: Any) -> ModelConfig:
    """Qwen2.5 0.5B (Qwen Team 2024): biases on query, key and value; tied head."""
    return _model(
        overrides,
        ModelConfig,
        vocab_size=151936,
        num_layers=24,
        hidden_size=896,
        num_heads=14,
        num_kv_heads=2,
        intermediate_size=4864,
        max_length=32768,
        rope_theta=1e6,
        norm_epsilon=1e-6,
        attention_bias=True,
        tied_embeddings=True,
    )


def qwen3_0_6b(**overrides: Any) -> ModelConfig:
    """Qwen3 0.6B (Qwen Team 2025): query and key norms, heads wider than the model."""
    return _model(
        overrides,
        ModelConfig,
        vocab_size=151936,
        num_layers=28,
        hidden_size=1024,
        num_heads=16,
        num_kv_heads=8,
        head_dim=128,
        intermediate_size=3072,
        max_length=40960,
        rope_theta=1e6,
        norm_epsilon=1e-6,
        qk_norm=True,
        tied_embeddings=True,
    )


def gemma2_2b(**overrides: Any) -> ModelConfig:
    """Gemma 2 2B (Gemma Team 2024): local and global layers in turn, sandwich norms, softcaps."""
    return _model(
        overrides,
        ModelConfig,
        vocab_size=256000,
        num_layers=26,
        hidden_size=2304,
        num_heads=8,
        num_kv_heads=4,
        head_dim=256,
        intermediate_size=9216,
        max_length=8192,
        attention_pattern=("local", "global"),
        window=4096,
        attention_softcap=50.0,
        final_softcap=30.0,
        norm_placement="sandwich",
        norm_unit_offset=True,
        norm_epsilon=1e-6,
        ffn="geglu",
        embedding_scale=True,
        tied_embeddings=True,
    )


def deepseek_moe_16b(**overrides: Any) -> ModelConfig:
    """DeepSeekMoE 16B (Dai et al. 2024): 64 small experts, 6 per token, 2 shared, first dense."""
    return _model(
        overrides,
        ModelConfig,
        vocab_size=102400,
        num_layers=28,
        hidden_size=2048,
        num_heads=16,
        intermediate_size=10944,
        max_length=4096,
        norm_epsilon=1e-6,
        ffn_pattern=("moe",),
        num_leading_dense=1,
        moe=MoEConfig(
            num_experts=64,
            top_k=6,
            intermediate_size=1408,
            num_shared_experts=2,
            renormalize=False,
        ),
    )


def deepseek_moe_small(**overrides: Any) -> ModelConfig:
    """The same style in 0.2e9 parameters, balanced without an auxiliary loss as DeepSeek-V3 is."""
    return _model(
        overrides,
        deepseek_moe_16b,
        vocab_size=32000,
        num_layers=12,
        hidden_size=512,
        num_heads=8,
        intermediate_size=1408,
        moe=MoEConfig(
            num_experts=32,
            top_k=4,
            intermediate_size=256,
            num_shared_experts=1,
            router="sigmoid",
            selection_bias=True,
            routed_scale=2.5,
            balance_coefficient=1e-4,
        ),
    )


def deepseek_v2_lite(**overrides: Any) -> ModelConfig:
    """DeepSeek-V2-Lite (DeepSeek-AI 2024, appendix B): latent attention, 64 experts."""
    return _model(
        overrides,
        deepseek_moe_16b,
        num_layers=27,
        max_length=163840,
        latent=LatentConfig(kv_rank=512),
        rope_scaling=RopeScaling("yarn", 40.0, 4096, attention_factor=1.0),
        attention_scale=(0.1 * 0.707 * math.log(40.0) + 1.0) ** 2,
    )


def deepseek_v3(**overrides: Any) -> ModelConfig:
    """DeepSeek-V3 (DeepSeek-AI 2024), without the layer that predicts a second token."""
    return _model(
        overrides,
        deepseek_v2_lite,
        vocab_size=129280,
        num_layers=61,
        hidden_size=7168,
        num_heads=128,
        intermediate_size=18432,
        num_leading_dense=3,
        latent=LatentConfig(kv_rank=512, query_rank=1536),
        attention_scale=(0.1 * math.log(40.0) + 1.0) ** 2,
        moe=MoEConfig(
            num_experts=256,
            top_k=8,
            intermediate_size=2048,
            num_shared_experts=1,
            router="sigmoid",
            selection_bias=True,
            num_groups=8,
            top_groups=4,
            routed_scale=2.5,
            balance_coefficient=1e-4,
        ),
    )


PRESETS: dict[str, Callable[..., ModelConfig]] = {
    "gpt2-small": gpt2,
    "gpt2-medium": functools.partial(
        gpt2, num_layers=24, hidden_size=1024, num_heads=16, intermediate_size=4096
    ),
    "gpt-neox-3.6b": gpt_neox,
    "llama2-7b": llama2_7b,
    "llama3-8b": llama3_8b,
    "llama-1b": llama_1b,
    "mistral-7b": mistral_7b,
    "mixtral-8x7b": mixtral_8x7b,
    "qwen2.5-0.5b": qwen2_0_5b,
    "qwen3-0.6b": qwen3_0_6b,
    "gemma2-2b": gemma2_2b,
    "deepseek-moe-16b": deepseek_moe_16b,
    "deepseek-moe-small": deepseek_moe_small,
    "deepseek-v2-lite": deepseek_v2_lite,
    "deepseek-v3": deepseek_v3,
}
