"""Update rules, learning rate over time and clipping, as one Optax transformation.

Every parameter belongs to one of four groups, by ordered rules over its path (`GROUPS`):

- `matrix`: a linear map between hidden layers. Decayed; orthogonalised by Muon.
- `head`: the map to the vocabulary or to labels. Decayed.
- `embedding`: a table of rows. Not decayed: a row's gradient is zero while its token is absent, so
  decay would shrink the rows of rare tokens for no reason (OLMo 2, section 3.4.3).
- `vector`: norms, biases, sinks, scales. Not decayed.

A stacked leaf (scanned layers [L, ...], experts [E, ...]) is many parameters in one array; the
rules go by name, never by rank, and Muon treats each matrix of a stack by itself. (Adafactor's
clipping and parameter scale are taken over a whole leaf, so that it alone differs a little between
scanned and unrolled layers.) Moments are float32 whatever the parameters' type.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jgpt.config import OptimizerConfig
from jgpt.trees import match_rules
from jgpt.typing import Array, PyTree

Schedule = Callable[[Array], Array]

GROUPS: list[tuple[str, str]] = [
    (r"^(embedding|position|token_type|relative_embedding)/table$", "embedding"),
    (r"^(head|classifier)/kernel$", "head"),
    (r"(^|/)kernel$", "matrix"),
    (r"(^|/)relative_bias/table$", "vector"),
    (r"(^|/)(scale|bias|sinks)$", "vector"),
]
"""(pattern, group); a parameter whose name is new must be given a rule here."""


def parameter_groups(params: PyTree) -> PyTree:
    """`matrix`, `head`, `embedding` or `vector` for every leaf, as `GROUPS` says."""
    return match_rules(GROUPS, params, optional=[pattern for pattern, _ in GROUPS])


def schedule(config: OptimizerConfig, steps: int, peak: float | None = None) -> Schedule:
    """Learning rate of update number `count` (0 is the first).

    A linear warmup reaches the peak at update `warmup_steps`, starting one part above 0 so that the
    first update moves. Then `cosine` falls to `final_fraction` of the peak at the last update;
    `wsd` stays there until the last `decay_fraction` of the updates, which fall linearly (Hu et al.
    2024, section 4); `constant` stays.

    Args:
        config: the optimizer's settings.
        steps: updates in the whole run.
        peak: in place of `config.learning_rate`.
    """
    peak = config.learning_rate if peak is None else peak
    warmup = min(config.warmup_steps, steps)
    final = config.final_fraction

    def falling(position: Array, length: float) -> Array:
        """0 until `length` updates before the end, 1 at the end."""
        return jnp.clip((position - (steps - length)) / max(length, 1), 0.0, 1.0)

    def rate(count: Array) -> Array:
        position = jnp.asarray(count, jnp.float32) + 1
        if config.schedule == "cosine":
            progress = falling(position, steps - warmup)
            level = final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
        elif config.schedule == "wsd":
            length = min(config.decay_fraction * steps, steps - warmup)
            level = 1 - (1 - final) * falling(position, length)
        else:
            level = jnp.ones(())
        return peak * level * jnp.minimum(position / max(warmup, 1), 1.0)

    return rate


def make_optimizer(
    config: OptimizerConfig,
    steps: int,
    params: PyTree,
    learning_rate_scales: PyTree | None = None,
    rates: PyTree | None = None,
    decays: PyTree | None = None,
    groups: PyTree | None = None,
    after_clipping: Callable[[PyTree, PyTree, PyTree], PyTree] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Clipping, the update rule, decoupled weight decay and the schedule in one transformation.

    Args:
        config: which of them, and their numbers.
        steps: updates in the whole run.
        params: parameters or their shapes; only paths are read.
        learning_rate_scales: a number per leaf that multiplies its learning rate (muP); weight
            decay is not scaled.
        rates: a number or an array per leaf that multiplies its whole update, weight decay too, as
            another learning rate does (rules, LoRA+).
        decays: a number or an array per leaf in place of `config.weight_decay` and its group's
            share of it; None where there is none.
        groups: of the parameters, where `GROUPS` does not say.
        after_clipping: (gradients, parameters, constants) -> gradients for the update rule;
            `constants` are handed to `update` by that name.

    Raises:
        ValueError: a parameter that no rule of `GROUPS` matches.
    """
    groups = parameter_groups(params) if groups is None else groups
    decays = jax.tree.map(lambda _: None, groups) if decays is None else decays
    decays = jax.tree.map(
        functools.partial(_decay, config.weight_decay), groups, decays, is_leaf=_is_none
    )
    by_muon = jax.tree.map(
        lambda group: "muon" if config.name == "muon" and group == "matrix" else "other", groups
    )
    schedules = {
        "muon": schedule(config, steps, config.muon_learning_rate),
        "other": schedule(config, steps),
    }
    parts = [
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        _changed(after_clipping),
        _update_rule(config, by_muon),
        _scale_by_leaf(learning_rate_scales, by_muon),
        _add_decayed(decays),
        _multiplied(rates),
        optax.partition(
            {k: optax.scale_by_learning_rate(r) for k, r in schedules.items()}, by_muon
        ),
    ]
    return _in_float32(optax.chain(*parts))


