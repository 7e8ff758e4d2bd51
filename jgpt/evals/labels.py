"""Predicted labels against true ones: accuracy and F1 of classes, correlations of numbers."""

from collections.abc import Callable, Iterable, Iterator, Mapping

import jax
import numpy as np

from jgpt.typing import PyTree


def make(
    predict: Callable[[PyTree, Mapping], Mapping[str, jax.Array]],
    batches: Callable[[], Iterable[Mapping]],
    num_labels: int,
) -> Callable[[PyTree], Iterator[tuple[str, float]]]:
    """An evaluation over `batches()`.

    Args:
        predict: (variables, batch) -> `outputs` [B, C] (logits; or [B, 1], numbers) and `labels`
            [B], of which those below 0 or NaN do not count.
        batches: gives the labelled batches, anew at every run.
        num_labels: C; 1 for numbers.
    """
    figures = number_figures if num_labels == 1 else class_figures

    def run(state: PyTree) -> Iterator[tuple[str, float]]:
        found = jax.device_get([predict(state, batch) for batch in batches()])
        outputs, labels = (
            np.concatenate([np.asarray(part[name]) for part in found])
            for name in ("outputs", "labels")
        )
        counted = labels == labels if num_labels == 1 else labels >= 0
        for name, value in figures(outputs[counted], labels[counted]).items():
            yield f"validation_{name}", value

    return run


def class_figures(outputs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """`loss` (nats), `accuracy` and `f1`, the mean of F1 over the classes (macro).

    A class that is neither there nor predicted has no F1 and is left out of the mean.

    Args:
        outputs: [N, C] logits.
        labels: [N] from 0.
    """
    logits = outputs.astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    logps = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    predicted = outputs.argmax(-1)
    f1 = []
    for c in range(outputs.shape[1]):
        hits = np.sum((predicted == c) & (labels == c))
        seen = np.sum(predicted == c) + np.sum(labels == c)
        if seen:
            f1.append(2 * hits / seen)
    return {
        "loss": float(-logps[np.arange(len(labels)), labels].mean()),
        "accuracy": float(np.mean(predicted == labels)),
        "f1": float(np.mean(f1)),
    }


def number_figures(outputs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """`loss` (mean squared error), `pearson` and `spearman`, which are NaN for constant numbers.

    Args:
        outputs: [N, 1].
        labels: [N].
    """
    predicted, true = outputs[:, 0].astype(np.float64), labels.astype(np.float64)
    return {
        "loss": float(np.mean((predicted - true) ** 2)),
        "pearson": pearson(predicted, true),
        "spearman": pearson(ranks(predicted), ranks(true)),
    }


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Correlation of two [N] arrays; NaN where one is constant."""
    x, y = x - x.mean(), y - y.mean()
    scale = np.sqrt(np.sum(x * x) * np.sum(y * y))
    return float(np.sum(x * y) / scale) if scale > 0 else float("nan")


def ranks(values: np.ndarray) -> np.ndarray:
    """[N] ranks from 1; equal values share the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((2 * last - counts + 1) / 2)[place]
