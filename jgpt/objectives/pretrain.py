"""Next-token prediction over packed documents."""

import jax.numpy as jnp

from jgpt.config import Config
from jgpt.layers.router import router_loss
from jgpt.objectives.objective import Apply, Loss, Objective, prepare_nothing
from jgpt.typing import Array, Batch, PyTree


def make(config: Config) -> Objective:
    """Cross-entropy of `targets` weighted by `loss_weights`, with `objective.z_loss` and
    `objective.label_smoothing`; the metric `loss` has neither.

    A mixture of experts adds its balance loss and router z-loss, summed over its layers, with the
    coefficients of `model.moe`. They are products and means over the tokens of a microbatch, not
    sums: with them, accumulated microbatches equal the full batch only nearly.
    """
    settings, moe = config.objective, config.model.moe

    def loss(apply: Apply, variables: PyTree, batch: Batch, key: Array | None) -> Loss:
        sums, aux = apply(
            variables,
            batch,
            output="cross_entropy",
            key=key,
            z_loss=settings.z_loss,
            label_smoothing=settings.label_smoothing,
        )
        return Loss(
            total=sums.total,
            weight=sums.weight,
            metrics={
                "loss": (sums.nll, sums.weight),
                "accuracy": (sums.correct, sums.weight),
                "z": (sums.z, sums.weight),
            },
            extra=jnp.zeros(()) if aux.router is None else router_loss(aux.router, moe),
            router=aux.router,
        )

    return Objective(loss, prepare_nothing)
