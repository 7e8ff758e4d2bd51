"""Whole steps, taken in turn: what `train_step.py` and `lora_step.py` share.

This project's contender (config, weights, batches, and the loop that steps when told to), and the
comparison of contenders. JAX is imported inside of functions: whoever compares needs none.
"""

import time
from collections.abc import Callable
from typing import Any

from experiments.benchmarks import harness
from experiments.benchmarks.peers import problem


def run_config(shape: problem.Shape, dtype: str, **more: dict):
    """The run's config for a shape; no clipping and no auxiliary losses, as in the peers.

    Args:
        more: further parts of the config, such as `peft`.
    """
    from jgpt.config import from_config_dict

    model = {
        "vocab_size": shape.vocab,
        "num_layers": shape.layers,
        "hidden_size": shape.width,
        "num_heads": shape.heads,
        "num_kv_heads": shape.kv_heads,
        "intermediate_size": shape.ffn,
        "norm_epsilon": problem.NORM_EPSILON,
        "rope_theta": problem.ROPE_THETA,
        "dtype": dtype,
        "scan_layers": "off",
    }
    if shape.experts:
        model["ffn_pattern"] = ("moe",)
        model["moe"] = {
            "num_experts": shape.experts,
            "top_k": shape.top_k,
            "balance_coefficient": 0.0,
            "z_coefficient": 0.0,
        }
    optimizer = {**problem.ADAMW, "schedule": "constant", "warmup_steps": 0, "clip_norm": 0.0}
    return from_config_dict({"model": model, "optimizer": optimizer, **more})


def params(shape: problem.Shape) -> dict:
    """The shared initial weights as this project's parameter tree."""
    tensors = problem.weights(shape)
    tree = {
        "embedding": {"table": tensors["model.embed_tokens.weight"]},
        "final_norm": {"scale": tensors["model.norm.weight"]},
        "head": {"kernel": tensors["lm_head.weight"].T},
    }
    attention = {"query": "q", "key": "k", "value": "v", "output": "o"}
    for i in range(shape.layers):
        prefix = f"model.layers.{i}."
        layer = {
            "attention_norm": {"scale": tensors[prefix + "input_layernorm.weight"]},
            "ffn_norm": {"scale": tensors[prefix + "post_attention_layernorm.weight"]},
            "attention": {
                ours: {"kernel": tensors[f"{prefix}self_attn.{theirs}_proj.weight"].T}
                for ours, theirs in attention.items()
            },
        }
        mlp = prefix + "mlp."
        if shape.experts:
            both = tensors[mlp + "experts.gate_up_proj"].transpose(0, 2, 1)
            layer["moe"] = {
                "router": {"kernel": tensors[mlp + "gate.weight"].T},
                "gate": {"kernel": both[..., : shape.ffn]},
                "up": {"kernel": both[..., shape.ffn :]},
                "down": {"kernel": tensors[mlp + "experts.down_proj"].transpose(0, 2, 1)},
            }
        else:
            layer["ffn"] = {
                name: {"kernel": tensors[f"{mlp}{name}_proj.weight"].T}
                for name in ("gate", "up", "down")
            }
        tree[f"layers_{i}"] = layer
    return tree


def batches(shape: problem.Shape) -> list[dict[str, Any]]:
    """The shared tokens as this project's batches; the last token of a row has no target."""
    import jax.numpy as jnp
    import numpy as np

    weights = np.ones((shape.batch, shape.sequence), np.float32)
    weights[:, -1] = 0
    return [
        {
            "inputs": jnp.asarray(tokens, jnp.int32),
            "targets": jnp.asarray(np.roll(tokens, -1, axis=1), jnp.int32),
            "loss_weights": jnp.asarray(weights),
        }
        for tokens in problem.token_batches(shape)
    ]


def serve(train_step: Callable, state: Any, shape: problem.Shape) -> None:
    """Compiles a jitted training step, takes the first three, and more when told to."""
    turn = batches(shape)
    start = time.perf_counter()
    compiled = train_step.lower(state, turn[0]).compile()
    compile_seconds = time.perf_counter() - start
    losses = []

    def step():
        nonlocal state
        state, metrics = compiled(state, turn[len(losses) % len(turn)])
        losses.append(float(metrics["loss"]))

    for _ in range(3):
        step()
    harness.serve(step, {"compile_seconds": compile_seconds, "losses": losses[:3]})


def check_losses(workers: list[harness.Worker], tolerance: float) -> None:
    """Ends the program where a contender's first losses are not those of the first contender."""
    for worker in workers[1:]:
        for mine, theirs in zip(workers[0].facts["losses"], worker.facts["losses"]):
            if abs(mine - theirs) > tolerance * theirs:
                raise SystemExit(
                    f"{worker.name} does other work: losses {worker.facts['losses']} against "
                    f"{workers[0].facts['losses']}"
                )


def rows(case: str, shape: problem.Shape, workers: list[harness.Worker]) -> list[dict[str, Any]]:
    """The figures of the JSON line, the first worker being this project's."""

    def row(metric, unit, value, higher_is_better=True):
        mine, *others = (value(w) for w in workers)
        named = {w.name: round(v, 3) for w, v in zip(workers[1:], others)}
        return harness.row(
            case, metric, unit, round(mine, 3), named, higher_is_better=higher_is_better
        )

    return [
        row("throughput", "tokens/s", lambda w: shape.tokens / w.median),
        row("throughput per CPU-second", "tokens/CPU-s", lambda w: shape.tokens / w.cpu_median),
        row("compile and first steps", "s", lambda w: w.facts["compile_seconds"], False),
        row("peak memory", "MB", lambda w: w.facts["peak_mb"], False),
    ]
