"""What every objective is: a loss in sums, and what is prepared for it outside differentiation."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from jgpt.typing import Array, Batch, PyTree, RouterStats


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Loss:
    """Sums over a batch, so that microbatches and shards add up exactly.

    What is minimised is `total / weight + extra`. Sums are float32 scalars.
    """

    total: Array
    """differentiable sum over tokens (or pairs, sequences, ...)"""
    weight: Array
    """what `total` is divided by; carries no gradient"""
    metrics: dict[str, tuple[Array, Array]]
    """name -> (sum, weight); reported as sum / weight"""
    extra: Array
    """differentiable and mean-like (balance loss, router z-loss). It is no sum: accumulated over
    microbatches it is their average by `weight`, which equals the full batch's value only where
    there is one microbatch."""
    router: RouterStats | None = None
    """sums of the mixture-of-experts layers, stacked [L_moe, ...]"""

    @property
    def objective(self) -> Array:
        """`weight` times what is minimised: the sum whose gradients add up over microbatches."""
        return self.total + jax.lax.stop_gradient(self.weight) * self.extra


class Apply(Protocol):
    """`models.apply` with its config bound."""

    def __call__(
        self,
        variables: PyTree,
        batch: Batch,
        *,
        output: str,
        key: Array | None = None,
        **kwargs: Any,
    ) -> tuple[Any, Any]: ...


class Prepare(Protocol):
    """What is not differentiated: runs on the host, outside jit, before the step.

    Reference log-probabilities, teacher logits, rollouts and their rewards are made here and added
    to the batches. `generate` and `reward_fn` are handed in by the loop where an objective samples.
    Each batch that is returned is one optimizer step.
    """

    def __call__(
        self,
        apply: Apply,
        variables: PyTree,
        batch: Batch,
        key: Array,
        *,
        generate: Callable[..., Any] | None = None,
        reward_fn: Callable[..., Any] | None = None,
    ) -> list[Batch]: ...


@dataclass(frozen=True)
class Objective:
    """`loss(apply, variables, batch, key) -> Loss` and `prepare`; `key` None is evaluation.

    Attributes:
        corrupt: (batch of text, key) -> the batch that is learned from, pure and of fixed shapes;
            the loop calls it before `prepare` with a key of the step, and in validation with keys
            that are always the same. None where the text itself is learned from.
    """

    loss: Callable[[Apply, PyTree, Batch, Array | None], Loss]
    prepare: Prepare
    corrupt: Callable[[Batch, Array], Batch] | None = None


def prepare_nothing(
    apply: Apply,
    variables: PyTree,
    batch: Batch,
    key: Array,
    *,
    generate: Callable[..., Any] | None = None,
    reward_fn: Callable[..., Any] | None = None,
) -> list[Batch]:
    """For objectives whose batch has all that they need: the batch itself."""
    return [batch]


def ratio(total: Array, weight: Array) -> Array:
    """total / weight, and 0 where nothing was weighed."""
    return jnp.where(weight > 0, total / jnp.where(weight > 0, weight, 1), 0.0)
