"""Update rules and schedules against closed forms, written out in numpy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgpt import models
from jgpt.config import ModelConfig, MoEConfig, OptimizerConfig
from jgpt.training.optimizer import (
    make_optimizer,
    orthogonalize,
    parameter_groups,
    schedule,
)
from jgpt.trees import leaves_by_path
from tests.training.toy_model import fast_jit, relative_error

CONSTANT = OptimizerConfig(schedule="constant", warmup_steps=1, clip_norm=0.0, weight_decay=0.1)


def random_tree(shapes, seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return {
        name: scale * rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()
    }


SHAPES = {"kernel": (5, 7), "bias": (7,), "scale": (5,)}


def run(config, params, gradients, **kwargs):
    """Parameters after each gradient in turn."""
    optimizer = make_optimizer(config, len(gradients), params, **kwargs)

    @fast_jit
    def step(params, state, gradient):
        updates, state = optimizer.update(gradient, state, params)
        return jax.tree.map(jnp.add, params, updates), state

    state = fast_jit(optimizer.init)(params)
    history = []
    for gradient in gradients:
        params, state = step(params, state, gradient)
        history.append(params)
    return history


# --- schedules -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cosine", "wsd", "constant"])
def test_schedules_follow_their_formulas(name):
    steps, warmup, peak, final = 50, 8, 0.3, 0.1
    config = OptimizerConfig(
        schedule=name,
        warmup_steps=warmup,
        learning_rate=peak,
        decay_fraction=0.2,
        final_fraction=final,
    )
    rates = jax.vmap(schedule(config, steps))(jnp.arange(steps))
    expected = []
    for t in range(1, steps + 1):
        if t <= warmup:
            expected.append(peak * t / warmup)
        elif name == "cosine":
            share = (t - warmup) / (steps - warmup)
            expected.append(peak * (final + (1 - final) * (1 + np.cos(np.pi * share)) / 2))
        elif name == "wsd" and t > 40:
            expected.append(peak * (1 - (1 - final) * (t - 40) / 10))
        else:
            expected.append(peak)
    np.testing.assert_allclose(rates, expected, rtol=1e-5)
    if name != "constant":
        np.testing.assert_allclose(rates[-1], final * peak, rtol=1e-5)


@pytest.mark.parametrize("name", ["cosine", "wsd", "constant"])
@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 100), (5, 100), (5, 5), (3, 0)])
def test_short_runs_have_finite_rates_within_the_peak(name, steps, warmup):
    config = OptimizerConfig(schedule=name, warmup_steps=warmup, learning_rate=2.0)
    rates = jax.vmap(schedule(config, steps))(jnp.arange(steps + 2))
    assert np.all(np.isfinite(rates)) and np.all(rates > 0) and np.all(rates <= 2.0)


# --- update rules --------------------------------------------------------------------------------


def test_adamw_follows_its_formula():
    params, grads = random_tree(SHAPES, 0), [random_tree(SHAPES, i) for i in range(1, 6)]
    config = dataclasses.replace(CONSTANT, learning_rate=0.05, b1=0.8, b2=0.9, epsilon=1e-6)
    history = run(config, params, grads)
    for name, decay in (("kernel", 0.1), ("bias", 0.0), ("scale", 0.0)):
        p, m, v = params[name].astype(np.float64), 0.0, 0.0
        for t, gradient in enumerate(grads, 1):
            g = gradient[name].astype(np.float64)
            m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g
            direction = (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.9**t)) + 1e-6)
            p = p - 0.05 * (direction + decay * p)
            assert relative_error(history[t - 1][name], p) < 1e-6


def test_lion_follows_its_formula():
    params, grads = random_tree(SHAPES, 0), [random_tree(SHAPES, i) for i in range(1, 6)]
    config = dataclasses.replace(CONSTANT, name="lion", learning_rate=0.05, b1=0.9, b2=0.8)
    history = run(config, params, grads)
    for name, decay in (("kernel", 0.1), ("bias", 0.0)):
        p, m = params[name].astype(np.float64), 0.0
        for t, gradient in enumerate(grads):
            g = gradient[name].astype(np.float64)
            p = p - 0.05 * (np.sign(0.9 * m + 0.1 * g) + decay * p)
            m = 0.8 * m + 0.2 * g
            assert relative_error(history[t][name], p) < 1e-6


def test_adafactor_follows_its_formula():
    """Factored where both sides reach 128, with update clipping and the parameter's scale."""
    shapes = {"kernel": (128, 130), "bias": (130,)}
    params = random_tree(shapes, 0, scale=0.1)
    grads = [random_tree(shapes, i) for i in range(1, 5)]
    config = dataclasses.replace(CONSTANT, name="adafactor", learning_rate=0.05)
    history = run(config, params, grads)

    def rms(x):
        return np.sqrt(np.mean(np.square(x)))

    for name, decay in (("kernel", 0.1), ("bias", 0.0)):
        p, row, column, full = params[name].astype(np.float64), 0.0, 0.0, 0.0
        for t, gradient in enumerate(grads, 1):
            g = gradient[name].astype(np.float64)
            b, square = 1 - t**-0.8, g * g + 1e-30
            if name == "kernel":
                row = b * row + (1 - b) * square.mean(1)
                column = b * column + (1 - b) * square.mean(0)
                second = np.outer(row, column) / row.mean()
            else:
                second = full = b * full + (1 - b) * square
            direction = g / np.sqrt(second)
            direction = direction / max(1.0, rms(direction)) * max(1e-3, rms(p))
            p = p - 0.05 * (direction + decay * p)
            assert relative_error(history[t - 1][name], p) < 1e-5


