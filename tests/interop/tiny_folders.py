"""Model folders with random weights, written by our own exporter: no other library is needed."""

import dataclasses
import json

import numpy as np

from jgpt.config import ModelConfig
from jgpt.interop.configs import read_config
from jgpt.interop.export import export
from jgpt.interop.families import FAMILIES
from jgpt.interop.weights import unrolled_shapes

GATED = {
    "vocab_size": 60,
    "num_hidden_layers": 3,
    "hidden_size": 24,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
    "head_dim": 8,
}
LATENT = {k: v for k, v in GATED.items() if k != "head_dim"} | {
    "num_key_value_heads": 6,
    "kv_lora_rank": 10,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 5,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
}
CONFIGS = {
    "llama": GATED | {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "mistral": GATED | {"sliding_window": 5, "tie_word_embeddings": True},
    "mixtral": GATED | {"num_local_experts": 4},
    "qwen2": GATED | {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "qwen3": GATED,
    "qwen3_moe": GATED
    | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    | {"decoder_sparse_step": 1, "mlp_only_layers": [0]},
    "gemma2": GATED | {"sliding_window": 5, "query_pre_attn_scalar": 24},
    "gemma3_text": GATED | {"sliding_window": 5, "sliding_window_pattern": 3},
    "gpt2": {"vocab_size": 60, "n_layer": 3, "n_embd": 24, "n_head": 3, "n_positions": 64},
    "gpt_neox": {k: v for k, v in GATED.items() if k not in ("num_key_value_heads", "head_dim")}
    | {"rotary_pct": 0.5, "use_parallel_residual": False},
    "deepseek_v2": LATENT | {"q_lora_rank": None, "num_experts_per_tok": 2},
    "deepseek_v3": LATENT
    | {"q_lora_rank": 12, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 2},
    "phi3": {k: v for k, v in GATED.items() if k != "head_dim"} | {"partial_rotary_factor": 0.5},
}
"""`config.json` of a tiny model by family, in the form of version 4."""


def model(name: str, **changes) -> ModelConfig:
    """The tiny model of a family."""
    return dataclasses.replace(read_config(FAMILIES[name], CONFIGS[name]), **changes)


def weights(config: ModelConfig, dtype=np.float32, seed: int = 0) -> dict[str, np.ndarray]:
    """Random parameters by path, layers unrolled."""
    generator = np.random.default_rng(seed)
    return {
        path: (0.1 * generator.standard_normal(shape)).astype(dtype)
        for path, shape in unrolled_shapes(config).items()
    }


def write(path, name: str, dtype=np.float32, **options) -> dict[str, np.ndarray]:
    """Writes the tiny model of a family; its weights."""
    config = model(name)
    values = weights(config, dtype)
    export(path, config, values.__getitem__, dtype=np.dtype(dtype), family=name, **options)
    return values


def edit_json(path, **changes) -> None:
    """Changes fields of a JSON file."""
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | changes))
