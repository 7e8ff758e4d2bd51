"""Labels: losses by their formulas, what does not count, and a classifier that learns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgpt import models
from jgpt.config import ConfigError, from_config_dict
from jgpt.objectives import make_objective
from jgpt.training.optimizer import make_optimizer
from jgpt.training.state import init_state
from jgpt.training.step import make_train_step

MODEL = {
    "vocab_size": 30,
    "num_layers": 1,
    "hidden_size": 16,
    "num_heads": 2,
    "intermediate_size": 32,
    "attention": "bidirectional",
    "pooling": "mean",
    "pooler": "tanh",
    "ffn_bias": True,
}
SILENT = {"sample": {"final_samples": 0}, "data": {"batch_size": 32}}


def config_of(name, **model):
    train = {"steps": 60, "sample_every": 0}
    optimizer = {"learning_rate": 1e-2, "warmup_steps": 5}
    return from_config_dict(
        SILENT
        | {"model": MODEL | model, "objective": {"name": name}}
        | {"train": train, "optimizer": optimizer}
    )


def outputs_only(outputs):
    """Stands in for a model: what it gives is fixed."""
    return lambda variables, batch, *, output, key=None: (outputs, None)


def loss_of(config, outputs, labels):
    batch = {"inputs": np.zeros((len(labels), 1), np.int32), "labels": labels}
    return make_objective(config).loss(outputs_only(outputs), {}, batch, None)


@pytest.mark.parametrize("shape, level", [((6,), "sequence"), ((3, 5), "token")])
def test_classification_is_the_cross_entropy_of_the_labels_that_count(shape, level):
    generator = np.random.default_rng(0)
    outputs = generator.standard_normal((*shape, 4)).astype(np.float32)
    labels = generator.integers(0, 4, shape).astype(np.int32)
    ignored = generator.random(shape) < 0.4
    found = loss_of(
        config_of("classification", num_labels=4, label_level=level),
        outputs,
        np.where(ignored, -100, labels),
    )
    wide = outputs.astype(np.float64)
    logps = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
    nll = -np.take_along_axis(logps, labels[..., None], -1)[..., 0]
    right = wide.argmax(-1) == labels
    assert found.weight == (~ignored).sum()
    assert found.total == pytest.approx(nll[~ignored].sum(), rel=1e-5)
    assert found.metrics["accuracy"][0] == right[~ignored].sum()


def test_regression_is_the_squared_error_of_the_labels_that_count():
    outputs = np.array([[1.0], [2.5], [-1.0]], np.float32)
    labels = np.array([0.5, np.nan, -3.0], np.float32)
    found = loss_of(config_of("regression", num_labels=1), outputs, labels)
    assert (found.total, found.weight) == (0.25 + 4.0, 2.0)
    assert found.metrics["absolute_error"] == (0.5 + 2.0, 2.0)
    gradient = jax.grad(lambda x: loss_of(config_of("regression", num_labels=1), x, labels).total)(
        jnp.asarray(outputs)
    )
    np.testing.assert_allclose(gradient[:, 0], [1.0, 0.0, 4.0])


@pytest.mark.parametrize("name, num_labels", [("classification", 2), ("regression", 1)])
def test_a_model_learns_which_texts_hold_a_token(name, num_labels):
    config = config_of(name, num_labels=num_labels)
    apply = functools.partial(models.apply, config.model)
    params = models.abstract_params(config.model)
    optimizer = make_optimizer(config.optimizer, config.train.steps, params)
    state = init_state(functools.partial(models.init, config.model), optimizer, jax.random.key(0))
    step = jax.jit(make_train_step(make_objective(config), apply, optimizer, config))
    generator = np.random.default_rng(0)
    losses = []
    for _ in range(config.train.steps):
        tokens = generator.integers(5, 30, (32, 12)).astype(np.int32)
        holds = generator.random(32) < 0.5
        tokens[holds, :4] = 4
        labels = holds.astype(np.int32 if num_labels == 2 else np.float32)
        state, metrics = step(state, {"inputs": tokens, "labels": labels})
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize("name, num_labels", [("classification", 1), ("regression", 2)])
def test_a_wrong_number_of_labels_is_refused(name, num_labels):
    with pytest.raises(ConfigError, match=r"model\.num_labels"):
        make_objective(config_of(name, num_labels=num_labels))


def test_text_has_no_labels():
    config = config_of("classification", num_labels=2)
    with pytest.raises(ConfigError, match=r"batch\['labels'\] is missing"):
        make_objective(config).loss(outputs_only(None), {}, {"inputs": np.zeros((1, 1))}, None)