def test_muon_orthogonalizes_every_matrix_of_a_stack_by_itself():
    rng = np.random.default_rng(0)
    # Two layers of three experts, of very different sizes: a joint norm would shrink some to 0.
    stack = rng.normal(size=(2, 3, 16, 24)) * 10.0 ** rng.integers(-3, 4, (2, 3, 1, 1))
    stack = jnp.asarray(stack, jnp.float32)
    for matrices in (stack, stack.mT):
        result = fast_jit(orthogonalize)(matrices)
        values = np.linalg.svd(np.asarray(result), compute_uv=False)
        assert values.min() > 0.6 and values.max() < 1.25
        alone = fast_jit(orthogonalize)(matrices[1, 2])
        assert relative_error(result[1, 2], alone) < 1e-4
        # Same singular vectors: the nearest semi-orthogonal matrix, up to the spread above.
        u, _, vt = np.linalg.svd(np.asarray(matrices, np.float64), full_matrices=False)
        nearest = u @ vt
        cosine = (result * nearest).sum((-2, -1)) / np.sqrt(
            np.square(result).sum((-2, -1)) * np.square(nearest).sum((-2, -1))
        )
        assert cosine.min() > 0.97


def test_muon_steps_matrices_by_its_own_rate_and_the_rest_by_adam():
    shapes = {"up/kernel": (3, 8, 12), "bias": (12,)}
    tree = {
        "up": {"kernel": shapes["up/kernel"]},
        "bias": shapes["bias"],
        "embedding": {"table": (20, 8)},
        "head": {"kernel": (8, 20)},
    }
    rng = np.random.default_rng(0)

    def draw():
        return jax.tree.map(
            lambda s: rng.normal(size=s).astype(np.float32),
            tree,
            is_leaf=lambda x: isinstance(x, tuple),
        )

    params, grads = draw(), [draw() for _ in range(3)]
    common = {"learning_rate": 0.01, "weight_decay": 0.1}
    config = dataclasses.replace(CONSTANT, name="muon", muon_learning_rate=0.5, **common)
    history = run(config, params, grads)
    adam = run(dataclasses.replace(CONSTANT, **common), params, grads)
    for path in (("bias",), ("embedding", "table"), ("head", "kernel")):
        got, expected = (functools.reduce(dict.__getitem__, path, h[-1]) for h in (history, adam))
        assert relative_error(got, expected) < 1e-6
    p, trace = params["up"]["kernel"], 0.0
    for t, gradient in enumerate(grads):
        g = gradient["up"]["kernel"]
        trace = 0.95 * trace + g
        direction = np.sqrt(12 / 8) * orthogonalize(jnp.asarray(g + 0.95 * trace))
        p = p - 0.5 * (np.asarray(direction) + 0.1 * p)
        assert relative_error(history[t]["up"]["kernel"], p) < 1e-5


