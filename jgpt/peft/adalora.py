"""AdaLoRA: a budget of ranks that goes where it matters (Zhang et al. 2023).

    y = W x + s P diag(lambda) Q x,    s = alpha / (initial rank + 1e-5)

Every matrix begins with `initial_rank` triplets (a column of P, lambda_i, a row of Q), lambda at 0,
P and Q normal. P and Q are kept near orthonormal by a penalty, so that lambda stands for singular
values. After each update the triplets are scored, and over the whole model the least important
lambdas are set to 0 until the budget is met (section 3.2; equations 8 to 11):

    I = |p x gradient of p|,    Ibar = b1 Ibar + (1 - b1) I,    U = b2 U + (1 - b2) |I - Ibar|
    score of a triplet = s(lambda_i) + mean s(P_i) + mean s(Q_i),    s = Ibar x U

The budget falls from `initial_rank` to `rank` per matrix along a cubic, between `warmup_steps` and
`final_steps` from the end. A lambda that was set to 0 may grow again until the next cut; the last
cut, at the first of the final steps, is for good.

Where paper and common code (peft 0.21) differ, this follows the code: the penalty is the mean of
the norms ||P^T P - I|| and ||Q Q^T - I||, where the paper has the sum of their squares
(`peft.adalora.squared`). Where that code fails, it does not: equal scores are cut in order, so that
the budget is met exactly, and `initial_rank = rank` is allowed.

Q is `lora_a` [in, r], lambda `lora_e` [r], P `lora_b` [r, out]; `scaling` [r] is s, and 0 in layers
of a stack that are not adapted.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jgpt.config import ConfigError, PeftConfig
from jgpt.layers.initialization import Constant, Normal
from jgpt.peft.adapters import by_site, nested
from jgpt.peft.initial import Columns
from jgpt.peft.lora import QUERY_AND_VALUE
from jgpt.peft.method import AfterUpdate, Call, Leaf, Leaves, Method, Sites, Target, add
from jgpt.typing import Array, PyTree

EPSILON = 1e-5
"""Added to the rank that alpha is divided by, as common code has it."""


def leaves(target: Target) -> dict[str, Leaf]:
    """`lora_a`, `lora_e`, `lora_b` and `scaling`, of `initial_rank` each.

    Raises:
        ConfigError: a rank above `initial_rank`, or a bias.
    """
    rank = target.settings.adalora.initial_rank
    if target.rank > rank:
        raise ConfigError(
            f"peft.adalora.initial_rank is {rank}, below the rank {target.rank} that "
            f"{target.site.path} is to end with; raise it, or lower peft.rank"
        )
    if target.settings.bias:
        raise ConfigError("peft.bias is for LoRA; AdaLoRA has none: set it to False")
    (fan_in, out), (in_axis, out_axis) = target.site.matrix, target.site.matrix_axes
    scaling = Columns(rank if target.rank else 0, target.alpha / (rank + EPSILON))
    return {
        "lora_a": Leaf((fan_in, rank), (in_axis, None), Normal(0.02)),
        "lora_e": Leaf((rank,), (None,), Constant(0.0)),
        "lora_b": Leaf((rank, out), (None, out_axis), Normal(0.02)),
        "scaling": Leaf((rank,), (None,), scaling, trained=False),
    }


def call(call: Call, x: Array, *rest: Any) -> Array:
    h = call.product(call.dropped(x), call.leaves["lora_a"])
    factor = call.lookup(call.leaves["lora_e"] * call.leaves["scaling"])
    return add(call.base(x, *rest), call.product(h * factor.astype(h.dtype), call.leaves["lora_b"]))


def update(leaves: Leaves) -> Array:
    """s P diag(lambda) Q, the matrix [in, out]."""
    a, b = (leaves[name].astype(jnp.float32) for name in ("lora_a", "lora_b"))
    return (a * (leaves["lora_e"] * leaves["scaling"])) @ b


def merge(kind: str, weight: Array, leaves: Leaves, settings: PeftConfig) -> Array:
    return weight + update(leaves)


def unmerge(kind: str, weight: Array, leaves: Leaves, settings: PeftConfig) -> Array:
    return weight - update(leaves)


# --- penalty -------------------------------------------------------------------------------------


def regulariser(sites: Sites, settings: PeftConfig) -> Array:
    """`orthogonality` times the mean norm (or the sum of squared norms) of P^T P - I, Q Q^T - I."""
    squares, weights = [], []
    for leaves in sites.values():
        adapted = (leaves["scaling"] != 0).any(-1)
        a, b = (leaves[name].astype(jnp.float32) for name in ("lora_a", "lora_b"))
        for rows in (jnp.swapaxes(a, -1, -2), b):
            gram = rows @ jnp.swapaxes(rows, -1, -2)
            squares.append(((gram - jnp.eye(gram.shape[-1])) ** 2).sum((-1, -2)).reshape(-1))
            weights.append(adapted.reshape(-1))
    square, weight = jnp.concatenate(squares), jnp.concatenate(weights)
    if settings.adalora.squared:
        return settings.adalora.orthogonality * (square * weight).sum()
    zero = square == 0  # where the norm has no gradient
    norm = jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, square)))
    return settings.adalora.orthogonality * (norm * weight).sum() / weight.sum()


# --- budget --------------------------------------------------------------------------------------


class State(NamedTuple):
    """What the allocator remembers; trees like that of the trained leaves."""

    sensitivity: PyTree
    """Ibar"""
    uncertainty: PyTree
    """U"""
    kept: PyTree
    """which lambdas the last cut left, at `lora_e` only; bool"""


def state(targets: tuple[Target, ...], trained: PyTree, num_steps: int) -> State:
    """Before the first update.

    Raises:
        ConfigError: a run of `num_steps` updates that is over before ranks have fallen.
    """
    s = targets[0].settings.adalora
    if s.warmup_steps + s.final_steps >= num_steps:
        raise ConfigError(
            f"peft.adalora: {s.warmup_steps} warmup_steps and {s.final_steps} final_steps leave "
            f"none of the run's {num_steps} for ranks to fall; lower them, or train for longer"
        )
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), trained)
    kept = {
        f"{site}/lora_e": jnp.ones(leaves["lora_e"].shape, bool)
        for site, leaves in by_site(trained).items()
    }
    return State(zeros, zeros, nested(kept))


def budget(step: Array, targets: tuple[Target, ...], num_steps: int) -> tuple[Array, Array]:
    """Triplets to keep over the whole model after update `step`, and whether it is time to cut."""
    s = targets[0].settings.adalora
    last = num_steps - s.final_steps
    first, final = budgets(targets)
    left = jnp.clip(1 - (step - s.warmup_steps) / (last - s.warmup_steps), 0.0, 1.0)
    falling = jnp.floor((first - final) * left**3 + final).astype(jnp.int32)
    due = (step > s.warmup_steps) & (step % s.interval == 0) & (step < last)
    return falling, due | (step == last)


def budgets(targets: tuple[Target, ...]) -> tuple[int, int]:
    """Triplets of the whole model at first and at last."""
    matrices = [
        (t.site.shape[0] if t.site.kind == "experts" else 1) * (t.rank > 0) for t in targets
    ]
    initial = targets[0].settings.adalora.initial_rank
    return initial * sum(matrices), sum(n * t.rank for n, t in zip(matrices, targets, strict=True))


def after_update(update: AfterUpdate) -> tuple[PyTree, State]:
    """Scores, cuts: the trained leaves with lambdas set to 0, and the state."""
    s = update.targets[0].settings.adalora
    last = update.num_steps - s.final_steps
    old = update.state
    sensitivity, uncertainty = _importance(update, s.sensitivity_decay, s.uncertainty_decay)
    scoring = update.step < last  # the last cut and what follows go by what was seen before
    sensitivity = _choose(scoring, sensitivity, old.sensitivity)
    uncertainty = _choose(scoring, uncertainty, old.uncertainty)

    keep, due = budget(update.step, update.targets, update.num_steps)
    scores = jax.tree.map(jnp.multiply, sensitivity, uncertainty)
    best = _best(keep, scores, update.constants, budgets(update.targets)[0])
    kept = _choose(due, nested(best), old.kept)

    cutting = due | (update.step > last)
    masks = {path: mask | ~cutting for path, mask in _lambdas(kept).items()}
    sites = by_site(update.trained)
    masked = {
        f"{site}/{name}": jnp.where(masks[site], leaf, 0) if name == "lora_e" else leaf
        for site, leaves in sites.items()
        for name, leaf in leaves.items()
    }
    return nested(masked), State(sensitivity, uncertainty, kept)


def _lambdas(kept: PyTree) -> dict[str, Array]:
    return {site: leaves["lora_e"] for site, leaves in by_site(kept).items()}


def _choose(condition: Array, new: PyTree, old: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def _importance(update: AfterUpdate, beta1: float, beta2: float) -> tuple[PyTree, PyTree]:
    """Ibar and U with this update's parameters and gradients in them."""
    seen = jax.tree.map(
        lambda p, g: jnp.abs(p.astype(jnp.float32) * g.astype(jnp.float32)),
        update.trained,
        update.gradients,
    )
    mean = jax.tree.map(
        lambda old, new: beta1 * old + (1 - beta1) * new, update.state.sensitivity, seen
    )
    spread = jax.tree.map(
        lambda old, new, middle: beta2 * old + (1 - beta2) * jnp.abs(new - middle),
        update.state.uncertainty,
        seen,
        mean,
    )
    return mean, spread


