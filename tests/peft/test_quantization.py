"""A model whose frozen matrices are packed: the same function as the model of their values."""

import dataclasses
import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgpt import models, peft, sharding
from jgpt.config import ConfigError, MeshConfig, ModelConfig, MoEConfig, PeftConfig
from jgpt.interop import weights
from jgpt.peft.quantization import (
    converter,
    is_quantized,
    quantized,
    quantized_axes,
    restored,
)
from jgpt.training.assembly import placed
from jgpt.training.trainable import Trainable
from jgpt.trees import leaves_by_path, map_with_path, size_in_bytes

MODEL = ModelConfig(
    vocab_size=32,
    num_layers=2,
    hidden_size=64,
    num_heads=4,
    num_kv_heads=2,
    intermediate_size=128,
    init_std=0.3,
    scan_layers="off",
)
EXPERTS = dataclasses.replace(
    MODEL,
    num_layers=1,
    hidden_size=128,
    ffn_pattern=("moe",),
    moe=MoEConfig(num_experts=4, top_k=2, intermediate_size=128, exchange_factor=4.0, fused=True),
)
LORA = PeftConfig(method="lora", targets=("all-linear",), rank=4, alpha=8.0)
BATCH = {"inputs": np.random.default_rng(0).integers(1, 32, (8, 6), np.int32)}


def error(found, expected):
    """Largest difference over the largest entry."""
    return float(abs(found - expected).max() / abs(expected).max())


def moved(tree, seed, size=0.1):
    """`tree` with random numbers added to every leaf."""

    def one(path, leaf):
        noise = np.random.default_rng([seed, *path.encode()]).standard_normal(leaf.shape)
        return leaf + size * noise.astype(leaf.dtype)

    return map_with_path(one, tree)


@functools.cache
def case(settings, model):
    """(peft, whole parameters, packed ones, random adapters, function of a tree and adapters)."""
    params = jax.jit(functools.partial(models.init, model))(jax.random.key(0))
    packed = jax.jit(functools.partial(quantized, settings, model))(params)
    fitted = peft.make_peft(settings, model)
    _, adapters = jax.jit(functools.partial(peft.init, fitted))(packed, jax.random.key(1))
    adapters = peft.Adapters(moved(adapters.trained, 2), adapters.constants)
    apply = peft.bind(fitted, functools.partial(models.apply, model))
    weight = np.random.default_rng(3).standard_normal((8, 6, 32)).astype(np.float32)

    def loss(trained, base):
        variables = {"params": base, "adapters": trained, "constants": adapters.constants}
        logits, _ = apply(variables, BATCH)
        return (logits * weight).sum(), logits

    return fitted, params, packed, adapters, apply, jax.jit(jax.grad(loss, has_aux=True))


SCANNED = dataclasses.replace(MODEL, scan_layers="on", remat="full")
FORMS = {
    "nf4, scanned, remat": (dataclasses.replace(LORA, quantize="nf4"), SCANNED),
    "int8, DoRA": (dataclasses.replace(LORA, method="dora", quantize="int8"), MODEL),
}


@pytest.mark.parametrize("form", FORMS)
def test_packed_matrices_compute_what_their_values_do(form):
    """Logits and the gradient of adapters; and what is packed is the base, not the adapters."""
    settings, model = FORMS[form]
    _, params, packed, adapters, _, gradient = case(settings, model)
    whole = jax.tree.map(restored, packed, is_leaf=is_quantized)
    found, expected = (gradient(adapters.trained, base) for base in (packed, whole))
    assert error(found[1], expected[1]) < 1e-5
    for path, leaf in leaves_by_path(expected[0]).items():
        assert error(leaves_by_path(found[0])[path], leaf) < 1e-4, path
    assert error(found[1], gradient(adapters.trained, params)[1]) > 1e-3  # quantised indeed
    layers = [{k: v for k, v in tree.items() if "layers" in k} for tree in (packed, params)]
    assert size_in_bytes(layers[0]) < 0.29 * size_in_bytes(layers[1])


def test_merge_and_cached_generation_from_nf4():
    settings, model = FORMS["nf4, scanned, remat"]
    fitted, _, packed, adapters, apply, gradient = case(settings, model)
    expected = gradient(adapters.trained, packed)[1]
    merged = jax.jit(functools.partial(peft.merge, fitted))(packed, adapters)
    assert not any(map(is_quantized, jax.tree.leaves(merged, is_leaf=is_quantized)))
    plain, _ = jax.jit(lambda p: models.apply(model, {"params": p}, BATCH))(merged)
    assert error(plain, expected) < 1e-5
    variables = {"params": packed, **dict(zip(("adapters", "constants"), adapters))}

    @jax.jit
    def in_two(variables):
        cache = models.init_cache(model, 8, 8)
        first, aux = apply(variables, {"inputs": BATCH["inputs"][:, :4]}, cache=cache)
        second, _ = apply(variables, {"inputs": BATCH["inputs"][:, 4:]}, cache=aux.cache)
        return jnp.concatenate([first, second], axis=1)

    assert error(in_two(variables), expected) < 1e-5


