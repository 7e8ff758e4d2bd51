"""The compiled parts of a run: its first state, and its steps, sharded over a mesh."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import flax.linen as nn
import jax

from jgpt import models, sharding
from jgpt.config import Config
from jgpt.objectives import make_objective
from jgpt.training import forgetting
from jgpt.training import state as train_state
from jgpt.training.offload import offloaded, on_host
from jgpt.training.optimizer import make_optimizer
from jgpt.training.state import TrainState
from jgpt.training.step import compile_step, make_eval_step, make_train_step
from jgpt.training.trainable import Trainable, make_trainable

Start = Callable[..., dict[str, Any]]
"""(model, a sharding per parameter, that of what is replicated, `convert`) to the variables to
start from. `convert(path, array)` gives what is to lie in the place of a parameter, and is called
as soon as that is read: no two copies of a model need to be there. By default `unchanged`."""


def unchanged(path: str, array: jax.Array) -> jax.Array:
    """Parameters as they were read."""
    return array


@contextmanager
def placed(mesh: jax.sharding.Mesh) -> Iterator[None]:
    """Inside, arrays with logical axes are placed on `mesh`."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.linen_rules()):
        yield


def make_steps(
    config: Config, mesh: jax.sharding.Mesh, start: Start | None = None
) -> tuple[Callable[[], TrainState], TrainState, Any, Any]:
    """(a function that makes the first state, its abstract form, train step, eval step), sharded.

    Args:
        config: of the run, with what `decide` decides.
        mesh: of the run.
        start: where the first weights come from; None for random ones.
    """
    model, objective = config.model, make_objective(config)
    trainable = make_trainable(config)
    apply = trainable.apply()
    params = trainable.abstract.params
    optimizer = make_optimizer(
        config.optimizer,
        config.train.steps,
        params,
        trainable.width_scales(params),
        trainable.rates(params),
        trainable.decays(params),
        trainable.groups(params),
        trainable.gradient,
    )
    biased = model.moe.selection_bias and models.num_moe_layers(model)
    initial = partial(
        train_state.init_state,
        optimizer=optimizer,
        key=jax.random.key(config.train.seed),
        ema=config.optimizer.ema_decay > 0,
        selection_bias_shape=(
            (models.num_moe_layers(model), model.moe.num_experts) if biased else None
        ),
    )

    def begin(key: jax.Array) -> train_state.Start:
        return trainable.start(models.init(model, key), key)

    fresh = partial(initial, begin)
    shapes = jax.eval_shape(fresh)
    places = _places(trainable, shapes, mesh)
    if config.optimizer.offload:
        places = dataclasses.replace(places, opt_state=on_host(mesh, places.opt_state))
        optimizer = offloaded(optimizer, places.opt_state)
    init = jax.jit(fresh, out_shardings=places)
    if start is not None:
        init = partial(_started, start, initial, trainable, places, mesh)
    if trainable.ewc_weight:
        read = partial(
            forgetting.read_anchor,
            config.forgetting.ewc, model, trainable.held, mesh, places.anchor,
        )  # fmt: skip
        init = partial(forgetting.anchored, init, read)
    step = make_train_step(objective, apply, optimizer, config, trainable)
    # Arrays [B] and [B, S] of a batch have no sharding in common where rows are cut along their
    # length: each then stays where `device_batch` has put it.
    of_batch = sharding.batch_sharding(mesh) if mesh.shape["context"] == 1 else None
    return (
        init,
        train_state.abstract_state(shapes, places),
        compile_step(step, places, of_batch),
        jax.jit(make_eval_step(apply)),
    )


def _places(trainable: Trainable, shapes: TrainState, mesh: jax.sharding.Mesh) -> TrainState:
    """A sharding for every leaf of the state."""
    axes = trainable.axes()
    of = {name: sharding.shardings(mesh, axes[name], getattr(shapes, name)) for name in axes}
    model = sharding.shardings(
        mesh, models.logical_axes(trainable.model), models.abstract_params(trainable.model)
    )
    sharding.check_use(mesh, model, models.abstract_params(trainable.model))
    return train_state.state_shardings(
        shapes,
        of.pop("params"),
        sharding.replicated(mesh),
        of,
    )


def _started(
    start: Start,
    initial: Callable[..., TrainState],
    trainable: Trainable,
    places: TrainState,
    mesh: jax.sharding.Mesh,
) -> TrainState:
    """A fresh state around weights that are there."""
    model = trainable.model
    of_model = sharding.shardings(mesh, models.logical_axes(model), models.abstract_params(model))
    convert = trainable.converter() or unchanged
    variables = start(model, of_model, sharding.replicated(mesh), convert)

    names = (train_state.ADAPTERS, "constants")
    given = {name: variables[name] for name in names if name in variables}

    def begin_with(params: Any, given: dict[str, Any], key: jax.Array) -> train_state.Start:
        first = trainable.start(params, key)
        if not given:
            return first
        adapters, constants = (given[name] for name in names)
        trained = {**first.params, train_state.ADAPTERS: adapters}
        return first._replace(params=trained, constants=constants)

    def around(params: Any, given: dict[str, Any]) -> TrainState:
        return initial(partial(begin_with, params, given))

    begin = jax.jit(around, out_shardings=places, donate_argnums=(0,) if trainable.as_given else ())
    state = begin(variables["params"], given)
    if "selection_bias" in variables:
        state = dataclasses.replace(state, selection_bias=variables["selection_bias"])
    return state