def _best(keep: Array, scores: PyTree, constants: PyTree, count: int) -> dict[str, Array]:
    """Path of each `lora_e` -> whether its entries are among the `keep` best of `count`."""
    fixed = by_site(constants)
    triplets = {
        site: jnp.where(
            fixed[site]["scaling"] != 0,
            leaves["lora_e"] + leaves["lora_a"].mean(-2) + leaves["lora_b"].mean(-1),
            jnp.inf,  # layers that are not adapted: behind all others, and never cut
        )
        for site, leaves in by_site(scores).items()
    }
    flat = jnp.concatenate([score.reshape(-1) for score in triplets.values()])
    order = jnp.argsort(flat)
    place = jnp.zeros(flat.size, jnp.int32).at[order].set(jnp.arange(flat.size, dtype=jnp.int32))
    parts = jnp.split(place >= count - keep, _ends(triplets))
    return {
        f"{site}/lora_e": part.reshape(score.shape)
        for (site, score), part in zip(triplets.items(), parts, strict=True)
    }


def _ends(arrays: dict[str, Array]) -> list[int]:
    ends, total = [], 0
    for array in list(arrays.values())[:-1]:
        total += array.size
        ends.append(total)
    return ends


def final_ranks(trained: PyTree) -> dict[str, Array]:
    """Site path -> lambdas that are not 0: [] int, or [layers] or [..., experts] where stacked."""
    return {site: (leaves["lora_e"] != 0).sum(-1) for site, leaves in by_site(trained).items()}


ADALORA = Method(
    kinds=("linear", "experts"),
    targets=QUERY_AND_VALUE,
    leaves=leaves,
    call=call,
    merge=merge,
    unmerge=unmerge,
    regulariser=regulariser,
    state=state,
    after_update=after_update,
    masked=True,
)
