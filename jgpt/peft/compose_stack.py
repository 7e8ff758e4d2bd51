"""Several adapters in one model: a row of the batch uses its own, or learned weights mix them.

Stacked leaves have an axis of adapters in front (behind that of stacked layers), and
`batch["adapter_ids"]` [B] says which of them each row uses, in inference and in training. A slot
can be given another adapter of the same shapes at any time: nothing is compiled again.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jgpt.config import ConfigError, ModelConfig
from jgpt.peft import compose
from jgpt.peft.adapters import SHARED, Adapters, Peft, flat, laid_out, nested, unrolled
from jgpt.peft.compose import Factor, Factors, Pair, factors, from_factors, one_model
from jgpt.typing import Array, PyTree


def stack(pairs: Sequence[Pair]) -> Pair:
    """One set of adapters of several, for batches with `adapter_ids`.

    Adapters of one method, settings and targets are stacked as they are. Others, where they are of
    the LoRA family, become LoRA with the largest rank and all targets; columns that an adapter does
    not have are masked, and stay so in training.

    Raises:
        ConfigError: adapters that cannot lie in one array, or on experts.
    """
    model, peft = one_model(pairs), pairs[0][0]
    if any(other.leaves.keys() != peft.leaves.keys() or _shapes(other) != _shapes(peft)
           for other, _ in pairs):  # fmt: skip
        pairs = same_shapes(model, [factors(*pair) for pair in pairs])
        peft = pairs[0][0]
    if any(target.site.kind == "experts" for target in peft.targets):
        raise ConfigError(
            "adapters on experts: rows of several adapters meet in one expert; leave experts out "
            "(peft.exclude), or merge"
        )
    if SHARED in peft.leaves:
        raise ConfigError(
            f"peft.method={peft.settings.method!r} has arrays for all sites together, which rows "
            "cannot have of their own; turn VeRA into LoRA first (compose.as_lora)"
        )
    trees = [Adapters(*(unrolled(peft, tree) for tree in adapters)) for _, adapters in pairs]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
    return peft, Adapters(*(laid_out(peft, tree) for tree in stacked))


def _shapes(peft: Peft) -> dict[str, tuple[int, ...]]:
    shapes = {f"{s}/{n}": leaf.shape for s, own in peft.leaves.items() for n, leaf in own.items()}
    return {"": (peft.settings.method,), **shapes}


def same_shapes(model: ModelConfig, found: Sequence[Factors]) -> list[Pair]:
    """Each as LoRA on all sites of any of them, with the largest rank there; the rest masked."""
    ranks: dict[str, Factor] = {}
    for own in found:
        for path, factor in own.items():
            if path not in ranks or factor.a.shape[-1] > ranks[path].a.shape[-1]:
                ranks[path] = factor
    pairs = []
    for own in found:
        padded, used = {}, {}
        for path, like in ranks.items():
            given = own.get(path, Factor(like.a[..., :0], like.b[..., :0, :]))
            used[path] = given.a.shape[-1]
            missing = like.a.shape[-1] - used[path]
            padded[path] = Factor(_padded(given.a, -1, missing), _padded(given.b, -2, missing))
        peft, adapters = from_factors(model, padded)
        constants = {
            path: jnp.where(
                jnp.arange(scaling.shape[-1]) < used[path.rpartition("/")[0]], scaling, 0
            )
            for path, scaling in flat(unrolled(peft, adapters.constants))
        }
        pairs.append((peft, Adapters(adapters.trained, laid_out(peft, nested(constants)))))
    return pairs


def _padded(array: Array, axis: int, count: int) -> Array:
    width = [(0, 0)] * array.ndim
    width[axis] = (0, count)
    return jnp.pad(array, width)


def swap(stacked: Pair, slot: int, pair: Pair) -> Pair:
    """`stacked` with another adapter in `slot`: same shapes, so what is compiled stays good.

    An adapter of smaller rank, or on fewer sites, is padded.

    Raises:
        ConfigError: there is no such slot, or no room for the adapter in it.
    """
    peft, adapters = stacked
    whole = Adapters(*(unrolled(peft, tree) for tree in adapters))
    count = len(next(iter(dict(flat(whole.trained)).values())))
    if not 0 <= slot < count:
        raise ConfigError(f"slot {slot}: there are those from 0 to {count - 1}")
    if _shapes(pair[0]) == _shapes(peft):
        given = Adapters(*(unrolled(peft, tree) for tree in pair[1]))
    else:
        given = _fitted(peft, factors(*pair))
    put = jax.tree.map(lambda old, new: old.at[slot].set(new.astype(old.dtype)), whole, given)
    return peft, Adapters(*(laid_out(peft, tree) for tree in put))


def _fitted(peft: Peft, found: Factors) -> Adapters:
    """Factors as leaves of the sites and widths that `peft` has; unrolled."""
    trained, constants = {}, {}
    for path in found:
        if path not in peft.leaves:
            raise ConfigError(f"the stacked adapters have no place for {path}; stack them again")
    for target in peft.targets:
        path, shapes = target.site.path, peft.leaves[target.site.path]
        (fan_in, out), width = target.site.matrix, target.width
        own = found.get(path, Factor(jnp.zeros((fan_in, 0)), jnp.zeros((0, out))))
        missing = width - own.a.shape[-1]
        if missing < 0 or "lora_a" not in shapes:
            raise ConfigError(
                f"{path}: rank {own.a.shape[-1]} does not fit the stacked adapters' {width}; stack "
                "them again, or lower it (compose.combine, way 'svd')"
            )
        trained[f"{path}/lora_a"] = _padded(own.a, -1, missing)
        trained[f"{path}/lora_b"] = _padded(own.b, -2, missing)
        constants[f"{path}/scaling"] = (jnp.arange(width) < own.a.shape[-1]).astype(jnp.float32)
    return Adapters(nested(trained), nested(constants))


def unstack(stacked: Pair, slot: int) -> Pair:
    """The adapter in `slot`."""
    peft, adapters = stacked
    trees = [jax.tree.map(lambda x: x[slot], unrolled(peft, tree)) for tree in adapters]
    return peft, Adapters(*(laid_out(peft, tree) for tree in trees))


# --- learned weights -----------------------------------------------------------------------------


def learn_weights(
    pairs: Sequence[Pair],
    loss: Callable[[Peft, Adapters], Array],
    *,
    steps: int = 40,
    rate: float = 0.05,
    penalty: float = 0.05,
    initial: Sequence[float] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Weights under which the sum of adapters does well on a few examples.

    LoRAHub (Huang et al. 2024) searches them without gradients; here they are differentiated by, as
    a weight is no more than the scale of its columns. Use them with `compose.combine(..., 'cat')`.

    Args:
        loss: of the model with these adapters on the examples, a scalar; it is compiled.
        steps: of Adam.
        rate: its learning rate.
        penalty: on the mean of |w|, as in the paper.
        initial: weights to begin with; equal ones that sum to 1 if None.

    Returns:
        (weights [n], losses [steps + 1] without the penalty).
    """
    count = len(pairs)
    found = [factors(*pair) for pair in pairs]
    peft, adapters = from_factors(pairs[0][0].model, compose.cat(found, [1.0] * count))
    owners = {
        f"{path}/scaling": np.concatenate(
            [np.full(own[path].a.shape[-1], i) for i, own in enumerate(found) if path in own]
        )
        for path in {path for own in found for path in own}
    }
    scaling = dict(flat(unrolled(peft, adapters.constants)))

    def mixed(weights: Array) -> Adapters:
        scaled = {
            path: own.at[: len(owners[path])].multiply(weights[owners[path]])
            for path, own in scaling.items()
        }
        return Adapters(adapters.trained, laid_out(peft, nested(scaled)))

    def total(weights: Array) -> tuple[Array, Array]:
        value = loss(peft, mixed(weights))
        return value + penalty * jnp.abs(weights).mean(), value

    weights = jnp.full(count, 1 / count) if initial is None else jnp.asarray(initial, jnp.float32)
    return _descend(total, weights, steps, rate)


def _descend(
    total: Callable[[Array], tuple[Array, Array]], weights: Array, steps: int, rate: float
) -> tuple[np.ndarray, np.ndarray]:
    optimizer = optax.adam(rate)

    def step(carry: PyTree, _: None) -> tuple[PyTree, Array]:
        weights, state = carry
        (_, value), gradient = jax.value_and_grad(total, has_aux=True)(weights)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(weights, updates), state), value

    @jax.jit
    def run(weights: Array) -> tuple[Array, Array]:
        (weights, _), values = jax.lax.scan(step, (weights, optimizer.init(weights)), None, steps)
        return weights, jnp.append(values, total(weights)[1])

    return tuple(np.asarray(x) for x in run(weights))
