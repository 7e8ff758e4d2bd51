"""Next-token prediction over packed documents."""

import jax.numpy as jnp

from jgpt.config import Config
from jgpt.objectives.objective import Apply, Loss, Objective, prepare_nothing
from jgpt.typing import Array, Batch, PyTree


def make(config: Config) -> Objective:
    """Cross-entropy of `targets` weighted by `loss_weights`, with `objective.z_loss`."""
    z_coefficient = config.objective.z_loss

    def loss(apply: Apply, variables: PyTree, batch: Batch, key: Array | None) -> Loss:
        sums, aux = apply(variables, batch, output="cross_entropy", key=key, z_loss=z_coefficient)
        return Loss(
            total=sums.total,
            weight=sums.weight,
            metrics={
                "loss": (sums.nll, sums.weight),
                "accuracy": (sums.correct, sums.weight),
                "z": (sums.z, sums.weight),
            },
            extra=jnp.zeros(()),
            router=aux.router,
        )

    return Objective(loss, prepare_nothing)
