"""Figures of labels against definitions written out, and scipy's where it is."""

import numpy as np
import pytest

from jgpt.evals import labels


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def test_accuracy_and_macro_f1_of_counted_rows(rng):
    true = rng.integers(0, 3, 200)
    outputs = rng.normal(size=(200, 4)) + 2 * np.eye(4)[true]
    found = labels.class_figures(outputs.astype(np.float32), true)
    predicted = outputs.argmax(1)
    scores = []
    for c in range(4):
        hit = np.sum((predicted == c) & (true == c))
        precision, recall = hit / max(1, np.sum(predicted == c)), hit / max(1, np.sum(true == c))
        scores.append(2 * precision * recall / (precision + recall) if hit else 0.0)
    assert found["accuracy"] == np.mean(predicted == true)
    assert found["f1"] == pytest.approx(np.mean(scores))
    exact = -np.mean([o[t] - np.log(np.sum(np.exp(o))) for o, t in zip(outputs, true, strict=True)])
    assert found["loss"] == pytest.approx(exact, rel=1e-6)


def test_correlations_with_ties(rng):
    x = rng.integers(0, 6, 100).astype(float)
    y = np.exp(x + rng.normal(size=100))
    stats = pytest.importorskip("scipy.stats", reason="the other implementation")
    assert labels.pearson(x, y) == pytest.approx(stats.pearsonr(x, y)[0])
    found = labels.number_figures(y[:, None].astype(np.float32), x.astype(np.float32))
    assert found["spearman"] == pytest.approx(stats.spearmanr(y, x)[0], rel=1e-5)
    assert found["loss"] == pytest.approx(np.mean((y - x) ** 2), rel=1e-5)


def test_ranks_share_the_mean_and_constants_have_no_correlation():
    assert labels.ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1.0, 3.5, 2.0]
    assert np.isnan(labels.pearson(np.ones(4), np.arange(4.0)))


def test_rows_without_a_label_do_not_count():
    outputs = np.array([[5.0, 0], [0, 5.0], [5.0, 0]], np.float32)
    batches = [{"labels": np.array([0, 1, -1]), "x": 0}]

    def predict(state, batch):
        return {"outputs": outputs, "labels": batch["labels"]}

    figures = dict(labels.make(predict, lambda: batches, 2)(None))
    assert figures["validation_accuracy"] == 1.0
    numbers = {"labels": np.array([1.0, np.nan, 3.0])}

    def guess(state, batch):
        return {"outputs": np.array([[1.0], [9.0], [5.0]]), "labels": batch["labels"]}

    figures = dict(labels.make(guess, lambda: [numbers], 1)(None))
    assert figures["validation_loss"] == 2.0 and figures["validation_pearson"] == 1.0
