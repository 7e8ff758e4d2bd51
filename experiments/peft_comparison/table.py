"""What the runs come to, as Markdown."""

import json
import math
import pathlib
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from methods import METHODS

Results = dict[str, list[dict[str, Any]]]
"""Method -> its runs, one a seed."""

THRESHOLDS = (1.0, 0.9, 0.8, 0.7, 0.6)
"""Training losses, nats per token, that LoRA+ and LoRA are compared on."""
WINDOW = 5
"""Steps that the training loss is averaged over for that."""


def read(folder: pathlib.Path) -> Results:
    """All runs of a folder, in the order of `METHODS`."""
    found = {}
    for method in METHODS:
        runs = [json.loads(path.read_text()) for path in folder.glob(f"{method}-[0-9]*.json")]
        if runs:
            found[method] = sorted(runs, key=lambda run: run["seed"])
    return found


def mean(runs: Sequence[dict[str, Any]], name: str) -> float:
    return statistics.mean(run[name] for run in runs)


def spread(runs: Sequence[dict[str, Any]], name: str) -> float:
    """Half the distance between the largest and the smallest."""
    values = [run[name] for run in runs]
    return (max(values) - min(values)) / 2


def lines(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    head = list(head)
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, rule, *rows))


def markdown(results: Results) -> str:
    """All tables."""
    parts = [quality(results), costs(results)]
    if {"lora", "lora_plus"} <= results.keys():
        parts.append(steps_to_loss(results))
    if "adalora" in results:
        parts.append(ranks(results["adalora"]))
    return "\n".join(parts)


def quality(results: Results) -> str:
    """Losses, accuracy and forgetting; means over seeds, with half their range."""

    def cell(runs: list[dict[str, Any]], name: str, form: str) -> str:
        value = f"{mean(runs, name):{form}}"
        return f"{value} ± {spread(runs, name):{form}}" if len(runs) > 1 else value

    head = (
        "method", "rate", "seeds", "training loss", "validation loss", "answered rightly",
        "old text, bits per character", "KL",
    )  # fmt: skip
    rows = [
        (
            f"`{method}`",
            f"{runs[0]['rate']:g}",
            str(len(runs)),
            cell(runs, "training_loss", ".3f"),
            cell(runs, "validation_loss", ".3f"),
            cell(runs, "checked_accuracy", ".1%"),
            cell(runs, "drift_bits_per_character_after", ".2f"),
            cell(runs, "drift_kl", ".2f"),
        )
        for method, runs in results.items()
    ]
    return lines(head, rows)


def costs(results: Results) -> str:
    """Parameters, time and memory."""
    head = ("method", "trained parameters", "processor ms per step", "activations, MB", "state, MB")
    rows = [
        (
            f"`{method}`",
            f"{runs[0]['parameters']:,}",
            f"{1000 * statistics.median(run['step_cpu_seconds'] for run in runs):.0f}",
            f"{runs[0]['temporary_bytes'] / 1e6:.0f}",
            f"{runs[0]['argument_bytes'] / 1e6:.1f}",
        )
        for method, runs in results.items()
    ]
    return lines(head, rows)


def smoothed(losses: Sequence[float]) -> list[float]:
    """Mean of the last `WINDOW` steps, from the first that has so many."""
    return [statistics.mean(losses[end - WINDOW : end]) for end in range(WINDOW, len(losses) + 1)]


def first_below(losses: Sequence[float], threshold: float) -> float:
    """The step after which the smoothed loss is at most `threshold`; infinity for none."""
    for step, loss in enumerate(smoothed(losses), WINDOW):
        if loss <= threshold:
            return step
    return math.inf


def steps_to_loss(results: Results) -> str:
    """LoRA+ beside LoRA: the same seed has the same batches."""

    def cell(method: str, threshold: float) -> str:
        steps = [first_below(run["losses"], threshold) for run in results[method]]
        return ", ".join("–" if math.isinf(step) else str(step) for step in steps)

    head = ("training loss at most", "steps of `lora`, by seed", "steps of `lora_plus`, by seed")
    rows = [(f"{t:g}", cell("lora", t), cell("lora_plus", t)) for t in THRESHOLDS]
    return lines(head, rows)


def by_layer(run: dict[str, Any]) -> tuple[list[str], list[list[int]]]:
    """(modules, ranks [layers][modules]) of an AdaLoRA run with scanned layers."""
    modules = {path.split("/", 2)[2]: ranks for path, ranks in run["ranks"].items()}
    return list(modules), [list(row) for row in zip(*modules.values(), strict=True)]


def ranks(runs: list[dict[str, Any]]) -> str:
    """AdaLoRA's last ranks, mean over seeds."""
    modules, _ = by_layer(runs[0])
    means = np.mean([by_layer(run)[1] for run in runs], 0)
    rows = [(f"layer {i}", *(f"{rank:.1f}" for rank in row)) for i, row in enumerate(means)]
    return lines(("", *modules), rows)