# --- what is clipped, scaled, kept ---------------------------------------------------------------


def test_clipping_is_of_the_global_norm():
    params, gradient = random_tree(SHAPES, 0), random_tree(SHAPES, 1, scale=3.0)
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in gradient.values()))
    config = dataclasses.replace(CONSTANT, epsilon=1.0, b1=0.0, b2=0.0)  # g / (|g| + 1)
    clipped = run(dataclasses.replace(config, clip_norm=0.5), params, [gradient])[0]
    scaled = run(config, params, [{k: g * 0.5 / norm for k, g in gradient.items()}])[0]
    untouched = run(dataclasses.replace(config, clip_norm=2 * norm), params, [gradient])[0]
    assert relative_error(clipped, scaled) < 1e-6
    assert relative_error(untouched, run(config, params, [gradient])[0]) < 1e-6


def test_learning_rate_scales_multiply_the_step_and_not_the_decay():
    params, gradient = random_tree(SHAPES, 0), random_tree(SHAPES, 1)
    scales = {"kernel": 0.25, "bias": 1.0, "scale": 2.0}
    config = dataclasses.replace(CONSTANT, learning_rate=0.1)
    plain = run(config, params, [gradient])[0]
    scaled = run(config, params, [gradient], learning_rate_scales=scales)[0]
    for name, scale in scales.items():
        decay = 0.1 * 0.1 * params[name] if name == "kernel" else 0
        step = np.asarray(plain[name]) - params[name] + decay
        expected = params[name] + scale * step - decay
        assert relative_error(scaled[name], expected) < 1e-6


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion", "muon"])
def test_moments_are_float32_whatever_the_parameters_are(name):
    params = {k: v.astype(jnp.bfloat16) for k, v in random_tree(SHAPES, 0).items()}
    optimizer = make_optimizer(dataclasses.replace(CONSTANT, name=name), 5, params)
    state = jax.eval_shape(optimizer.init, params)
    updates, new_state = jax.eval_shape(optimizer.update, params, state, params)
    for leaf in jax.tree.leaves((state, new_state, updates)):
        assert leaf.dtype in (jnp.float32, jnp.int32)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(
        lambda x: (x.shape, x.dtype), new_state
    )


FULL = ModelConfig(
    vocab_size=64, num_layers=4, hidden_size=16, num_heads=4, num_kv_heads=2,
    intermediate_size=32, max_length=32, attention_bias=True, attention_output_bias=True,
    ffn_bias=True, head_bias=True, qk_norm=True, attention_sinks=True, norm="layernorm",
    learned_attention_scale=True, norm_placement="sandwich", ffn_pattern=("dense", "moe"),
    moe=MoEConfig(num_experts=4, num_shared_experts=1),
)  # fmt: skip


