"""What a run carries from step to step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jgpt.trees import leaves_by_path, path_string
from jgpt.typing import Array, PyTree


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that a training step reads and writes. Optional parts are `{}` when unused."""

    step: Array
    """[] int32: steps taken, skipped ones included; also what dropout keys are folded with"""
    params: PyTree
    opt_state: PyTree
    selection_bias: Array | dict
    """[L_moe, E] float32: added to router scores for the selection only"""
    ema: PyTree
    """moving average of `params`, of the same structure, float32"""
    skipped: Array
    """[] int32: steps whose update was thrown away because it was not finite"""
    consecutive_skipped: Array
    """[] int32: of those, the ones since the last good step"""


def variables(state: TrainState, use_ema: bool = False) -> dict[str, PyTree]:
    """What `models.apply` takes. `use_ema` asks for the averaged weights where the run has them."""
    params = state.ema if use_ema and state.ema else state.params
    return with_selection_bias(params, state.selection_bias)


def with_selection_bias(params: PyTree, selection_bias: Array | dict) -> dict[str, PyTree]:
    """`params` as model variables, with the selection bias where there is one."""
    if isinstance(selection_bias, dict):
        return {"params": params}
    return {"params": params, "selection_bias": selection_bias}


def init_state(
    init_params: Callable[[Array], PyTree],
    optimizer: optax.GradientTransformation,
    key: Array,
    *,
    ema: bool = False,
    selection_bias_shape: tuple[int, int] | None = None,
) -> TrainState:
    """A fresh state; jit it with `out_shardings=state_shardings(...)` so that it is born in place.

    Args:
        init_params: key -> parameters (`models.init` with its config bound).
        optimizer: from `make_optimizer`.
        key: of the initial weights.
        ema: whether to keep a moving average of the weights.
        selection_bias_shape: (MoE layers, experts) where the router has a selection bias.
    """
    params = init_params(key)

    def zero() -> Array:  # each its own buffer, since all are donated
        return jnp.zeros((), jnp.int32)

    return TrainState(
        step=zero(),
        params=params,
        opt_state=optimizer.init(params),
        ema=jax.tree.map(lambda p: jnp.array(p, jnp.float32, copy=True), params) if ema else {},
        selection_bias=jnp.zeros(selection_bias_shape) if selection_bias_shape else {},
        skipped=zero(),
        consecutive_skipped=zero(),
    )


def state_shardings(
    state: PyTree, param_shardings: PyTree, replicated: jax.sharding.Sharding
) -> PyTree:
    """A sharding for every leaf: whatever mirrors a parameter lies where that parameter lies.

    Args:
        state: a `TrainState`, abstract or not.
        param_shardings: a sharding per parameter.
        replicated: of everything that mirrors no parameter.
    """
    placed = leaves_by_path(param_shardings)
    shapes = {path: leaf.shape for path, leaf in leaves_by_path(state.params).items()}

    def place(path: tuple, leaf: Any) -> jax.sharding.Sharding:
        parameter = mirrored_parameter(path_string(path), shapes)
        if parameter is None or shapes[parameter] != leaf.shape:
            return replicated
        return placed[parameter]

    return jax.tree_util.tree_map_with_path(place, state)


def mirrored_parameter(path: str, parameters: Any) -> str | None:
    """The longest parameter path that `path` ends with: `head/kernel` of `0/mu/head/kernel`."""
    parts = path.split("/")
    for start in range(len(parts)):
        tail = "/".join(parts[start:])
        if tail in parameters:
            return tail
    return None


def abstract_state(state: PyTree, shardings: PyTree) -> PyTree:
    """Shapes, types and places in place of arrays: what a checkpoint is restored onto.

    Args:
        state: a `TrainState`, abstract or not.
        shardings: a tree like it, or one sharding for all.
    """
    if isinstance(shardings, jax.sharding.Sharding):
        shardings = jax.tree.map(lambda _: shardings, state)
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state, shardings
    )
