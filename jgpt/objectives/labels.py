"""Labels of whole texts or of their tokens: classes and numbers."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from jgpt.config import Config, ConfigError
from jgpt.objectives.objective import Apply, Loss, Objective, prepare_nothing
from jgpt.typing import Array, Batch, PyTree

Parts = dict[str, Array]
"""Figures of every label, of the labels' shape; `loss` is minimised."""


def make_classification(config: Config) -> Objective:
    """Cross-entropy of `labels`: [B], or [B, S] with `model.label_level='token'`.

    A label below 0 does not count.

    Raises:
        ConfigError: the model has fewer than two labels.
    """
    if config.model.num_labels < 2:
        raise ConfigError(
            f"objective.name='classification' needs classes: set model.num_labels "
            f"({config.model.num_labels}) to their number"
        )
    return _make(class_figures, lambda labels: labels >= 0)


def make_regression(config: Config) -> Objective:
    """Squared error of `labels`: float32 [B], or [B, S] with `model.label_level='token'`.

    A label that is no number (NaN) does not count.

    Raises:
        ConfigError: the model has not exactly one output.
    """
    if config.model.num_labels != 1:
        raise ConfigError(
            f"objective.name='regression' has one output: set model.num_labels "
            f"({config.model.num_labels}) to 1"
        )
    return _make(regression_figures, lambda labels: ~jnp.isnan(labels))


def class_figures(outputs: Float[Array, "... C"], labels: Int[Array, "..."]) -> Parts:
    """`loss` in nats and `accuracy` of every label; labels below 0 give anything."""
    labels = jnp.maximum(labels, 0)
    logps = jax.nn.log_softmax(outputs.astype(jnp.float32))
    return {
        "loss": -jnp.take_along_axis(logps, labels[..., None], axis=-1)[..., 0],
        "accuracy": (jnp.argmax(outputs, axis=-1) == labels).astype(jnp.float32),
    }


def regression_figures(outputs: Float[Array, "... 1"], labels: Float[Array, "..."]) -> Parts:
    """`loss`, the squared error, and `absolute_error` of every label; NaN counts as 0."""
    difference = outputs[..., 0].astype(jnp.float32) - jnp.nan_to_num(labels)
    return {"loss": difference**2, "absolute_error": abs(difference)}


def _make(figures: Callable[[Array, Array], Parts], counts: Callable[[Array], Array]) -> Objective:
    def loss(apply: Apply, variables: PyTree, batch: Batch, key: Array | None) -> Loss:
        if "labels" not in batch:
            raise ConfigError(
                "batch['labels'] is missing, and text has none: name a source of kind labels in "
                "data.sources, or make the batches yourself, as docs/encoders.md shows"
            )
        labels = batch["labels"]
        outputs, _ = apply(variables, batch, output="labels", key=key)
        counted = counts(labels)
        weight = jnp.sum(counted).astype(jnp.float32)
        sums = {
            name: jnp.sum(jnp.where(counted, value, 0.0))
            for name, value in figures(outputs, labels).items()
        }
        return Loss(
            total=sums["loss"],
            weight=weight,
            metrics={name: (value, weight) for name, value in sums.items()},
            extra=jnp.zeros(()),
        )

    return Objective(loss, prepare_nothing)
