"""The training step: one pure function for every objective.

Gradients are accumulated as sums over microbatches and divided once by the sum of weights, so that
accumulation equals the full batch whatever the masks; the mean of means would not. (Terms that are
no sums, `Loss.extra`, are averaged by weight, and dropout draws other masks per microbatch.)

A step whose loss or gradient is not finite changes nothing but the counters. That includes a batch
without a single weighted target, whose loss is 0 / 0.
"""

import dataclasses
import functools
import re
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

from jgpt.config import Config
from jgpt.layers.router import router_metrics, update_selection_bias
from jgpt.objectives import Apply, Objective, ratio
from jgpt.training.optimizer import schedule
from jgpt.training.state import TrainState, assembled
from jgpt.training.trainable import Trainable
from jgpt.trees import map_with_path
from jgpt.typing import Array, Batch, PyTree, RouterStats

TRAVELLING = re.compile(r"^(?!.*router/)(layers|encoder/layers|head).*/kernel$")
"""Parameters whose gradients travel in `train.gradient_dtype`."""

COMPILER_OPTIONS: dict[str, dict[str, bool]] = {
    # Weights are gathered by asynchronous collectives, not by loops of products on parts of them:
    # such a loop sends 17 parts where gathering from 16 chips sends 15, and takes long to compile.
    "tpu": {"xla_tpu_enable_windowed_einsum_for_all_gather": False},
}
"""Of a training step, by platform."""

Metrics = dict[str, Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_train_step(
    objective: Objective,
    apply: Apply,
    optimizer: optax.GradientTransformation,
    config: Config,
    trainable: Trainable | None = None,
) -> TrainStep:
    """`train_step(state, batch) -> (state, metrics)`, pure; `compile_step` jits it.

    Metrics are float32: the objective's own (`loss` in nats per weighted target, `accuracy`, `z`),
    and `total` (what is minimised), `penalty` (its part that is no loss, where there is one),
    `grad_norm` (before clipping), `update_norm`, `param_norm`, `learning_rate`, `tokens` (the sum
    of weights), `skipped` (so far), `consecutive_skipped` and those of `moe_metrics`.

    Args:
        objective: from `make_objective`.
        apply: `models.apply` with its config bound.
        optimizer: from `make_optimizer`.
        config: of the run; `train`, `optimizer` and `model.moe` are read.
        trainable: what is trained where that is not all parameters.
    """
    trainable = trainable or Trainable(config.model)
    optimizer = optax.with_extra_args_support(optimizer)
    rate = schedule(config.optimizer, config.train.steps)

    def rebalance(bias: Array | dict, router: RouterStats | None) -> Array | dict:
        if isinstance(bias, dict) or router is None:
            return bias
        return update_selection_bias(bias, router.assignments, config.model.moe.bias_update_rate)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(config.train.seed), state.step)
        loss = functools.partial(_loss_sums, objective, apply, state)
        weights = in_gradient_dtype(state.params, config.train.gradient_dtype)
        gradients, sums = accumulate(loss, weights, batch, key, config.train.microbatches)
        gradients = jax.tree.map(lambda g: g / sums.weight, gradients)
        total, added = sums.objective / sums.weight, {}
        if trainable.penalised:
            penalty, slope = jax.value_and_grad(trainable.penalty)(state.params, state)
            gradients = jax.tree.map(lambda g, s: g + s.astype(g.dtype), gradients, slope)
            total, added = total + penalty, {"penalty": penalty}
        grad_norm = optax.global_norm(gradients)
        good = jnp.isfinite(grad_norm) & jnp.isfinite(total)
        applied, constants = state.step - state.skipped, state.constants

        def update(state: TrainState) -> tuple[TrainState, Array]:
            updates, opt_state = optimizer.update(
                gradients, state.opt_state, state.params, constants=constants
            )
            params = optax.apply_updates(state.params, updates)
            params, method_state = trainable.after_update(
                params, constants, gradients, state.method_state, applied + 1
            )
            new_state = dataclasses.replace(
                state,
                step=state.step + 1,
                params=params,
                opt_state=opt_state,
                selection_bias=rebalance(state.selection_bias, sums.router),
                ema=moving_average(state.ema, params, applied, config.optimizer.ema_decay),
                consecutive_skipped=jnp.zeros_like(state.consecutive_skipped),
                method_state=method_state,
            )
            return new_state, optax.global_norm(updates)

        def skip(state: TrainState) -> tuple[TrainState, Array]:
            new_state = dataclasses.replace(
                state,
                step=state.step + 1,
                skipped=state.skipped + 1,
                consecutive_skipped=state.consecutive_skipped + 1,
            )
            return new_state, jnp.zeros(())

        # A branch, since selecting leaf by leaf would copy the whole state: on a CPU the update
        # then takes 1.6 times as long. What never changes stays outside.
        changing = dataclasses.replace(state, frozen={}, constants={}, anchor={})
        new_state, update_norm = jax.lax.cond(good, update, skip, changing)
        new_state = dataclasses.replace(
            new_state, frozen=state.frozen, constants=constants, anchor=state.anchor
        )
        metrics = {
            **{name: ratio(*pair) for name, pair in sums.metrics.items()},
            "total": total,
            **added,
            "tokens": sums.weight,
            "grad_norm": grad_norm,
            "update_norm": update_norm,
            "param_norm": optax.global_norm(new_state.params),
            "learning_rate": rate(applied),
            "skipped": new_state.skipped,
            "consecutive_skipped": new_state.consecutive_skipped,
            **moe_metrics(sums.router),
        }
        return new_state, jax.tree.map(lambda m: jnp.asarray(m, jnp.float32), metrics)

    return train_step