@pytest.mark.parametrize("scan_layers", ["on", "off"])
@pytest.mark.parametrize("position", ["learned", "relative"])
def test_every_parameter_of_the_model_has_its_group(position, scan_layers):
    config = dataclasses.replace(FULL, position=position, scan_layers=scan_layers)
    params = leaves_by_path(models.abstract_params(config))
    groups = leaves_by_path(parameter_groups(models.abstract_params(config)))
    assert set(groups.values()) == {"matrix", "head", "embedding", "vector"}
    for path, group in groups.items():
        rank = len(params[path].shape) - path.startswith("layers/")
        assert (group == "vector") == (rank <= 1 or "relative_bias" in path), path
        if group == "matrix":
            assert path.endswith("/kernel")
    assert groups["embedding/table"] == "embedding" and groups["head/kernel"] == "head"


def test_a_parameter_without_a_rule_is_refused():
    with pytest.raises(ValueError, match="no rule matches 'layers_0/gate/temperature'"):
        parameter_groups({"layers_0": {"gate": {"temperature": np.zeros(3)}}})


@pytest.mark.parametrize("name", ["adamw", "lion", "muon"])
def test_scanned_layers_are_updated_as_unrolled_ones(name):
    config = ModelConfig(
        vocab_size=24, hidden_size=8, num_heads=2, intermediate_size=12, scan_layers="off",
        ffn_pattern=("dense", "moe"), moe=MoEConfig(num_experts=3),
    )  # fmt: skip
    shapes = models.abstract_params(config)
    rng = np.random.default_rng(0)
    params, gradient = (
        jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)
        for _ in range(2)
    )
    optimizer = dataclasses.replace(CONSTANT, name=name, clip_norm=1.0)
    unrolled = run(optimizer, params, [gradient] * 2)[-1]
    restack = functools.partial(models.restack, config=config, scan=True)
    scanned = run(optimizer, restack(params), [restack(gradient)] * 2)[-1]
    assert "layers" in scanned
    assert relative_error(models.restack(scanned, config, scan=False), unrolled) < 1e-6


# --- against torch -------------------------------------------------------------------------------


def torch_history(make, params, grads):
    torch = pytest.importorskip("torch", reason="compares with torch's optimizers")
    weights = {k: torch.nn.Parameter(torch.tensor(v)) for k, v in params.items()}
    optimizer = make(torch, weights)
    history = []
    for gradient in grads:
        for name, weight in weights.items():
            weight.grad = torch.tensor(gradient[name])
        optimizer.step()
        history.append({k: w.detach().numpy().copy() for k, w in weights.items()})
    return history


@pytest.mark.parity
def test_adamw_equals_torch():
    params, grads = random_tree(SHAPES, 0), [random_tree(SHAPES, i) for i in range(1, 9)]
    config = dataclasses.replace(CONSTANT, learning_rate=0.03, b2=0.99)
    theirs = torch_history(
        lambda torch, weights: torch.optim.AdamW(
            [
                {"params": [weights["kernel"]], "weight_decay": 0.1},
                {"params": [weights["bias"], weights["scale"]], "weight_decay": 0.0},
            ],
            lr=0.03,
            betas=(0.9, 0.99),
            eps=1e-8,
        ),
        params,
        grads,
    )
    for ours, reference in zip(run(config, params, grads), theirs):
        assert relative_error(ours, reference) < 1e-6


@pytest.mark.parity
def test_muon_equals_torch():
    """Up to the bfloat16 in which torch orthogonalises. Its matrices are (out, in)."""
    shapes = {"kernel": (16, 40)}
    params, grads = random_tree(shapes, 0), [random_tree(shapes, i) for i in range(1, 5)]
    config = dataclasses.replace(CONSTANT, name="muon", muon_learning_rate=0.1)

    def transposed(tree):
        return {k: np.ascontiguousarray(v.T) for k, v in tree.items()}

    theirs = torch_history(
        lambda torch, weights: torch.optim.Muon(weights.values(), lr=0.1, weight_decay=0.1),
        transposed(params),
        [transposed(g) for g in grads],
    )
    for ours, reference in zip(run(config, params, grads), theirs):
        change = ours["kernel"] - params["kernel"]
        assert relative_error(change, reference["kernel"].T - params["kernel"]) < 0.02
