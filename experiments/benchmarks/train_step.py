"""Whole training steps on this machine: jgpt against PyTorch, taking turns in one run.

    python experiments/benchmarks/train_step.py --shapes S,M,MoE-S [--peers]

Forward, backward and AdamW of the same model from the same weights on the same tokens. Contenders
are processes that step in turn (`harness.py`), all with the allocator that keeps freed buffers.
`--peers` adds transformers' Llama or Mixtral and a lean model under `torch.compile`; it needs
`pip install torch==2.13.0 transformers`. The first losses must agree to 1e-3, or it stops.
Prints a table, and one JSON line last.
"""

import argparse
import pathlib
import sys
import time

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from experiments.benchmarks import harness
from experiments.benchmarks.peers import problem

PEERS = ("transformers", "lean compiled torch")


def jgpt_config(shape: problem.Shape, dtype: str):
    """The run's config for a shape; no clipping and no auxiliary losses, as in the peers."""
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
    return from_config_dict({"model": model, "optimizer": optimizer})


def jgpt_params(shape: problem.Shape) -> dict:
    """The shared initial weights as this project's parameter tree."""
    tensors = problem.weights(shape)
    params = {
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
        params[f"layers_{i}"] = layer
    return params


def work(shape_name: str, dtype: str) -> None:
    """This project's contender."""
    import functools

    import jax
    import jax.numpy as jnp
    import numpy as np

    from jgpt import models, trees
    from jgpt.objectives import make_objective
    from jgpt.training.optimizer import make_optimizer
    from jgpt.training.state import init_state
    from jgpt.training.step import make_train_step

    shape = problem.SHAPES[shape_name]
    config = jgpt_config(shape, dtype)
    params = jax.tree.map(jnp.array, jgpt_params(shape))
    expected = trees.leaves_by_path(models.abstract_params(config.model))
    given = trees.leaves_by_path(params)
    assert {k: v.shape for k, v in given.items()} == {k: v.shape for k, v in expected.items()}
    apply = functools.partial(models.apply, config.model)
    optimizer = make_optimizer(config.optimizer, 10_000, params)
    state = jax.jit(lambda p: init_state(lambda _: p, optimizer, jax.random.key(0)))(params)
    train_step = make_train_step(make_objective(config), apply, optimizer, config)
    weights = np.ones((shape.batch, shape.sequence), np.float32)
    weights[:, -1] = 0
    batches = [
        {
            "inputs": jnp.asarray(tokens, jnp.int32),
            "targets": jnp.asarray(np.roll(tokens, -1, axis=1), jnp.int32),
            "loss_weights": jnp.asarray(weights),
        }
        for tokens in problem.token_batches(shape)
    ]
    start = time.perf_counter()
    compiled = jax.jit(train_step, donate_argnums=0).lower(state, batches[0]).compile()
    compile_seconds = time.perf_counter() - start
    losses = []

    def step():
        nonlocal state
        state, metrics = compiled(state, batches[len(losses) % len(batches)])
        losses.append(float(metrics["loss"]))

    for _ in range(3):
        step()
    harness.serve(step, {"compile_seconds": compile_seconds, "losses": losses[:3]})


def compare(shape_name: str, dtype: str, peers: tuple[str, ...], rounds: int, steps: int):
    """The contenders' figures on one shape: table lines and rows of the JSON line."""
    shape = problem.SHAPES[shape_name]
    torch_script = str(pathlib.Path(__file__).parent / "peers" / "torch_train.py")
    workers = [harness.Worker("jgpt", __file__, ["--work", f"{shape_name},{dtype}"])]
    workers += [harness.Worker(p, torch_script, [p, shape_name, dtype]) for p in peers]
    tolerance = 1e-3 if dtype == "float32" else 1e-2
    for worker in workers[1:]:
        for mine, theirs in zip(workers[0].facts["losses"], worker.facts["losses"]):
            if abs(mine - theirs) > tolerance * theirs:
                raise SystemExit(
                    f"{worker.name} does other work: losses {worker.facts['losses']} against "
                    f"{workers[0].facts['losses']}"
                )
    harness.alternate(workers, rounds, steps)
    for worker in workers:
        worker.close()
    flops = problem.training_flops(shape)
    lines = [
        [
            f"{shape_name} {dtype} {w.name}",
            shape.tokens / w.median,
            shape.tokens / w.cpu_median,
            flops / w.cpu_median / 1e9,
            w.facts["compile_seconds"],
            w.facts["peak_mb"],
        ]
        for w in workers
    ]

    def row(metric, unit, value, higher_is_better=True):
        mine, *others = (value(w) for w in workers)
        named = {w.name: round(v, 3) for w, v in zip(workers[1:], others)}
        case = f"{shape_name} {dtype}"
        return harness.row(
            case, metric, unit, round(mine, 3), named, higher_is_better=higher_is_better
        )

    rows = [
        row("throughput", "tokens/s", lambda w: shape.tokens / w.median),
        row("throughput per CPU-second", "tokens/CPU-s", lambda w: shape.tokens / w.cpu_median),
        row("compile and first steps", "s", lambda w: w.facts["compile_seconds"], False),
        row("peak memory", "MB", lambda w: w.facts["peak_mb"], False),
    ]
    return lines, rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--shapes", default="S,M,MoE-S", help=", ".join(problem.SHAPES))
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--peers", action="store_true", help="PyTorch too")
    parser.add_argument("--rounds", type=int, default=6, help="turns of each contender")
    parser.add_argument("--steps", type=int, default=3, help="steps per turn")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(*options.work.split(","))
        return
    lines, rows = [], []
    for shape_name in options.shapes.split(","):
        for dtype in options.dtypes.split(","):
            peers = PEERS if options.peers else ()
            more_lines, more_rows = compare(shape_name, dtype, peers, options.rounds, options.steps)
            lines += more_lines
            rows += more_rows
    columns = ["case", "tokens/s", "tokens/CPU-s", "GFLOP/CPU-s", "compile s", "peak MB"]
    harness.show("training step", columns, lines)
    harness.emit("train_step", rows, ("torch", "transformers"))


if __name__ == "__main__":
    main()
