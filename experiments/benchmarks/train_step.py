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

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from experiments.benchmarks import harness, whole_steps
from experiments.benchmarks.peers import problem

PEERS = ("transformers", "lean compiled torch")


def work(shape_name: str, dtype: str) -> None:
    """This project's contender."""
    import functools

    import jax
    import jax.numpy as jnp

    from jgpt import models, trees
    from jgpt.objectives import make_objective
    from jgpt.training.optimizer import make_optimizer
    from jgpt.training.state import init_state
    from jgpt.training.step import make_train_step

    shape = problem.SHAPES[shape_name]
    config = whole_steps.run_config(shape, dtype)
    params = jax.tree.map(jnp.array, whole_steps.params(shape))
    expected = trees.leaves_by_path(models.abstract_params(config.model))
    given = trees.leaves_by_path(params)
    assert {k: v.shape for k, v in given.items()} == {k: v.shape for k, v in expected.items()}
    apply = functools.partial(models.apply, config.model)
    optimizer = make_optimizer(config.optimizer, 10_000, params)
    state = jax.jit(lambda p: init_state(lambda _: p, optimizer, jax.random.key(0)))(params)
    train_step = make_train_step(make_objective(config), apply, optimizer, config)
    whole_steps.serve(jax.jit(train_step, donate_argnums=0), state, shape)


def compare(shape_name: str, dtype: str, peers: tuple[str, ...], rounds: int, steps: int):
    """The contenders' figures on one shape: table lines and rows of the JSON line."""
    shape = problem.SHAPES[shape_name]
    torch_script = str(pathlib.Path(__file__).parent / "peers" / "torch_train.py")
    workers = [harness.Worker("jgpt", __file__, ["--work", f"{shape_name},{dtype}"])]
    workers += [harness.Worker(p, torch_script, [p, shape_name, dtype]) for p in peers]
    whole_steps.check_losses(workers, 1e-3 if dtype == "float32" else 1e-2)
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

    return lines, whole_steps.rows(f"{shape_name} {dtype}", shape, workers)


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