def test_packed_layers_restack_and_their_shapes_are_known():
    settings, model = FORMS["nf4, scanned, remat"]
    _, params, packed, *_ = case(settings, model)
    other = models.restack(packed, model, scan=False)
    one_by_one = quantized(settings, MODEL, models.restack(params, model, scan=False))
    for path, leaf in leaves_by_path(one_by_one).items():
        np.testing.assert_array_equal(leaves_by_path(other)[path], leaf, err_msg=path)
    shapes = jax.eval_shape(functools.partial(quantized, settings, model), params)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), shapes) == jax.tree.map(
        lambda a: (a.shape, a.dtype), packed
    )
    axes = leaves_by_path(jax.tree.map(len, quantized_axes(packed, models.logical_axes(model)),
                                       is_leaf=lambda x: isinstance(x, tuple)))  # fmt: skip
    assert axes == {path: leaf.ndim for path, leaf in leaves_by_path(packed).items()}


def test_widths_that_fill_no_blocks_stay_whole(caplog):
    odd = dataclasses.replace(MODEL, intermediate_size=100)
    settings = dataclasses.replace(LORA, quantize="nf4")
    params = models.abstract_params(odd)
    with caplog.at_level(logging.WARNING, "jgpt.peft.quantization"):
        packed = jax.eval_shape(functools.partial(quantized, settings, odd), params)
    assert "leaves 2 matrices whole" in caplog.text and "layers_0/ffn/down/kernel" in caplog.text
    assert not is_quantized(packed["layers_0"]["ffn"]["down"]["kernel"])
    assert is_quantized(packed["layers_0"]["ffn"]["up"]["kernel"])
    narrow = dataclasses.replace(MODEL, hidden_size=48, intermediate_size=100)
    with pytest.raises(ConfigError, match=r"peft.quantize='nf4': no matrix .* set it to 'int8'"):
        converter(settings, narrow)


def test_parameters_are_packed_as_they_are_read(monkeypatch):
    """Each before the next is there; what is trained stays whole."""
    settings = dataclasses.replace(
        LORA, quantize="nf4", double_quantize=False, train_also=("layers_1/ffn/up",)
    )
    params = models.init(MODEL, jax.random.key(0))
    trainable = Trainable(MODEL, peft.make_peft(settings, MODEL))
    convert, happened = trainable.converter(), []

    def read(source, sharding, dtype):
        happened.append(f"read {source}")
        return leaves_by_path(params)[source]

    def noted(path, array):
        happened.append(f"packed {path}")
        return convert(path, array)

    monkeypatch.setattr(weights, "sources", lambda folder, model: {p: p for p in places})
    monkeypatch.setattr(weights, "_place", read)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    places = leaves_by_path(params)
    found = weights.load(None, MODEL, jax.tree.map(lambda _: here, params), here, noted)["params"]
    assert happened == [f"{what} {p}" for p in places for what in ("read", "packed")]
    started = trainable.start(found, jax.random.key(1))
    expected = trainable.start(params, jax.random.key(1))
    assert is_quantized(started.frozen["layers_0"]["ffn"]["up"]["kernel"])
    assert started.params["layers_1"]["ffn"]["up"]["kernel"].shape == (64, 128)
    for path, leaf in leaves_by_path(expected).items():
        np.testing.assert_array_equal(leaves_by_path(started)[path], leaf, err_msg=path)


def test_packed_experts_with_adapters_on_a_mesh():
    """All three maps of an expert are sites; what merges alone, and over eight devices.

    DoRA's norms run over inputs that are cut, of `down`; `moe.fused` is off by itself.
    """
    settings = dataclasses.replace(LORA, method="dora", quantize="nf4", targets=("moe/",))
    fitted, _, packed, adapters, _, gradient = case(settings, EXPERTS)
    sites = {t.site.path for t in fitted.targets if t.site.kind == "experts"}
    assert sites == {f"layers_0/moe/{name}" for name in ("gate", "up", "down")}
    expected = gradient(adapters.trained, packed)
    merged = jax.jit(functools.partial(peft.merge, fitted))(packed, adapters)
    plain, _ = jax.jit(lambda p: models.apply(EXPERTS, {"params": p}, BATCH))(merged)
    assert error(expected[1], plain) < 1e-5
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=2, expert=2, tensor=2))
    trainable = Trainable(EXPERTS, fitted)
    axes = trainable.axes()
    trees = {"params": {"adapters": adapters.trained}, "frozen": packed}
    there = {n: jax.device_put(t, sharding.shardings(mesh, axes[n], t)) for n, t in trees.items()}
    with placed(mesh):
        found = gradient(there["params"]["adapters"], there["frozen"])
    assert error(found[1], expected[1]) < 1e-5
    for path, leaf in leaves_by_path(expected[0]).items():
        assert error(leaves_by_path(found[0])[path], leaf) < 1e-4, path