def compile_step(
    train_step: TrainStep, state_shardings: PyTree, batch_shardings: PyTree
) -> TrainStep:
    """`train_step` jitted with explicit shardings; the state it is given is donated.

    Args:
        train_step: from `make_train_step`.
        state_shardings: a `TrainState` of shardings (`training.state.state_shardings`).
        batch_shardings: one sharding for all of a batch, or one per array; None for where they are.
    """
    platform = next(iter(state_shardings.step.device_set)).platform
    return jax.jit(
        train_step,
        in_shardings=(state_shardings, batch_shardings),
        out_shardings=(state_shardings, state_shardings.step),
        donate_argnums=0,
        compiler_options=COMPILER_OPTIONS.get(platform),
    )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Sums:
    """What adds up over microbatches."""

    objective: Array
    weight: Array
    metrics: dict[str, tuple[Array, Array]]
    router: RouterStats | None


def _loss_sums(
    objective: Objective,
    apply: Apply,
    state: TrainState,
    params: PyTree,
    batch: Batch,
    key: Array,
) -> tuple[Array, _Sums]:
    loss = objective.loss(apply, assembled(params, state), batch, key)
    return loss.objective, _Sums(loss.objective, loss.weight, loss.metrics, loss.router)


def in_gradient_dtype(params: PyTree, dtype: str) -> PyTree:
    """`params` with the kernels in the type that their gradients travel in between devices.

    A gradient has the type of what it is taken by, and devices add up their parts in it; the sum
    is float32 again before anything is done with it. The products use the same numbers either way,
    being in `model.dtype`. Routers, norms and tables keep their own type, as everything does on one
    device.
    """
    if dtype == "float32" or jax.sharding.get_abstract_mesh().size < 2:
        return params

    def cast(path: str, leaf: Array) -> Array:
        return leaf.astype(dtype) if TRAVELLING.search(path) else leaf

    return map_with_path(cast, params)


def accumulate(
    loss: Callable[[PyTree, Batch, Array], tuple[Array, PyTree]],
    params: PyTree,
    batch: Batch,
    key: Array,
    microbatches: int,
) -> tuple[PyTree, PyTree]:
    """Sums of gradients and of what `loss` returns beside its value, over parts of a batch.

    Part i holds rows i, i + n, i + 2n, ...: rows that lie on one device stay there.

    Args:
        loss: (params, batch, key) -> (sum to differentiate, tree of sums).
        params: what is differentiated.
        batch: arrays whose first axis `microbatches` divides.
        key: folded by the part's number.
        microbatches: n, how many parts one after another.

    Returns:
        float32 gradients like `params`, and the summed tree.
    """
    gradient = jax.grad(loss, has_aux=True)

    def part(batch: Batch, key: Array) -> tuple[PyTree, PyTree]:
        gradients, sums = gradient(params, batch, key)
        return jax.tree.map(lambda g: g.astype(jnp.float32), gradients), sums

    if microbatches == 1:
        return part(batch, key)
    parts = jax.tree.map(lambda x: x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1), batch)
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(microbatches))
    first = jax.tree.map(lambda x: x[0], (parts, keys))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(part, *first))

    def add(sums: PyTree, inputs: tuple[Batch, Array]) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, sums, part(*inputs)), None

    return jax.lax.scan(add, zeros, (parts, keys))[0]


def moving_average(ema: PyTree, params: PyTree, count: Array, decay: float) -> PyTree:
    """ema + (1 - d) (params - ema), d = min(decay, (1 + count) / (10 + count)).

    The smaller decay of the first updates forgets the initial weights.
    """
    if not ema:
        return ema
    rate = 1 - jnp.minimum(decay, (1 + count) / (10 + count))
    return jax.tree.map(lambda e, p: e + rate * (p.astype(e.dtype) - e), ema, params)


def moe_metrics(router: RouterStats | None) -> Metrics:
    """Figures of the routers: `moe/*` over all layers, `moe_layers/*` [L_moe], and assignments.

    `router_assignments` [L_moe, E] counts assignments to each expert before any is dropped; for the
    other names see `router_metrics`.
    """
    if router is None:
        return {}
    layers = jax.vmap(router_metrics)(router)
    return {
        "router_assignments": router.assignments,
        **{f"moe/{k}": v for k, v in router_metrics(router).items() if k != "load"},
        **{f"moe_layers/{k}": v for k, v in layers.items() if k != "load"},
    }


def make_eval_step(apply: Apply) -> Callable[[PyTree, Batch], Metrics]:
    """`eval_step(variables, batch) -> sums` of a language model; jit it. Sums of batches add up.

    `nll` (nats), `correct` (greedy predictions), both weighted; `weight` (sum of loss weights);
    `characters` (raw text code points of the targets that weigh anything).
    """

    def eval_step(variables: PyTree, batch: Batch) -> Metrics:
        sums, _ = apply(variables, batch, output="cross_entropy")
        characters = jnp.where(batch["loss_weights"] > 0, batch["characters"], 0)
        return {
            "nll": sums.nll,
            "weight": sums.weight,
            "correct": sums.correct,
            "characters": jnp.sum(characters).astype(jnp.float32),
        }

    return eval_step
