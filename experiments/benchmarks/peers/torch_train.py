"""PyTorch's side of `train_step.py`: transformers' models, and a lean model for `torch.compile`.

Started by the benchmark as `torch_train.py CONTENDER SHAPE DTYPE`; needs torch and transformers.
"""

import contextlib
import os
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[3]))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
import torch.nn.functional as F
from torch import nn

from experiments.benchmarks import harness
from experiments.benchmarks.peers import problem


class Transformers(nn.Module):
    """`LlamaForCausalLM` or `MixtralForCausalLM` with its own loss."""

    def __init__(self, shape: problem.Shape):
        super().__init__()
        from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

        common = {
            "vocab_size": shape.vocab,
            "hidden_size": shape.width,
            "intermediate_size": shape.ffn,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "max_position_embeddings": shape.sequence,
            "rms_norm_eps": problem.NORM_EPSILON,
            "tie_word_embeddings": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": problem.ROPE_THETA},
        }
        if shape.experts:
            config = MixtralConfig(
                num_local_experts=shape.experts,
                num_experts_per_tok=shape.top_k,
                sliding_window=None,
                **common,
            )
            self.model = MixtralForCausalLM(config)
        else:
            self.model = LlamaForCausalLM(LlamaConfig(**common))
        tensors = {k: torch.from_numpy(v) for k, v in problem.weights(shape).items()}
        self.model.load_state_dict(tensors, strict=True)

    def forward(self, ids):
        return self.model(input_ids=ids, labels=ids, use_cache=False).loss


class LeanBlock(nn.Module):
    """Attention and feed-forward with fused projections, nothing else."""

    def __init__(self, shape: problem.Shape, tensors: dict, prefix: str):
        super().__init__()
        self.shape = shape
        attention = prefix + "self_attn."
        qkv = torch.cat([tensors[f"{attention}{n}_proj.weight"] for n in "qkv"])
        self.qkv = nn.Parameter(qkv)
        self.output = nn.Parameter(tensors[attention + "o_proj.weight"])
        self.norms = nn.ParameterList(torch.ones(shape.width) for _ in range(2))
        mlp = prefix + "mlp."
        if shape.experts:
            self.router = nn.Parameter(tensors[mlp + "gate.weight"])
            self.gate_up = nn.Parameter(tensors[mlp + "experts.gate_up_proj"])
            self.down = nn.Parameter(tensors[mlp + "experts.down_proj"])
        else:
            both = [tensors[mlp + "gate_proj.weight"], tensors[mlp + "up_proj.weight"]]
            self.gate_up = nn.Parameter(torch.cat(both))
            self.down = nn.Parameter(tensors[mlp + "down_proj.weight"])

    def norm(self, x, i):
        return F.rms_norm(x, (x.shape[-1],), self.norms[i].to(x.dtype), problem.NORM_EPSILON)

    def attention(self, x, cos, sin):
        rows, length, _ = x.shape
        h, k = self.shape.heads, self.shape.kv_heads
        qkv = F.linear(x, self.qkv).view(rows, length, h + 2 * k, -1).transpose(1, 2)
        query, key, value = qkv.split([h, k, k], 1)
        query, key = (rotate(a, cos, sin) for a in (query, key))
        key, value = (a.repeat_interleave(h // k, 1) for a in (key, value))
        y = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return F.linear(y.transpose(1, 2).reshape(rows, length, -1), self.output)

    def mixture(self, x):
        """Tokens sorted by expert, then one pair of matmuls per expert's contiguous rows."""
        flat = x.reshape(-1, x.shape[-1])
        scores = F.linear(flat.float(), self.router.float()).softmax(-1)
        weight, expert = scores.topk(self.shape.top_k, -1)
        weight = (weight / weight.sum(-1, keepdim=True)).to(x.dtype)
        order = expert.reshape(-1).argsort(stable=True)
        sizes = torch.bincount(expert.reshape(-1), minlength=self.shape.experts).tolist()
        token = order // self.shape.top_k
        outputs = []
        for e, rows in enumerate(flat[token].split(sizes)):
            gate, up = F.linear(rows, self.gate_up[e]).chunk(2, -1)
            outputs.append(F.linear(F.silu(gate) * up, self.down[e]))
        mixed = torch.cat(outputs) * weight.reshape(-1)[order, None]
        return torch.zeros_like(flat).index_add_(0, token, mixed.to(flat.dtype)).view_as(x)

    def forward(self, x, cos, sin):
        x = x + self.attention(self.norm(x, 0), cos, sin)
        y = self.norm(x, 1)
        if self.shape.experts:
            return x + self.mixture(y)
        gate, up = F.linear(y, self.gate_up).chunk(2, -1)
        return x + F.linear(F.silu(gate) * up, self.down)


def rotate(x, cos, sin):
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], -1)
    return x * cos.to(x.dtype) + turned * sin.to(x.dtype)


class Lean(nn.Module):
    """The whole model in a few lines, for `torch.compile` to make the most of."""

    def __init__(self, shape: problem.Shape):
        super().__init__()
        tensors = {k: torch.from_numpy(v) for k, v in problem.weights(shape).items()}
        self.embedding = nn.Parameter(tensors["model.embed_tokens.weight"])
        self.blocks = nn.ModuleList(
            LeanBlock(shape, tensors, f"model.layers.{i}.") for i in range(shape.layers)
        )
        self.norm = nn.Parameter(torch.ones(shape.width))
        self.head = nn.Parameter(tensors["lm_head.weight"])
        frequency = problem.ROPE_THETA ** (-torch.arange(0, shape.head_dim, 2) / shape.head_dim)
        angle = torch.outer(torch.arange(shape.sequence).float(), frequency).repeat(1, 2)
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())

    def forward(self, ids):
        x = F.embedding(ids, self.embedding)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        x = F.rms_norm(x, (x.shape[-1],), self.norm.to(x.dtype), problem.NORM_EPSILON)
        logits = F.linear(x[:, :-1], self.head).float()
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def serve(run, parameters, shape: problem.Shape, dtype: str) -> None:
    """Takes three AdamW steps on `parameters`, and more when told to; `run(ids)` is the loss."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    rates = problem.ADAMW
    optimizer = torch.optim.AdamW(
        parameters,
        lr=rates["learning_rate"],
        betas=(rates["b1"], rates["b2"]),
        eps=rates["epsilon"],
        weight_decay=rates["weight_decay"],
        fused=True,
    )
    batches = [torch.from_numpy(b) for b in problem.token_batches(shape)]
    losses = []

    def step():
        autocast = torch.autocast("cpu", torch.bfloat16)
        with autocast if dtype == "bfloat16" else contextlib.nullcontext():
            loss = run(batches[len(losses) % len(batches)])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())

    start = time.perf_counter()
    for _ in range(3):
        step()
    harness.serve(step, {"compile_seconds": time.perf_counter() - start, "losses": losses[:3]})


def main():
    contender, shape_name, dtype = sys.argv[1:]
    shape = problem.SHAPES[shape_name]
    model = Transformers(shape) if contender == "transformers" else Lean(shape)
    run = torch.compile(model) if contender == "lean compiled torch" else model
    serve(run, model.parameters(), shape, dtype)


if __name__ == "__main__":
    main()
