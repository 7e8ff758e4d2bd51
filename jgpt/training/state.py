"""What a run carries from step to step."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

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
    """what is trained: the model's parameters, or some of them, and under `adapters` those"""
    opt_state: PyTree
    selection_bias: Array | dict
    """[L_moe, E] float32: added to router scores for the selection only"""
    ema: PyTree
    """moving average of `params`, of the same structure, float32"""
    skipped: Array
    """[] int32: steps whose update was thrown away because it was not finite"""
    consecutive_skipped: Array
    """[] int32: of those, the ones since the last good step"""
    frozen: PyTree = dataclasses.field(default_factory=dict)
    """parameters that are not trained, laid out like the others"""
    constants: PyTree = dataclasses.field(default_factory=dict)
    """what belongs to adapters and is not trained"""
    method_state: PyTree = dataclasses.field(default_factory=dict)
    """what a method of fine-tuning remembers between steps (AdaLoRA's importances)"""
    anchor: PyTree = dataclasses.field(default_factory=dict)
    """what the run is held to (`forgetting.ewc`): `fisher` and `weights`, laid out like `params`"""


ADAPTERS = "adapters"
"""In `TrainState.params`, and in the variables of a model: the trained leaves of adapters."""


def variables(state: TrainState, use_ema: bool = False) -> dict[str, PyTree]:
    """What `models.apply` takes. `use_ema` asks for the averaged weights where the run has them."""
    return assembled(state.ema if use_ema and state.ema else state.params, state)


def assembled(trained: PyTree, state: TrainState) -> dict[str, PyTree]:
    """A model's variables: what is trained, and around it what `state` holds beside it."""
    params, adapters = parted(trained)
    result = {"params": joined(params, state.frozen) if state.frozen else params}
    if adapters is not None:
        result |= {ADAPTERS: adapters, "constants": state.constants}
    if not isinstance(state.selection_bias, dict):
        result["selection_bias"] = state.selection_bias
    return result


def parted(trained: PyTree) -> tuple[PyTree, PyTree | None]:
    """(parameters of the model, adapters or None) of a `TrainState.params`."""
    if ADAPTERS not in trained:
        return trained, None
    return {n: tree for n, tree in trained.items() if n != ADAPTERS}, trained[ADAPTERS]


def joined(first: PyTree, second: PyTree) -> PyTree:
    """One tree of nested dicts with the leaves of both.

    An array that is in both was cut along its first axis (layers): the second is in front.
    """
    if not isinstance(first, Mapping):
        return jnp.concatenate([second, first])
    both = {name: joined(first[name], second[name]) for name in first if name in second}
    return {**second, **first, **both}


def with_selection_bias(params: PyTree, selection_bias: Array | dict) -> dict[str, PyTree]:
    """`params` as model variables, with the selection bias where there is one."""
    if isinstance(selection_bias, dict):
        return {"params": params}
    return {"params": params, "selection_bias": selection_bias}


class Start(NamedTuple):
    """The first values of what a run trains, and of what lies beside it (see `TrainState`)."""

    params: PyTree
    frozen: PyTree = {}
    constants: PyTree = {}
    method_state: PyTree = {}
    anchor: PyTree = {}


def init_state(
    init_params: Callable[[Array], PyTree | Start],
    optimizer: optax.GradientTransformation,
    key: Array,
    *,
    ema: bool = False,
    selection_bias_shape: tuple[int, int] | None = None,
) -> TrainState:
    """A fresh state; jit it with `out_shardings=state_shardings(...)` so that it is born in place.

    Args:
        init_params: key -> all parameters, trained all of them, or a `Start`.
        optimizer: from `make_optimizer`.
        key: of the initial weights.
        ema: whether to keep a moving average of the weights.
        selection_bias_shape: (MoE layers, experts) where the router has a selection bias.
    """
    start = init_params(key)
    if not isinstance(start, Start):
        start = Start(start)
    params = start.params

    def zero() -> Array:  # each its own buffer, since all are donated
        return jnp.zeros((), jnp.int32)

    return TrainState(
        step=zero(),
        opt_state=optimizer.init(params),
        ema=jax.tree.map(lambda p: jnp.array(p, jnp.float32, copy=True), params) if ema else {},
        selection_bias=jnp.zeros(selection_bias_shape) if selection_bias_shape else {},
        skipped=zero(),
        consecutive_skipped=zero(),
        **start._asdict(),
    )


def state_shardings(
    state: PyTree,
    param_shardings: PyTree,
    replicated: jax.sharding.Sharding,
    beside: Mapping[str, PyTree] | None = None,
) -> PyTree:
    """A sharding for every leaf: whatever mirrors a parameter lies where that parameter lies.

    Args:
        state: a `TrainState`, abstract or not.
        param_shardings: a sharding per leaf of `params`.
        replicated: of everything that mirrors none.
        beside: field of the state -> a sharding per leaf of it.
    """
    placed = leaves_by_path(param_shardings)
    shapes = {path: leaf.shape for path, leaf in leaves_by_path(state.params).items()}
    own = leaves_by_path(dict(beside or {}))

    def place(path: tuple, leaf: Any) -> jax.sharding.Sharding:
        if path_string(path) in own:
            return own[path_string(path)]
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
