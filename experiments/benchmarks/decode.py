"""Decoding on CPU: tokens per second of the cached loop, with each kind of cache, beside peers.

    python experiments/benchmarks/decode.py [--shape S] [--rows 1 8] [--rounds 3] [--peers]

Greedy, float32, everybody with the same weights and prompts of 128 tokens, of which each row is
continued by 256 in four steps of 64. Contenders run in processes of their own and take turns; a
turn is one such continuation, whose first step has the prefill in it and is not counted. Figures
are medians of wall time and of process CPU-seconds. `agreement` is the share of the first 64 tokens
that are ours (a tie of two logits may part texts). `--peers` adds transformers' `generate` and
llama.cpp (`pip install llama-cpp-python gguf`), with `--threads` threads each: where others use the
cores too, threads that wait for each other burn time, and one is the fair number. Prints a
table, and one JSON line last.
"""

import argparse
import importlib.util
import itertools
import pathlib
import statistics
import sys
from collections.abc import Iterator
from functools import partial

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np

from experiments.benchmarks import harness
from experiments.benchmarks.peers import problem

SHAPES = ("S", "M", "tiny")
PROMPT, NEW, CHUNK = 128, 256, 64
"""Tokens of a prompt, of its continuation, and of a step."""
OURS = {
    "ours": {},
    "ours, pages": {"kind": "pages"},
    "ours, int8": {"dtype": "int8"},
    "ours, bfloat16": {"dtype": "bfloat16"},
}
PEERS = {
    "transformers": ("torch_decode.py", ("torch", "transformers")),
    "llama.cpp": ("llama_cpp_decode.py", ("llama_cpp", "gguf")),
}
"""Script and the packages that it needs."""


def prompts(shape: problem.Shape, rows: int) -> np.ndarray:
    return np.random.default_rng(2).integers(4, shape.vocab, (rows, PROMPT), dtype=np.int32)


def serve(chunks: Iterator[np.ndarray]) -> None:
    """A contender's end: `chunks` are tokens [rows, CHUNK], NEW // CHUNK of them per text."""
    first = next(chunks)
    for _ in range(NEW // CHUNK - 1):
        next(chunks)
    harness.serve(lambda: next(chunks), {"tokens": first.tolist()})


def serve_ours(name: str, shape: problem.Shape, rows: int) -> None:
    import jax
    import jax.numpy as jnp

    from experiments.benchmarks import whole_steps
    from jgpt import models
    from jgpt.config import CacheConfig, SampleConfig
    from jgpt.inference.generate import Generator

    config = whole_steps.run_config(shape, "float32").model
    generator = Generator(
        partial(models.apply, config),
        partial(models.init_cache, config, cache=CacheConfig(**OURS[name])),
        SampleConfig(max_new_tokens=NEW, temperature=0.0),
        vocab_size=shape.vocab,
        max_length=PROMPT + NEW,
        eos_id=-1,
        chunk=CHUNK,
    )
    variables = {"params": jax.tree.map(jnp.asarray, whole_steps.params(shape))}
    text, lengths = prompts(shape, rows), np.full(rows, PROMPT)

    def chunks():
        while True:
            yield from generator.stream(variables, text, lengths, jax.random.key(0))

    serve(chunks())


def counted(seconds: list[float]) -> list[float]:
    """Without each turn's first step."""
    return [x for i, x in enumerate(seconds) if i % (NEW // CHUNK)]


def compare(
    name: str, batch: int, rounds: int, peers: tuple[str, ...], threads: int
) -> tuple[list, list]:
    """Rows of the JSON line, and lines of the table."""
    common = [name, str(batch), str(threads)]
    workers = [
        harness.Worker(n, __file__, ["--shape", name, "--rows", str(batch), "--serve", n])
        for n in OURS
    ]
    scripts = ROOT / "experiments" / "benchmarks" / "peers"
    workers += [harness.Worker(n, str(scripts / PEERS[n][0]), common) for n in peers]
    harness.alternate(workers, rounds, NEW // CHUNK)
    for worker in workers:
        worker.close()
    tokens = {w.name: np.array(w.facts["tokens"]) for w in workers}
    agreement = {n: round(float((x == tokens["ours"]).mean()), 3) for n, x in tokens.items()}
    case, rows, lines = f"shape {name}, {batch} rows", [], []
    wall = {w.name: counted(w.seconds) for w in workers}
    cpu = {w.name: counted(w.cpu_seconds) for w in workers}
    for metric, unit, seconds, of in (
        ("wall", "tokens/s", wall, statistics.median),
        ("best wall", "tokens/s", wall, min),
        ("CPU", "tokens/CPU-s", cpu, statistics.median),
    ):
        speed = {n: round(batch * CHUNK / of(x), 1) for n, x in seconds.items()}
        row = harness.row(case, metric, unit, speed["ours"], {n: speed[n] for n in peers})
        variants = {n: speed[n] for n in OURS if n != "ours"}
        rows.append({**row, "variants": variants, "agreement": agreement, "threads": threads})
        lines.append([case, f"{metric}, {unit}", *speed.values()])
    lines.append([case, "agreement", *agreement.values()])
    return rows, lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="S")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", action="store_true", help="those that are installed")
    parser.add_argument("--threads", type=int, default=1, help="of each peer")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve_ours(arguments.serve, problem.SHAPES[arguments.shape], arguments.rows[0])
        return
    installed = [
        n for n, (_, needed) in PEERS.items() if all(map(importlib.util.find_spec, needed))
    ]
    peers = tuple(installed) if arguments.peers else ()
    found = [
        compare(arguments.shape, batch, arguments.rounds, peers, arguments.threads)
        for batch in arguments.rows
    ]
    rows, lines = (list(itertools.chain(*part)) for part in zip(*found))
    harness.show("Decoding on CPU", ["case", "figure", *OURS, *peers], lines)
    harness.emit("decode", rows, ("torch", "transformers", "llama-cpp-python"))


if __name__ == "__main__":
    main()
