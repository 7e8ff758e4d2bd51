"""What the runs come to, as pictures."""

import pathlib

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from methods import METHODS
from table import Results, by_layer, mean, smoothed, spread

COLOURS = {
    "own weights": "#444444",
    "LoRA": "#2264c8",
    "scales": "#12805c",
    "bottleneck": "#c2570c",
    "virtual tokens": "#8a3ab9",
}
CURVES = ("full", "lora", "lora_plus", "dora", "pissa", "adalora", "ia3", "prompt_tuning")
"""Methods whose loss is drawn step by step."""


def draw(results: Results, folder: pathlib.Path) -> None:
    """Writes every picture for which there are runs."""
    trained = {name: runs for name, runs in results.items() if name != "none"}
    if not trained:
        return
    scatter(trained, folder / "accuracy.png", "parameters", "trained parameters", log=True)
    scatter(
        trained,
        folder / "forgetting.png",
        "drift_bits_per_character_after",
        "old text after training, bits per character",
        mark=next(iter(trained.values()))[0]["drift_bits_per_character_before"],
    )
    curves(trained, folder / "loss.png")
    if "adalora" in trained:
        heat(trained, folder / "ranks.png")


def scatter(
    results: Results,
    path: pathlib.Path,
    name: str,
    label: str,
    log: bool = False,
    mark: float | None = None,
) -> None:
    """Share of questions answered rightly over a figure of the runs."""
    figure, axes = plt.subplots(figsize=(8, 6), layout="constrained")
    seen, points = set(), []
    for method, runs in results.items():
        family = METHODS[method].family
        x, y = mean(runs, name), 100 * mean(runs, "checked_accuracy")
        axes.errorbar(
            x, y, 100 * spread(runs, "checked_accuracy"), spread(runs, name),
            fmt="o", ms=5, lw=0.8, color=COLOURS[family], label=None if family in seen else family,
        )  # fmt: skip
        seen.add(family)
        points.append((x, y, method))
    for i, (x, y, method) in enumerate(sorted(points)):
        right = i % 2 == 0  # neighbours, which may lie above each other, on different sides
        axes.annotate(
            method, (x, y), xytext=(5 if right else -5, 3), textcoords="offset points",
            fontsize=7.5, ha="left" if right else "right",
        )  # fmt: skip
    if mark is not None:
        axes.axvline(mark, color="#999999", ls=":", lw=1)
    if log:
        axes.set_xscale("log")
    axes.set(xlabel=label, ylabel="held-out questions answered rightly, %")
    axes.margins(x=0.12)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    save(figure, path)


def curves(results: Results, path: pathlib.Path) -> None:
    """Smoothed training loss, mean over seeds."""
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for method in filter(results.__contains__, CURVES):
        losses = np.array([smoothed(run["losses"]) for run in results[method]]).mean(0)
        steps = range(len(results[method][0]["losses"]) - len(losses) + 1, len(losses) + 5)
        axes.plot(steps, losses, lw=1.4, label=method)
    axes.set(xlabel="step", ylabel="training loss, nats per token (mean of 5 steps)", ylim=(0, 2))
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, ncols=2)
    save(figure, path)


def heat(results: Results, path: pathlib.Path) -> None:
    """AdaLoRA's last ranks, mean over seeds."""
    runs = results["adalora"]
    modules, _ = by_layer(runs[0])
    ranks = np.array([by_layer(run)[1] for run in runs]).mean(0)
    figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
    axes.imshow(ranks, cmap="Blues", vmin=0, aspect="auto")
    for (layer, module), rank in np.ndenumerate(ranks):
        colour = "white" if rank > 0.6 * ranks.max() else "black"
        axes.text(module, layer, f"{rank:.1f}", ha="center", va="center", color=colour)
    axes.set_xticks(range(len(modules)), modules, rotation=20, fontsize=8)
    axes.set_yticks(range(len(ranks)), [f"layer {i}" for i in range(len(ranks))], fontsize=8)
    save(figure, path)


def save(figure: plt.Figure, path: pathlib.Path) -> None:
    figure.savefig(path, dpi=80)
    plt.close(figure)
