"""The diagonal of the Fisher information of a language model, estimated on its old data.

    F_i = E[(d log p(y | x) / d theta_i)^2]

`targets` says whose y: `sampled`, drawn from the model's own p(. | x) at every position of the old
text (the Fisher information proper), or `data`, the text's own next tokens (the empirical Fisher,
which is another thing wherever the model is not the text's distribution; Kunstner et al. 2019).

`unit` says what one example is, and so what the expectation is taken over:

- `token`: every target, given all before it. F then has the scale of the mean loss per token, to
  which the penalty is added. With sampled targets the gradients of different positions have mean 0
  and are independent, so that the expected square of their sum is the sum of their expected squares
  (Martens 2020): one backward pass a row is an unbiased estimate. With those of the data it is not,
  and every target has a backward pass of its own: right for small models only.
- `sequence`: a whole row, of which log p is the sum over its targets; one backward pass a row.
  With `data.packing` none a row is a document.

What a source of class texts weighs is left out: every target that counts, counts once.
"""

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from jgpt.evals.chunks import by_chunks, logits_of
from jgpt.objectives import Apply
from jgpt.typing import Array, Batch, PyTree

TARGETS = ("sampled", "data")
UNITS = ("token", "sequence")


def sample_targets(
    apply: Apply, variables: PyTree, batch: Batch, key: Array, softcap: float = 0.0
) -> Array:
    """[B, S] int32: at every position a token drawn from the model's distribution there."""
    (hidden, kernel, bias), _ = apply(variables, batch, output="projection")
    places = jnp.arange(hidden.shape[0] * hidden.shape[1]).reshape(hidden.shape[:2])

    def draw(hidden: Array, places: Array) -> Array:
        logits = logits_of((hidden, kernel, bias), softcap)
        keys = jax.vmap(jax.vmap(functools.partial(jax.random.fold_in, key)))(places)
        return jax.vmap(jax.vmap(jax.random.categorical))(keys, logits).astype(jnp.int32)

    return by_chunks(draw, hidden, places)


def squared_gradients(
    apply: Apply, variables: PyTree, batch: Batch, *, by_token: bool, parts: int = 1
) -> PyTree:
    """Sum over examples of the squared gradient of their log p; float32, like `params`.

    Args:
        apply: `models.apply` with its config bound.
        variables: of the model.
        batch: its targets are scored where `loss_weights` are above 0.
        by_token: whether an example is a target or a row.
        parts: what a mesh cuts a batch's rows into. An example is computed in a batch of so many
            rows, of which the others weigh nothing: exact, in the time that one device would take.
    """
    rest = {name: tree for name, tree in variables.items() if name != "params"}
    rows, length = batch["targets"].shape
    counted = (batch["loss_weights"] > 0).astype(jnp.float32)
    first = (jnp.arange(parts) == 0).astype(jnp.float32)[:, None]

    def negative_log_p(params: PyTree, row: Array, place: Array) -> Array:
        batch_of_one = {
            name: jnp.broadcast_to(x[row], (parts, *x.shape[1:])) for name, x in batch.items()
        }
        weights = first * counted[row]
        if by_token:
            weights = weights * (jnp.arange(length) == place)
        batch_of_one["loss_weights"] = weights
        sums, _ = apply({"params": params, **rest}, batch_of_one, output="cross_entropy")
        return sums.total

    def add(sums: PyTree, example: tuple[Array, Array]) -> tuple[PyTree, None]:
        slope = jax.grad(negative_log_p)(variables["params"], *example)
        return jax.tree.map(lambda s, g: s + jnp.square(g.astype(jnp.float32)), sums, slope), None

    places = length if by_token else 1
    examples = jnp.repeat(jnp.arange(rows), places), jnp.tile(jnp.arange(places), rows)
    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), variables["params"])
    return jax.lax.scan(add, zeros, examples)[0]


def count_examples(batch: Batch, unit: str) -> Array:
    """[] float32: targets that count, or rows with some."""
    counted = batch["loss_weights"] > 0
    return jnp.sum(counted if unit == "token" else counted.any(1), dtype=jnp.float32)


def estimate(
    apply: Apply,
    variables: PyTree,
    batches: Iterable[Batch],
    key: Array,
    *,
    targets: str = "sampled",
    unit: str = "token",
    softcap: float = 0.0,
    parts: int = 1,
    places: PyTree | None = None,
) -> tuple[PyTree, dict[str, Any]]:
    """The diagonal of the Fisher information, a mean over the examples of all batches.

    Args:
        apply: `models.apply` with its config bound.
        variables: of the model; F is that of `params`.
        batches: of the old data.
        key: of the sampled targets.
        targets: one of TARGETS.
        unit: one of UNITS.
        softcap: `model.final_softcap`.
        parts: see `squared_gradients`.
        places: a sharding per parameter, where F is to lie; None for anywhere.

    Returns:
        (F, float32 and like `params`; facts: `targets`, `unit`, `examples`, `mean`).

    Raises:
        ValueError: no batch has a target that counts.
    """
    by_token = unit == "token" and targets == "data"
    placed: dict[str, Any] = {} if places is None else {"out_shardings": places}

    @functools.partial(jax.jit, donate_argnums=0, **placed)
    def add(sums: PyTree, variables: PyTree, batch: Batch, key: Array) -> PyTree:
        if targets == "sampled":
            drawn = sample_targets(apply, variables, batch, key, softcap)
            batch = {**batch, "targets": drawn}
        found = squared_gradients(apply, variables, batch, by_token=by_token, parts=parts)
        return jax.tree.map(jnp.add, sums, found)

    sums = jax.jit(_zeros, **placed)(variables["params"])
    count = 0.0
    for number, batch in enumerate(batches):
        sums = add(sums, variables, batch, jax.random.fold_in(key, number))
        count += float(count_examples(batch, unit))
    if not count:
        raise ValueError("no target of these batches counts; look at data.sources")
    fisher = jax.jit(_divided, donate_argnums=0, **placed)(sums, count)
    size = sum(leaf.size for leaf in jax.tree.leaves(fisher))
    mean = sum(float(jnp.sum(leaf)) for leaf in jax.tree.leaves(fisher)) / size
    return fisher, {"targets": targets, "unit": unit, "examples": int(count), "mean": mean}


def _zeros(params: PyTree) -> PyTree:
    return jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)


def _divided(sums: PyTree, count: Array) -> PyTree:
    return jax.tree.map(lambda s: s / count, sums)
