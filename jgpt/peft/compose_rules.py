"""How tensors of several adapters become one: sums, pruning, elected signs.

As peft 0.21 has them, so that the figures are the same: pruning is of each tensor by itself, an
entry of 0 never agrees with a sign, a sum of 0 counts as plus, and what remains is divided by the
number of adapters that agree.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jgpt.config import ConfigError
from jgpt.typing import Array

Rule = Callable[[Array, Array, int], Array]
"""(tensors [n, ...], weights [n], a number that tells calls at one site apart) -> one tensor."""


def choose(name: str, density: float, majority: str, key: Array) -> Rule:
    """The rule of that name."""
    kept = functools.partial(largest, density=density)
    dropped = functools.partial(random, density=density, key=key)
    elected = functools.partial(disjoint, majority=majority)
    rules: dict[str, Rule] = {
        "linear": lambda x, w, call: weighted(x, w),
        "magnitude_prune": lambda x, w, call: weighted(kept(x), w),
        "ties": lambda x, w, call: elected(kept(x), w),
        "dare_linear": lambda x, w, call: weighted(dropped(x, call=call), w),
        "dare_ties": lambda x, w, call: elected(dropped(x, call=call), w),
    }
    return rules[name]


def _broadcast(weights: Array, tensors: Array) -> Array:
    return weights.reshape(-1, *(1,) * (tensors.ndim - 1))


def weighted(tensors: Array, weights: Array) -> Array:
    return (tensors * _broadcast(weights, tensors)).sum(0)


def largest(tensors: Array, density: float) -> Array:
    """The `density` share of entries of each tensor that are largest in size; the others 0."""
    flat = tensors.reshape(len(tensors), -1)
    count = int(density * flat.shape[1])
    order = jnp.argsort(-jnp.abs(flat), axis=1, stable=True)[:, :count]
    keep = jnp.zeros(flat.shape, bool).at[jnp.arange(len(flat))[:, None], order].set(True)
    return jnp.where(keep, flat, 0).reshape(tensors.shape)


def random(tensors: Array, density: float, key: Array, call: int) -> Array:
    """Entries with probability `density`, divided by it; the others 0 (DARE: Yu et al. 2024)."""
    key = jax.random.fold_in(jax.random.fold_in(key, call), tensors.size)
    keep = jax.random.bernoulli(key, density, tensors.shape)
    return jnp.where(keep, tensors / density, 0)


def disjoint(tensors: Array, weights: Array, majority: str) -> Array:
    """The mean of the weighted entries whose sign is the elected one (TIES: Yadav et al. 2023).

    Raises:
        ConfigError: an unknown way to elect.
    """
    votes = {"total": tensors, "frequency": jnp.sign(tensors)}
    if majority not in votes:
        raise ConfigError(f"majority is {majority!r}; choose total or frequency")
    elected = jnp.where(votes[majority].sum(0) >= 0, 1, -1)
    agree = jnp.sign(tensors) == elected
    total = (tensors * _broadcast(weights, tensors) * agree).sum(0)
    return total / jnp.maximum(agree.sum(0), 1)
