"""What the input side costs: cleaning, tokenising, packing, a step's wait, the first batch.

    python experiments/benchmarks/input_pipeline.py
    JGPT_DATA=/path/to/data python experiments/benchmarks/input_pipeline.py

Over the microworld and, where $JGPT_DATA is set, the Aozora corpus. Prints a table and one JSON
line. Speeds are per CPU-second of this process, which a busy machine hardly changes; waits are wall
time, next to a stand-in for a training step that keeps all cores busy with matrix products.
"""

import argparse
import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import harness
import numpy as np

from jgpt.config import CleaningConfig, DataConfig, TokenizerConfig
from jgpt.data import pipeline
from jgpt.data.cleaning import Cleaner
from jgpt.data.document import Document
from jgpt.tokenizers.base import Tokenizer
from jgpt.tokenizers.store import train

CASES = {
    "microworld": DataConfig(),
    "aozora": DataConfig(sources="jsonl:$JGPT_DATA/corpus/aozora.jsonl.gz"),
    "aozora in pieces": DataConfig(
        sources="jsonl:$JGPT_DATA/corpus/aozora.jsonl.gz",
        cleaning=CleaningConfig(max_characters=2000),
    ),
}
THOROUGH = CleaningConfig(
    drop_boilerplate=True,
    drop_repeated_lines=True,
    min_japanese_ratio=0.3,
    min_kana_ratio=0.1,
    exact_dedup=True,
    minhash_threshold=0.8,
)
STEP_SECONDS = 0.3


def first(texts: Iterator[str], megabytes: float) -> list[str]:
    """Texts from the start, up to a size in UTF-8."""
    taken, size = [], 0
    for text in texts:
        taken.append(text)
        size += len(text.encode())
        if size > megabytes * 1e6:
            break
    return taken


def cpu_seconds(work: Any) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def cleaning_speed(texts: list[str], config: CleaningConfig) -> float:
    """MB of UTF-8 per CPU-second."""
    cleaner = Cleaner(config)
    documents = [Document(text) for text in texts]
    seconds = cpu_seconds(lambda: [cleaner.clean(document) for document in documents])
    return sum(len(text.encode()) for text in texts) / 1e6 / seconds


def tokenizing_speed(texts: list[str], tokenizer: Tokenizer) -> float:
    """MB of UTF-8 per CPU-second."""
    seconds = cpu_seconds(lambda: tokenizer.encode_batch(texts))
    return sum(len(text.encode()) for text in texts) / 1e6 / seconds


def pipeline_speed(
    corpus: pipeline.Corpus, tokenizer: Tokenizer, config: DataConfig, batches: int
) -> tuple[float, float]:
    """(training tokens per CPU-second of everything after cleaning, padding share)."""
    iterator = pipeline.training_batches(corpus, tokenizer, config)
    next(iterator)
    before = iterator.stats.targets
    seconds = cpu_seconds(lambda: [next(iterator) for _ in range(batches)])
    iterator.close()
    return (iterator.stats.targets - before) / seconds, iterator.stats.padding_share


def waits(
    corpus: pipeline.Corpus, tokenizer: Tokenizer, config: DataConfig, steps: int
) -> list[float]:
    """Seconds that each step of a training loop waits for its batch, once the stock is filled."""
    matrix = np.random.default_rng(0).random((1500, 1500), np.float32)
    iterator = pipeline.training_batches(corpus, tokenizer, config)
    waited = []
    for _ in range(config.prefetch + steps):
        asked = time.perf_counter()
        next(iterator)
        got = time.perf_counter()
        waited.append(got - asked)
        while time.perf_counter() - got < STEP_SECONDS:
            matrix @ matrix
    iterator.close()
    return waited[config.prefetch :]


def first_batch_seconds(case: str, tokenizer_folder: str) -> float:
    """Wall time of a new process, imports included, up to its first batch; nothing is cached."""
    with tempfile.TemporaryDirectory() as cache:
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, __file__, "--first-batch", case, tokenizer_folder],
            check=True,
            env={**os.environ, "JGPT_CACHE": cache},
        )
        return time.perf_counter() - started


def print_nothing_but_make_a_batch(case: str, tokenizer_folder: str) -> None:
    from jgpt.tokenizers.store import load

    corpus = pipeline.open_corpus(CASES[case])
    next(pipeline.training_batches(corpus, load(tokenizer_folder), CASES[case]))


def measure(case: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    config = CASES[case]
    corpus = pipeline.open_corpus(config)
    texts = first(corpus.training_texts(), arguments.megabytes)
    tokenizer = train(TokenizerConfig(vocab_size=4000), texts[: len(texts) // 2], cache=None)
    row = harness.row
    rows = [
        row(case, "cleaning, default", "MB/s", cleaning_speed(texts, CleaningConfig())),
        row(case, "cleaning, all filters", "MB/s", cleaning_speed(texts, THOROUGH)),
        row(case, "tokenising", "MB/s", tokenizing_speed(texts, tokenizer)),
    ]
    for packing in ("best_fit", "split", "none"):
        packed = dataclasses.replace(config, packing=packing)
        speed, padding = pipeline_speed(corpus, tokenizer, packed, arguments.batches)
        rows.append(row(case, f"pipeline, {packing}", "tokens/s", speed))
        rows.append(row(case, f"padding, {packing}", "%", 100 * padding, higher_is_better=False))
    waited = waits(corpus, tokenizer, config, arguments.steps)
    for name, seconds in (("median", statistics.median(waited)), ("mean", statistics.mean(waited))):
        share = 100 * seconds / STEP_SECONDS
        rows.append(row(case, f"wait of a 300 ms step, {name}", "%", share, higher_is_better=False))
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder)
        seconds = first_batch_seconds(case, folder)
    rows.append(row(case, "first batch, cold", "s", seconds, higher_is_better=False))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--megabytes", type=float, default=3.0, help="text to measure speeds on")
    parser.add_argument("--batches", type=int, default=200, help="batches per packing mode")
    parser.add_argument("--steps", type=int, default=40, help="steps of the wait measurement")
    parser.add_argument("--first-batch", nargs=2, metavar=("CASE", "TOKENIZER"), help="internal")
    arguments = parser.parse_args()
    if arguments.first_batch:
        print_nothing_but_make_a_batch(*arguments.first_batch)
        return
    cases = [case for case in CASES if case == "microworld" or os.environ.get("JGPT_DATA")]
    rows = [row for case in cases for row in measure(case, arguments)]
    columns = ["case", "figure", "value", "unit"]
    lines = [[r["case"], r["metric"], float(r["ours"]), r["unit"]] for r in rows]
    harness.show("input pipeline", columns, lines)
    harness.emit("input_pipeline", rows, ("grain", "sentencepiece", "numpy"))


if __name__ == "__main__":
    main()
