"""Decoding on CPU: tokens per second of the cached loop, with each kind of cache, beside peers.

    python experiments/benchmarks/decode.py [--shape S] [--rows 1 8] [--rounds 5] [--peers]

Greedy, random float32 weights, a prompt of 128 tokens and then 64 tokens per step of the benchmark
between 128 and 384. Contenders run in processes of their own and take turns; figures are medians of
process CPU-seconds and of wall time. `--peers` adds transformers' `generate` (its static work per
token included, prefill taken off by one token's run). Prints a table, and one JSON line last.
"""

import argparse
import pathlib
import sys
from functools import partial

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np

from experiments.benchmarks import harness

SHAPES = {"S": (4, 256, 4, 2, 688, 8192), "M": (8, 512, 8, 4, 1376, 16384)}
"""Layers, width, query heads, key/value heads, feed-forward width, vocabulary."""
PROMPT, NEW = 128, 64
OURS = {
    "ours": {},
    "ours, pages": {"kind": "pages"},
    "ours, int8": {"dtype": "int8"},
    "ours, bfloat16": {"dtype": "bfloat16"},
}


def prompts(shape: str, rows: int) -> np.ndarray:
    return np.random.default_rng(2).integers(4, SHAPES[shape][5], (rows, PROMPT), dtype=np.int32)


def serve_ours(name: str, shape: str, rows: int) -> None:
    import jax

    from jgpt import models
    from jgpt.config import CacheConfig, ModelConfig, SampleConfig
    from jgpt.inference.generate import Generator

    layers, width, heads, kv_heads, ffn, vocabulary = SHAPES[shape]
    config = ModelConfig(
        num_layers=layers,
        hidden_size=width,
        num_heads=heads,
        num_kv_heads=kv_heads,
        intermediate_size=ffn,
        vocab_size=vocabulary,
        max_length=PROMPT + 4 * NEW,
        scan_layers="off",
    )
    generator = Generator(
        partial(models.apply, config),
        partial(models.init_cache, config, cache=CacheConfig(**OURS[name])),
        SampleConfig(max_new_tokens=4 * NEW, temperature=0.0),
        vocab_size=vocabulary,
        max_length=config.max_length,
        eos_id=-1,
        chunk=NEW,
    )
    params = models.init(config, jax.random.key(0))
    variables = {"params": models.restack(params, config, scan=False)}
    lengths = np.full(rows, PROMPT)

    def chunks():
        while True:
            found = generator.stream(variables, prompts(shape, rows), lengths, jax.random.key(0))
            next(found)  # with the prefill
            yield from found

    stream = chunks()
    next(stream)
    harness.serve(lambda: next(stream), {})


def serve_transformers(shape: str, rows: int) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    layers, width, heads, kv_heads, ffn, vocabulary = SHAPES[shape]
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=width,
            intermediate_size=ffn,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            vocab_size=vocabulary,
            max_position_embeddings=PROMPT + 4 * NEW,
        )
    ).eval()
    ids = torch.from_numpy(prompts(shape, rows).astype(np.int64))
    fixed = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    first = model(ids[:, :-1], use_cache=True).past_key_values

    @torch.no_grad()
    def step():
        nonlocal first
        behind = first.get_seq_length() - (PROMPT - 1)
        if behind:
            first.crop(-behind)
        model.generate(ids, past_key_values=first, max_new_tokens=NEW, **fixed)

    step()
    harness.serve(step, {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=list(SHAPES), default="S")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    shape = arguments.shape
    if arguments.serve:
        if arguments.serve == "transformers":
            serve_transformers(shape, arguments.rows[0])
        else:
            serve_ours(arguments.serve, shape, arguments.rows[0])
        return
    rows, lines = [], []
    for batch in arguments.rows:
        names = [*OURS, *(["transformers"] if arguments.peers else [])]
        common = ["--shape", shape, "--rows", str(batch)]
        workers = [harness.Worker(n, __file__, [*common, "--serve", n]) for n in names]
        harness.alternate(workers, arguments.rounds, 2)
        for worker in workers:
            worker.close()
        case = f"shape {shape}, {batch} rows"
        for metric, unit, seconds in (
            ("wall", "tokens/s", {w.name: w.median for w in workers}),
            ("best wall", "tokens/s", {w.name: min(w.seconds) for w in workers}),
            ("CPU", "tokens/CPU-s", {w.name: w.cpu_median for w in workers}),
        ):
            speed = {name: round(batch * NEW / x, 1) for name, x in seconds.items()}
            peers = {name: x for name, x in speed.items() if name not in OURS}
            row = harness.row(case, metric, unit, speed["ours"], peers)
            rows.append({**row, "variants": {n: speed[n] for n in OURS if n != "ours"}})
            lines.append([case, f"{metric}, {unit}", *speed.values()])
    harness.show("Decoding on CPU", ["case", "figure", *names], lines)
    harness.emit("decode", rows, ("torch", "transformers"))


if __name__ == "__main__":
    main()