def _changed(
    function: Callable[[PyTree, PyTree, PyTree], PyTree] | None,
) -> optax.GradientTransformation:
    """`function` on gradients, parameters and what `update` is given as `constants`."""
    if function is None:
        return optax.identity()

    def update(
        gradients: PyTree, state: optax.EmptyState, params: PyTree, *, constants: PyTree, **_: Any
    ) -> tuple[PyTree, optax.EmptyState]:
        return function(gradients, params, constants), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _is_none(x: object) -> bool:
    return x is None


def _decay(usual: float, group: str, own: float | Array | None) -> float | Array:
    if own is not None:
        return own
    return usual if group in ("matrix", "head") else 0.0


def _add_decayed(decays: PyTree) -> optax.GradientTransformation:
    """Adds to each update its parameter times its number (Loshchilov & Hutter 2019)."""

    def add(update: Array, parameter: Array, decay: float | Array) -> Array:
        return update + decay * parameter if np.any(decay) else update

    return optax.stateless(lambda updates, params: jax.tree.map(add, updates, params, decays))


def _update_rule(config: OptimizerConfig, by_muon: PyTree) -> optax.GradientTransformation:
    """Gradient to direction, before weight decay and learning rate."""
    adam = optax.scale_by_adam(config.b1, config.b2, config.epsilon)
    if config.name == "adamw":  # Loshchilov & Hutter 2019
        return adam
    if config.name == "lion":  # Chen et al. 2023, algorithm 2
        return optax.scale_by_lion(config.b1, config.b2)
    if config.name == "adafactor":  # Shazeer & Stern 2018, algorithm 5
        return optax.chain(
            optax.scale_by_factored_rms(),
            optax.clip_by_block_rms(1.0),
            optax.scale_by_param_block_rms(),
        )
    return optax.partition({"muon": scale_by_muon(config.muon_momentum), "other": adam}, by_muon)


def scale_by_muon(momentum: float) -> optax.GradientTransformation:
    """Muon's direction (Jordan et al. 2024) for leaves [..., in, out], each matrix by itself.

    Nesterov momentum, then the nearest semi-orthogonal matrix, times sqrt(max(1, out / in)) so that
    the change of the output does not depend on the shape.
    """

    def direction(gradient: Array, trace: Array) -> Array:
        shape = gradient.shape
        scale = max(1.0, shape[-1] / shape[-2]) ** 0.5
        return scale * orthogonalize(gradient + momentum * trace)

    def init(params: PyTree) -> optax.TraceState:
        return optax.TraceState(trace=optax.tree.zeros_like(params))

    def update(
        gradients: PyTree, state: optax.TraceState, params: PyTree | None = None
    ) -> tuple[PyTree, optax.TraceState]:
        trace = jax.tree.map(lambda g, t: momentum * t + g, gradients, state.trace)
        return jax.tree.map(direction, gradients, trace), optax.TraceState(trace=trace)

    return optax.GradientTransformation(init, update)


def orthogonalize(matrices: Array, iterations: int = 5) -> Array:
    """About U V^T of every matrix [..., m, n] = U S V^T: singular values end near 1 (0.7 to 1.2).

    Newton-Schulz iteration with the quintic a x + b x^3 + c x^5 whose coefficients trade accuracy
    at 1 for speed at 0 (Jordan et al. 2024). Works on the smaller side.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def _scale_by_leaf(scales: PyTree | None, by_muon: PyTree) -> optax.GradientTransformation:
    """Multiplies each leaf by its number; Muon's leaves, whose step is width-free, by none."""
    if scales is None:
        return optax.identity()
    return _multiplied(
        jax.tree.map(lambda scale, rule: 1.0 if rule == "muon" else scale, scales, by_muon)
    )


def _multiplied(factors: PyTree | None) -> optax.GradientTransformation:
    """Each leaf times its number or array."""
    if factors is None:
        return optax.identity()
    return optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, factors))


def _in_float32(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """`inner` on float32 gradients and parameters, so that its moments are float32."""
    inner = optax.with_extra_args_support(inner)

    def to_float32(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda x: x.astype(jnp.float32), tree)

    def update(
        updates: PyTree, state: PyTree, params: PyTree, **extra: Any
    ) -> tuple[PyTree, PyTree]:
        return inner.update(to_float32(updates), state, to_float32(params), **extra)

    return optax.GradientTransformationExtraArgs(
        lambda params: inner.init(to_float32(params)), update
    )
