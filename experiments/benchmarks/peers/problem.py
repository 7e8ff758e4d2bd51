"""The same problem for every contender: shapes, initial weights, tokens, and the work in FLOPs.

Weights carry Hugging Face's names and (out, in) layout and come from one numpy seed, so that every
contender starts from the same bits and the first losses must agree. NumPy only: it is imported
beside torch as well as beside JAX.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Shape:
    """A decoder of the Llama (or, with experts, Mixtral) form, and its batch."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    sequence: int
    batch: int
    experts: int = 0
    top_k: int = 0

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def tokens(self) -> int:
        return self.batch * self.sequence


SHAPES = {
    "S": Shape(4, 256, 4, 2, 688, 8192, 256, 8),
    "M": Shape(8, 512, 8, 4, 1376, 16384, 512, 4),
    "MoE-S": Shape(4, 256, 4, 2, 352, 8192, 256, 8, experts=8, top_k=2),
    "tiny": Shape(2, 64, 4, 2, 160, 256, 32, 2),
    "tiny-MoE": Shape(2, 64, 4, 2, 96, 256, 32, 2, experts=4, top_k=2),
}
ADAMW = {"learning_rate": 1e-3, "b1": 0.9, "b2": 0.95, "epsilon": 1e-8, "weight_decay": 0.1}
ROPE_THETA = 10000.0
NORM_EPSILON = 1e-5


def weights(shape: Shape, seed: int = 0) -> dict[str, np.ndarray]:
    """Float32 initial weights under Hugging Face's names; experts fused as transformers 5 does."""
    random = np.random.default_rng(seed)

    def normal(*size: int) -> np.ndarray:
        return random.standard_normal(size, dtype=np.float32) * np.float32(0.02)

    d, q, kv = shape.width, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    tensors = {"model.embed_tokens.weight": normal(shape.vocab, d)}
    for i in range(shape.layers):
        layer = f"model.layers.{i}."
        for name, rows in (("q", q), ("k", kv), ("v", kv)):
            tensors[f"{layer}self_attn.{name}_proj.weight"] = normal(rows, d)
        tensors[f"{layer}self_attn.o_proj.weight"] = normal(d, q)
        for name in ("input", "post_attention"):
            tensors[f"{layer}{name}_layernorm.weight"] = np.ones(d, np.float32)
        if shape.experts:
            tensors[f"{layer}mlp.gate.weight"] = normal(shape.experts, d)
            tensors[f"{layer}mlp.experts.gate_up_proj"] = normal(shape.experts, 2 * shape.ffn, d)
            tensors[f"{layer}mlp.experts.down_proj"] = normal(shape.experts, d, shape.ffn)
        else:
            tensors[f"{layer}mlp.gate_proj.weight"] = normal(shape.ffn, d)
            tensors[f"{layer}mlp.up_proj.weight"] = normal(shape.ffn, d)
            tensors[f"{layer}mlp.down_proj.weight"] = normal(d, shape.ffn)
    tensors["model.norm.weight"] = np.ones(d, np.float32)
    tensors["lm_head.weight"] = normal(shape.vocab, d)
    return tensors


def token_batches(shape: Shape, count: int = 4, seed: int = 1) -> list[np.ndarray]:
    """Distinct random [batch, sequence] int64 tokens; a benchmark cycles through them."""
    random = np.random.default_rng(seed)
    size = (shape.batch, shape.sequence)
    return [random.integers(0, shape.vocab, size, dtype=np.int64) for _ in range(count)]


def training_flops(shape: Shape) -> float:
    """FLOPs of a step that does nothing twice: matmuls and causal attention, top-k experts only."""
    d = shape.width
    per_layer = 2 * d * shape.heads * shape.head_dim + 2 * d * shape.kv_heads * shape.head_dim
    if shape.experts:
        per_layer += d * shape.experts + shape.top_k * 3 * d * shape.ffn
    else:
        per_layer += 3 * d * shape.ffn
    attention = 2 * 2 * shape.sequence * shape.heads * shape.head_dim / 2
    forward = 2 * (shape.layers * per_layer + d * shape.vocab) + shape.layers * attention
    return 3.0 * forward * shape.tokens


RANK, ALPHA = 8, 16.0
TARGETS = {
    "qv": ("q_proj", "v_proj"),
    "all-linear": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
}
"""Which maps of every layer LoRA adapts, by the names that `peft` knows."""


def adapters(shape: Shape, targets: str, seed: int = 2) -> dict[str, np.ndarray]:
    """Float32 A [r, in] and B [out, r] of a dense shape, under `peft`'s names.

    B is not 0, so that the first losses show that adapters are computed with.
    """
    random = np.random.default_rng(seed)
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    sizes = {
        "self_attn.q_proj": (shape.width, q),
        "self_attn.k_proj": (shape.width, kv),
        "self_attn.v_proj": (shape.width, kv),
        "self_attn.o_proj": (q, shape.width),
        "mlp.gate_proj": (shape.width, shape.ffn),
        "mlp.up_proj": (shape.width, shape.ffn),
        "mlp.down_proj": (shape.ffn, shape.width),
    }
    tensors = {}
    for i in range(shape.layers):
        for name, (fan_in, out) in sizes.items():
            if name.split(".")[1] in TARGETS[targets]:
                for part, size in (("A", (RANK, fan_in)), ("B", (out, RANK))):
                    values = random.standard_normal(size, dtype=np.float32) * np.float32(0.02)
                    tensors[f"model.layers.{i}.{name}.lora_{part}.weight"] = values
    return tensors


def lora_flops(shape: Shape, targets: str) -> float:
    """FLOPs of a LoRA step: no product for a frozen weight's gradient; the adapters' own in full.

    Attention's products have their gradients as in full training; of a frozen map there is `W x`
    and the gradient of x, which the queries, keys and values of the first layer do not need.
    """
    attention = shape.layers * 2 * 2 * shape.sequence * shape.heads * shape.head_dim / 2
    maps = training_flops(shape) / shape.tokens / 3 - attention
    first = 2 * shape.width * (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    thin = 2 * sum(tensor.size for tensor in adapters(shape, targets).values())
    return shape.tokens * (2 * maps - first + 3 * attention + 3 * thin)
