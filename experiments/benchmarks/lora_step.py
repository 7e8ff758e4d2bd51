"""Whole LoRA training steps on this machine: jgpt against transformers + peft, in turns.

    python experiments/benchmarks/lora_step.py [--peers] [--shapes S,M] [--targets qv,all-linear]
        [--dtypes float32,bfloat16]

Forward, backward and AdamW on adapters of rank 8, on the same frozen model from the same weights
and adapters on the same tokens. Contenders are processes that step in turn (`harness.py`), all with
the allocator that keeps freed buffers. `--peers` adds transformers' Llama with peft's LoRA, and in
bfloat16 (autocast) the same on a base kept in bfloat16; it needs
`pip install torch==2.13.0 transformers peft`. `--compile` adds it under `torch.compile`. The first
losses must agree to 1e-3, or it stops. One more contender multiplies large matrices: the floor is
the time that the step's FLOPs take at that rate. torch's threads wait asleep (OMP_WAIT_POLICY):
awake, they are billed for waiting, and on a machine with company take several times as long.
Prints a table, and one JSON line last.
"""

import argparse
import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from experiments.benchmarks import harness, whole_steps
from experiments.benchmarks.peers import problem

PEER = "transformers + peft"
MATMUL_SIZE, MATMULS = 2048, 4
"""Of the contender that measures the cores."""


def lora_config(shape: problem.Shape, targets: str, dtype: str):
    """The run's config: LoRA as the peer has it."""
    patterns = {"qv": (r"attention/(query|value)$",), "all-linear": ("all-linear",)}
    return whole_steps.run_config(
        shape,
        dtype,
        peft={
            "method": "lora",
            "targets": patterns[targets],
            "rank": problem.RANK,
            "alpha": problem.ALPHA,
        },
    )


def lora_adapters(shape: problem.Shape, targets: str) -> dict:
    """The shared adapters as this project's tree."""
    names = {"q": "query", "k": "key", "v": "value", "o": "output"}
    tree = {}
    for path, tensor in problem.adapters(shape, targets).items():
        _, _, layer, block, site, leaf, _ = path.split(".")
        site = site.removesuffix("_proj")
        block = {"self_attn": "attention", "mlp": "ffn"}[block]
        place = tree.setdefault(f"layers_{layer}", {}).setdefault(block, {})
        place.setdefault(names.get(site, site), {})[leaf.lower()] = tensor.T
    return tree


def work(shape_name: str, targets: str, dtype: str) -> None:
    """This project's contender: the steps of a run, put together as `jgpt.main` does."""
    import dataclasses

    import jax
    import jax.numpy as jnp

    from jgpt import sharding
    from jgpt.training.assembly import make_steps, placed
    from jgpt.training.state import ADAPTERS

    shape = problem.SHAPES[shape_name]
    config = lora_config(shape, targets, dtype)

    def start(model, places, replicated, convert):
        return {"params": jax.tree.map(jax.device_put, whole_steps.params(shape), places)}

    mesh = sharding.make_mesh(config.mesh)
    with placed(mesh):
        init, _, train_step, _ = make_steps(config, mesh, start)
        state = init()
        given = jax.tree.map(jnp.array, lora_adapters(shape, targets))
        own = state.params[ADAPTERS]
        assert jax.tree.map(jnp.shape, own) == jax.tree.map(jnp.shape, given)
        given = jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), given, own)
        state = dataclasses.replace(state, params={ADAPTERS: given})
        whole_steps.serve(train_step, state, shape)


def measure_matmul(dtype: str) -> None:
    """The contender that shows what the cores can do: products of large matrices."""
    import jax
    import jax.numpy as jnp

    from jgpt.kernels.matmul import product

    keys = jax.random.split(jax.random.key(0))
    a, b = (jax.random.normal(k, (MATMUL_SIZE, MATMUL_SIZE), jnp.dtype(dtype)) for k in keys)
    run = jax.jit(product)

    def step():
        for _ in range(MATMULS):
            run(a, b).block_until_ready()

    step()
    harness.serve(step, {})


def compare(
    shape_name: str, targets: str, dtype: str, peers: tuple[str, ...], rounds: int, steps: int
) -> tuple[list[list], list[dict]]:
    """The contenders' figures on one case: table lines and rows of the JSON line."""
    shape = problem.SHAPES[shape_name]
    torch_script = str(pathlib.Path(__file__).parent / "peers" / "torch_lora.py")
    workers = [harness.Worker("jgpt", __file__, ["--work", f"{shape_name},{targets},{dtype}"])]
    workers += [harness.Worker(p, torch_script, [p, shape_name, targets, dtype]) for p in peers]
    whole_steps.check_losses(workers, 1e-3)
    matmul = harness.Worker("matmul", __file__, ["--matmul", dtype])
    harness.alternate([*workers, matmul], rounds, steps)
    for worker in [*workers, matmul]:
        worker.close()
    case = f"{shape_name} {targets} {dtype}"
    flops = problem.lora_flops(shape, targets)
    share = flops / (MATMULS * 2 * MATMUL_SIZE**3)
    floor, cpu_floor = share * matmul.median, share * matmul.cpu_median
    ours = workers[0]

    def line(name: str, seconds: float, cpu_seconds: float, *more: float | str) -> list:
        times = [1e3 * seconds, shape.tokens / seconds, seconds / ours.median]
        times += [1e3 * cpu_seconds, cpu_seconds / ours.cpu_median]
        return [f"{case} {name}", *times, flops / cpu_seconds / 1e9, *more]

    lines = [
        line(w.name, w.median, w.cpu_median, w.facts["compile_seconds"], w.facts["peak_mb"])
        for w in workers
    ]
    lines.append(line("floor", floor, cpu_floor, "", ""))
    rows = whole_steps.rows(case, shape, workers)
    rows[0]["floor"] = round(shape.tokens / floor, 3)
    rows[1]["floor"] = round(shape.tokens / cpu_floor, 3)
    return lines, rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--shapes", default="S,M", help="S, M or tiny")
    parser.add_argument("--targets", default="qv,all-linear", help=", ".join(problem.TARGETS))
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--peers", action="store_true", help="PyTorch too")
    parser.add_argument("--compile", action="store_true", help="and PyTorch under torch.compile")
    parser.add_argument("--rounds", type=int, default=6, help="turns of each contender")
    parser.add_argument("--steps", type=int, default=3, help="steps per turn")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--matmul", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(*options.work.split(","))
        return
    if options.matmul:
        measure_matmul(options.matmul)
        return
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    lines, rows = [], []
    for shape_name in options.shapes.split(","):
        for targets in options.targets.split(","):
            for dtype in options.dtypes.split(","):
                peers = (PEER,) if options.peers else ()
                if options.peers and dtype == "bfloat16":
                    peers += (f"{PEER}, bfloat16 base",)
                if options.compile:
                    peers += (f"{PEER}, torch.compile",)
                more_lines, more_rows = compare(
                    shape_name, targets, dtype, peers, options.rounds, options.steps
                )
                lines += more_lines
                rows += more_rows
    columns = ["case", "ms/step", "tokens/s", "times ours", "CPU-ms/step", "times ours"]
    columns += ["GFLOP/CPU-s", "compile s", "peak MB"]
    harness.show("LoRA training step", columns, lines)
    harness.emit("lora_step", rows, ("torch", "transformers", "peft"))


if __name__ == "__main__":
    main()
