"""Cross-entropy and token log-probabilities against all logits in numpy float64."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding, PartitionSpec

from jgpt.config import ModelConfig
from jgpt.kernels.cross_entropy import BACKENDS, blockwise, cross_entropy, token_logps
from jgpt.models import apply, init

WIDTH, VOCABULARY = 8, 50
OPTIONS = {
    "plain": {},
    "z-loss": {"z_loss": 0.05},
    "softcap": {"softcap": 2.0},
    "bias": {"bias": True},
    "label smoothing": {"label_smoothing": 0.2},
    "everything": {"z_loss": 0.05, "softcap": 2.0, "bias": True, "label_smoothing": 0.1},
}


def inputs(batch, length, dtype="float64", size=1.0):
    rng = np.random.default_rng(batch * length)
    weights = rng.uniform(0.1, 2, (batch, length)) * (rng.uniform(size=(batch, length)) > 0.3)
    return {
        "hidden": jnp.asarray(size * rng.standard_normal((batch, length, WIDTH)), dtype),
        "head": jnp.asarray(rng.standard_normal((WIDTH, VOCABULARY)), dtype),
        "bias": jnp.asarray(rng.standard_normal(VOCABULARY), dtype),
        "targets": jnp.asarray(rng.integers(0, VOCABULARY, (batch, length)), jnp.int32),
        "weights": jnp.asarray(weights),
    }


def oracle(hidden, head, bias, targets, weights, z_loss=0.0, label_smoothing=0.0, softcap=0.0):
    """(total, nll, z, correct, weight), its gradients, and log-probabilities; bias may be None."""
    hidden, head, weights = (np.asarray(x, np.float64) for x in (hidden, head, weights))
    scores = hidden @ head + (0 if bias is None else np.asarray(bias, np.float64))
    slope = 1.0
    if softcap:
        tanh = np.tanh(scores / softcap)
        scores, slope = softcap * tanh, 1 - tanh**2
    highest = scores.max(-1, keepdims=True)
    normalizer = highest[..., 0] + np.log(np.exp(scores - highest).sum(-1))
    chosen = np.take_along_axis(scores, np.asarray(targets)[..., None], -1)[..., 0]
    nll, z = normalizer - chosen, normalizer**2
    wanted = np.eye(head.shape[1])[np.asarray(targets)]
    wanted = (1 - label_smoothing) * wanted + label_smoothing / head.shape[1]
    sums = (
        (weights * ((wanted * (normalizer[..., None] - scores)).sum(-1) + z_loss * z)).sum(),
        (weights * nll).sum(),
        (weights * z).sum(),
        (weights * (scores.argmax(-1) == np.asarray(targets))).sum(),
        weights.sum(),
    )
    probabilities = np.exp(scores - normalizer[..., None])
    factor = 1 + 2 * z_loss * normalizer[..., None]
    dscores = weights[..., None] * (probabilities * factor - wanted) * slope
    gradients = (
        dscores @ head.T,
        np.einsum("bsd,bsv->dv", hidden, dscores),
        dscores.sum((0, 1)),
    )
    return sums, gradients, chosen - normalizer


def relative_error(got, want):
    want = np.asarray(want, np.float64)
    return np.abs(np.asarray(got, np.float64) - want).max() / max(np.abs(want).max(), 1e-30)


def loss_and_gradients(function, x, jit, **options):
    names = ("hidden", "head", "bias") if options.pop("bias", False) else ("hidden", "head")

    def run(smooth):
        def total(smooth):
            sums = function(targets=x["targets"], weights=x["weights"], **smooth, **options)
            return 3 * sums.total, sums  # the gradient of more than the plain total

        (_, sums), gradients = jax.value_and_grad(total, has_aux=True)(smooth)
        return sums, [gradients[n] / 3 for n in names]

    sums, gradients = jit(run)({n: x[n] for n in names})
    return (sums.total, sums.nll, sums.z, sums.correct, sums.weight), gradients


def expected(x, **options):
    return oracle(**x | {"bias": x["bias"] if options.pop("bias", False) else None}, **options)


def backend(name, loops, monkeypatch):
    if name == "reference":
        return BACKENDS["reference"]
    if loops:
        monkeypatch.setattr(blockwise, "MAX_UNROLLED", 0)
    return blockwise


CASES = [("reference", False), ("blockwise", False), ("blockwise", True)]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("name, loops", CASES)
def test_sums_and_gradients(name, loops, options, x64, quick_jit, monkeypatch):
    x = inputs(3, 13)
    function = backend(name, loops, monkeypatch).cross_entropy
    if name == "blockwise":
        function = functools.partial(function, chunk=9)  # chunks of 3 positions, the last padded
    sums, gradients = loss_and_gradients(function, x, quick_jit, **dict(options))
    want_sums, want_gradients, _ = expected(x, **dict(options))
    assert max(map(relative_error, sums, want_sums)) < 1e-12
    assert max(map(relative_error, gradients, want_gradients)) < 1e-12


@pytest.mark.parametrize("chunk", [1, 2, 11, 12, 13, 100])
def test_chunk_borders_do_not_matter(chunk, x64, quick_jit):
    x = inputs(1, 12)
    function = functools.partial(blockwise.cross_entropy, chunk=chunk)
    sums, gradients = loss_and_gradients(function, x, quick_jit)
    want_sums, want_gradients, _ = expected(x)
    assert max(map(relative_error, sums, want_sums)) < 1e-12
    assert max(map(relative_error, gradients, want_gradients)) < 1e-12


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("name, loops", CASES)
def test_token_logps_and_gradients(name, loops, options, x64, quick_jit, monkeypatch):
    """The gradient of sum(-weights * logps) is that of the loss without z."""
    x = inputs(3, 13)
    options = {n: o for n, o in options.items() if n in ("softcap", "bias")}
    function = backend(name, loops, monkeypatch).token_logps
    if name == "blockwise":
        function = functools.partial(function, chunk=9)
    with_bias = options.pop("bias", False)
    names = ("hidden", "head", "bias") if with_bias else ("hidden", "head")

    def run(smooth):
        def total(smooth):
            logps = function(targets=x["targets"], **smooth, **options)
            return -(x["weights"] * logps).sum(), logps

        gradients, logps = jax.grad(total, has_aux=True)(smooth)
        return logps, [gradients[n] for n in names]

    logps, gradients = quick_jit(run)({n: x[n] for n in names})
    _, want_gradients, want = expected(x, bias=with_bias, **options)
    assert logps.shape == x["targets"].shape
    assert relative_error(logps, want) < 1e-12
    assert max(map(relative_error, gradients, want_gradients)) < 1e-12


@pytest.mark.parametrize("dtype, tolerance", [("float32", 2e-6), ("bfloat16", 2e-2)])
def test_low_precision_stays_close_to_float64(dtype, tolerance):
    x = inputs(4, 200, dtype)
    x["head"] = x["head"].astype("float32")
    function = functools.partial(cross_entropy, backend="blockwise")
    sums, gradients = loss_and_gradients(function, x, jax.jit)
    assert [g.dtype for g in gradients] == [dtype, "float32"]
    rounded = x | {"head": x["head"].astype(dtype)}
    want_sums, want_gradients, _ = expected(jax.tree.map(np.asarray, rounded))
    assert relative_error(sums[0], want_sums[0]) < tolerance / 10
    assert max(map(relative_error, gradients, want_gradients)) < tolerance


@pytest.mark.parametrize("name", ["blockwise", "reference"])
def test_large_logits_neither_overflow_nor_lose_precision(name, quick_jit):
    x = inputs(2, 9, "float32", size=1e3)
    function = functools.partial(cross_entropy, backend=name)
    sums, gradients = loss_and_gradients(function, x, quick_jit)
    want_sums, want_gradients, _ = expected(x)
    assert np.isfinite(sums[0]) and relative_error(sums[0], want_sums[0]) < 1e-5
    assert relative_error(gradients[1], want_gradients[1]) < 1e-3


@pytest.mark.parametrize("name", ["blockwise", "reference"])
def test_tokens_of_weight_zero_do_not_matter(name, x64, quick_jit):
    x = inputs(2, 9)
    padded = np.asarray(x["weights"]) == 0
    other = dict(x)
    other["hidden"] = jnp.where(padded[..., None], 7.0, x["hidden"])
    other["targets"] = jnp.where(padded, 0, x["targets"])
    function = functools.partial(cross_entropy, backend=name)
    sums, gradients = loss_and_gradients(function, x, quick_jit, z_loss=0.1)
    same_sums, same = loss_and_gradients(function, other, quick_jit, z_loss=0.1)
    assert padded.any() and not np.asarray(gradients[0])[padded].any()
    np.testing.assert_array_equal(sums, same_sums)
    np.testing.assert_array_equal(gradients[1], same[1])


def test_only_the_total_is_differentiable(quick_jit):
    x = inputs(2, 9, "float32")

    def others(hidden):
        sums = cross_entropy(hidden, x["head"], x["targets"], x["weights"])
        return sums.nll + sums.z + sums.correct + sums.weight

    assert not np.asarray(quick_jit(jax.grad(others))(x["hidden"])).any()


def test_leading_shapes(quick_jit):
    x = inputs(2, 6, "float32")
    want = quick_jit(token_logps)(x["hidden"], x["head"], x["targets"])
    for shape in [(12,), (1, 12), (3, 2, 2)]:
        got = quick_jit(token_logps)(
            x["hidden"].reshape(*shape, WIDTH), x["head"], x["targets"].reshape(shape)
        )
        np.testing.assert_allclose(got, want.reshape(shape), rtol=1e-5)


def gradient_of_loss(hidden, head, targets):
    def total(hidden, head):
        return blockwise.cross_entropy(hidden, head, targets, jnp.ones(targets.shape)).total

    return jax.grad(total, (0, 1))(hidden, head)


def test_all_logits_are_never_in_memory():
    tokens, vocabulary = 8192, 4096
    hidden = jax.ShapeDtypeStruct((1, tokens, 16), jnp.float32)
    head = jax.ShapeDtypeStruct((16, vocabulary), jnp.float32)
    targets = jax.ShapeDtypeStruct((1, tokens), jnp.int32)
    compiled = jax.jit(gradient_of_loss).lower(hidden, head, targets).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * tokens * vocabulary / 4


def test_a_sharded_batch_stays_where_it_is():
    x = inputs(16, 160, "float32")
    arrays = x["hidden"], x["head"], x["targets"]
    want = jax.jit(gradient_of_loss)(*arrays)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh):
        rows = NamedSharding(mesh, PartitionSpec("data"))
        whole = NamedSharding(mesh, PartitionSpec())
        arrays = jax.device_put(arrays, (rows, whole, rows))
        compiled = jax.jit(gradient_of_loss).lower(*arrays).compile()
        got = compiled(*arrays)
    assert "all-gather" not in compiled.as_text() and "all-to-all" not in compiled.as_text()
    assert max(map(relative_error, got, want)) < 1e-5


def test_lowers_for_tpu():
    x = inputs(2, 6, "float32")
    traced = jax.jit(gradient_of_loss).trace(x["hidden"], x["head"], x["targets"])
    assert "dot_general" in traced.lower(lowering_platforms=("tpu",)).as_text()


def test_bad_arguments_are_named():
    x = inputs(2, 9, "float32")
    with pytest.raises(ValueError, match=r"'fused' .* is unknown; choose auto or one of"):
        token_logps(x["hidden"], x["head"], x["targets"], backend="fused")
    with pytest.raises(ValueError, match=r"'pallas_tpu' .* the Pallas TPU kernel runs on"):
        token_logps(x["hidden"], x["head"], x["targets"], backend="pallas_tpu")
    with pytest.raises(ValueError, match="label_smoothing is 1"):
        cross_entropy(x["hidden"], x["head"], x["targets"], x["weights"], label_smoothing=1)
    with pytest.raises(ValueError, match="does not fit a head"):
        token_logps(x["hidden"], x["head"].T, x["targets"])
    with pytest.raises(ValueError, match="one entry per token"):
        token_logps(x["hidden"], x["head"], x["targets"][:1])


@pytest.mark.parametrize("output", ["cross_entropy", "token_logps"])
def test_models_use_the_backend_that_the_config_names(output, monkeypatch):
    asked = []
    for name, backend in BACKENDS.items():
        spied = getattr(backend, output)

        def spy(*arguments, name=name, spied=spied, **options):
            asked.append(name)
            return spied(*arguments, **options)

        monkeypatch.setitem(BACKENDS, name, backend._replace(**{output: spy}))
    sizes = {"vocab_size": 16, "hidden_size": 8, "num_heads": 1, "num_layers": 1}
    config = ModelConfig(**sizes, intermediate_size=8)
    variables = {"params": jax.eval_shape(lambda key: init(config, key), jax.random.key(0))}
    tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    weights = jax.ShapeDtypeStruct((1, 4), jnp.float32)
    batch = {"inputs": tokens, "targets": tokens, "loss_weights": weights}

    def trace(backend):
        named = dataclasses.replace(config, loss_backend=backend)
        jax.eval_shape(functools.partial(apply, named, output=output), variables, batch)
        return asked.pop()

    assert [trace(name) for name in ("reference", "blockwise", "auto")] == [
        "reference",
        "blockwise",
        "blockwise",
    ]
    with pytest.raises(ValueError, match=r"'pallas_tpu' \(model.loss_backend\) cannot run: "):
        trace("pallas_tpu")


@pytest.mark.parametrize(
    "kind, first", [("TPU v5 lite", "blockwise"), ("TPU v5", "pallas_tpu"), ("cpu", "blockwise")]
)
def test_auto_goes_by_the_chip(kind, first):
    device = AbstractDevice(kind, None, "cpu" if kind == "cpu" else "tpu")
    mesh = AbstractMesh((1,), ("one",), abstract_device=device)
    x = inputs(2, 6, "float32")
    with jax.sharding.use_abstract_mesh(mesh):
        jaxpr = str(
            jax.make_jaxpr(cross_entropy)(x["hidden"], x["head"], x["targets"], x["weights"])
        )
    assert ("pallas_call" in jaxpr) == (first == "pallas_tpu")
