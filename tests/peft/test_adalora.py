"""AdaLoRA's allocator beside a plain loop over matrices in numpy, and its penalty."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgpt import peft
from jgpt.config import AdaLoraConfig, ConfigError, ModelConfig, MoEConfig, PeftConfig
from jgpt.peft import adalora, hooks
from jgpt.peft.adapters import by_site, laid_out, unrolled

MODEL = ModelConfig(
    vocab_size=8, num_layers=3, hidden_size=16, num_heads=2, intermediate_size=12, scan_layers="off"
)
INITIAL, RANK, STEPS = 6, 2, 14
SETTINGS = PeftConfig(
    method="adalora",
    targets=(r"attention/(query|value)$", "ffn/down$"),
    exclude=("layers_1/.*value",),
    rank=RANK,
    adalora=AdaLoraConfig(INITIAL, warmup_steps=3, final_steps=4, interval=2),
)
TRAINED = ("lora_a", "lora_e", "lora_b")


def random_like(tree, seed):
    generator = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jnp.asarray(generator.standard_normal(x.shape), jnp.float32), tree
    )


def train(fitted, start, updates, gradients, num_steps=STEPS):
    """Trained leaves after each of the updates, where an optimizer adds `updates`; unrolled."""
    _, adapters = peft.init(fitted, {}, jax.random.key(0))
    trained = laid_out(fitted, start)
    state = hooks.init_state(fitted, trained, num_steps)
    after = jax.jit(
        lambda trained, gradient, state, step: hooks.after_update(
            fitted, adapters._replace(trained=trained), gradient, state, step, num_steps
        )
    )
    history = []
    for step, (update, gradient) in enumerate(zip(updates, gradients, strict=True), 1):
        trained = jax.tree.map(jnp.add, trained, laid_out(fitted, update))
        trained, state = after(trained, laid_out(fitted, gradient), state, jnp.int32(step))
        history.append(unrolled(fitted, trained))
    return history


@functools.cache
def movements():
    shapes = peft.abstract_adapters(peft.make_peft(SETTINGS, MODEL)).trained
    updates = [jax.tree.map(lambda x: 0.3 * x, random_like(shapes, 100 + i)) for i in range(STEPS)]
    gradients = [random_like(shapes, 200 + i) for i in range(STEPS)]
    return random_like(shapes, 1), updates, gradients


def plain_loop():
    """The same in float64, a matrix and a triplet at a time."""
    c = SETTINGS.adalora
    start, updates, gradients = movements()
    leaves = {
        (site, name): np.asarray(x, np.float64)
        for site, own in by_site(start).items()
        for name, x in own.items()
    }
    matrices = sorted({site for site, _ in leaves})
    mean = {key: np.zeros(x.shape) for key, x in leaves.items()}
    spread = {key: np.zeros(x.shape) for key, x in leaves.items()}
    dead, history, counts = [], [], []
    for step in range(1, STEPS + 1):
        falling = step < STEPS - c.final_steps
        moved, slope = by_site(updates[step - 1]), by_site(gradients[step - 1])
        for (site, name), x in leaves.items():
            x += np.asarray(moved[site][name])
            if falling:
                key, seen = (site, name), abs(x * np.asarray(slope[site][name]))
                mean[key] = 0.85 * mean[key] + 0.15 * seen
                spread[key] = 0.85 * spread[key] + 0.15 * abs(seen - mean[key])
        cut = falling and step > c.warmup_steps and step % c.interval == 0
        if cut or step == STEPS - c.final_steps:
            left = 1 - (step - c.warmup_steps) / (STEPS - c.final_steps - c.warmup_steps)
            keep = int((INITIAL - RANK) * len(matrices) * left**3 + RANK * len(matrices))
            score = {}
            for site in matrices:
                a, e, b = (mean[site, name] * spread[site, name] for name in TRAINED)
                for i in range(INITIAL):
                    score[site, i] = e[i] + a[:, i].mean() + b[i].mean()
            dead = sorted(score, key=score.get)[: INITIAL * len(matrices) - keep]
            counts.append((step, keep))
        for site, i in dead if cut or not falling else []:
            leaves[site, "lora_e"][i] = 0
        history.append({key: x.copy() for key, x in leaves.items()})
    return history, counts


@pytest.mark.parametrize("scan", ["off", "on"])
def test_ranks_fall_as_in_a_plain_loop(scan):
    """Values after every update, for layers one by one and in a stack that has one too many."""
    fitted = peft.make_peft(SETTINGS, dataclasses.replace(MODEL, scan_layers=scan))
    start, updates, gradients = movements()
    if scan == "on":
        start, updates, gradients = jax.tree.map(
            _with_excluded, (start, updates, gradients), is_leaf=lambda x: isinstance(x, dict)
        )
    found = train(fitted, start, updates, gradients)
    expected, cuts = plain_loop()
    assert cuts == [(4, 36), (6, 21), (8, 16), (10, 16)]
    for step, (ours, theirs) in enumerate(zip(found, expected, strict=True), 1):
        sites = by_site(ours)
        for (site, name), x in theirs.items():
            where = f"update {step}, {site}/{name}"
            np.testing.assert_allclose(sites[site][name], x, atol=1e-4, err_msg=where)
            np.testing.assert_array_equal(sites[site][name] == 0, x == 0, err_msg=where)
    ranks = adalora.final_ranks(found[-1])
    ranks.pop("layers_1/attention/value", None)
    assert sum(ranks.values()) == RANK * 8 and len({int(r) for r in ranks.values()}) > 1


def _with_excluded(tree):
    """`tree` with leaves where a stack has room for the value that is not adapted: small ones,
    which would be the first to be cut."""
    value = jax.tree.map(lambda x: 1e-3 * x, tree["layers_0"]["attention"]["value"])
    layer = tree["layers_1"]
    return tree | {"layers_1": layer | {"attention": layer["attention"] | {"value": value}}}


def test_an_initial_rank_that_is_the_final_one_cuts_nothing():
    settings = dataclasses.replace(SETTINGS, rank=INITIAL)
    found = train(peft.make_peft(settings, MODEL), *movements())
    assert {int(r) for r in adalora.final_ranks(found[-1]).values()} == {INITIAL}


def test_equal_scores_are_cut_to_the_budget_all_the_same():
    """At the start all lambdas are 0, and so are all scores."""
    fitted = peft.make_peft(SETTINGS, MODEL)
    start, updates, gradients = jax.tree.map(jnp.zeros_like, movements())
    updates[-1] = jax.tree.map(jnp.ones_like, start)
    found = train(fitted, start, updates, gradients)
    assert sum(adalora.final_ranks(found[-1]).values()) == RANK * 8


def test_experts_have_ranks_of_their_own():
    model = dataclasses.replace(MODEL, ffn_pattern=("moe",), moe=MoEConfig(num_experts=4))
    settings = dataclasses.replace(SETTINGS, targets=("moe/down",), exclude=())
    fitted = peft.make_peft(settings, model)
    assert adalora.budgets(fitted.targets) == (INITIAL * 12, RANK * 12)
    start, updates, gradients = (
        [random_like(peft.abstract_adapters(fitted).trained, seed + i) for i in range(count)]
        for seed, count in ((1, 1), (100, STEPS), (200, STEPS))
    )
    found = train(fitted, start[0], updates, gradients)
    ranks = adalora.final_ranks(found[-1])
    assert sum(r.sum() for r in ranks.values()) == RANK * 12
    assert {r.shape for r in ranks.values()} == {(4,)}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"warmup_steps": 10}, "10 warmup_steps and 4 final_steps leave none of the run's 14"),
        ({"initial_rank": 1}, "initial_rank is 1, below the rank 2 that layers_0/attention/query"),
    ],
)
def test_schedules_that_cannot_be_are_refused_at_the_start(changes, message):
    allocator = dataclasses.replace(SETTINGS.adalora, **changes)
    fitted = peft.make_peft(dataclasses.replace(SETTINGS, adalora=allocator), MODEL)
    with pytest.raises(ConfigError, match=message):
        hooks.init_state(fitted, peft.abstract_adapters(fitted).trained, STEPS)


@pytest.mark.parametrize("scan", ["off", "on"])
@pytest.mark.parametrize("squared", [False, True])
def test_penalty_is_the_mean_norm_or_the_sum_of_squares(squared, scan):
    allocator = dataclasses.replace(SETTINGS.adalora, squared=squared)
    fitted = peft.make_peft(
        dataclasses.replace(SETTINGS, adalora=allocator),
        dataclasses.replace(MODEL, scan_layers=scan),
    )
    _, adapters = peft.init(fitted, {}, jax.random.key(0))
    start = movements()[0]
    trained = laid_out(fitted, _with_excluded(start) if scan == "on" else start)
    found = hooks.regulariser(fitted, adapters._replace(trained=trained))
    norms = []
    for leaves in by_site(start).values():
        for rows in (leaves["lora_a"].T, leaves["lora_b"]):
            norms.append(np.linalg.norm(np.asarray(rows @ rows.T, np.float64) - np.eye(INITIAL)))
    expected = 0.5 * (np.square(norms).sum() if squared else np.mean(norms))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_penalty_of_orthonormal_leaves_has_a_gradient():
    rows = jnp.eye(16)[:, :INITIAL]
    leaves = {"lora_a": rows, "lora_b": rows.T, "scaling": jnp.ones(INITIAL)}
    gradient = jax.grad(lambda leaves: adalora.regulariser({"site": leaves}, SETTINGS))(leaves)
    assert all((leaf == 0).all() for leaf in gradient.values())
