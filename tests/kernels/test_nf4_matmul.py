"""NF4: the format against numpy and bitsandbytes, the product against float64."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jgpt.kernels.nf4_matmul import (
    BACKENDS,
    Nf4,
    blockwise,
    dequantize,
    nf4_matmul,
    pallas_tpu,
    quantize,
)
from jgpt.kernels.nf4_matmul.format import DYNAMIC_MAP, LEVELS, unpacked, whole_scales
from tests.test_tpu_aot import compiled

SHAPES = [(1, 64), (3, 128), (40, 192), (70, 512)]


def weight(out, width, seed=0):
    rng = np.random.default_rng(seed + out * width)
    return (rng.standard_normal((out, width)) * rng.uniform(0.1, 3, (out, 1))).astype(np.float32)


def relative_error(got, want):
    want = np.asarray(want, np.float64)
    return np.abs(np.asarray(got, np.float64) - want).max() / max(np.abs(want).max(), 1e-30)


def nearest(x, levels):
    """Number of the nearest level by looking at all; of two equally near the lower."""
    bounds = (levels[:-1] + levels[1:]) / np.float32(2)
    return sum((x > bound).astype(np.uint8) for bound in bounds)


def numpy_nf4(w):
    """Bytes, scales, 8-bit scales, their scales, offset, written once more in plain numpy."""
    blocks = w.reshape(-1, 64)
    scales = np.abs(blocks).max(1)
    divided = blocks * (np.float32(1) / np.maximum(scales, np.float32(1e-38)))[:, None]
    codes = nearest(np.clip(divided, -1, 1), LEVELS).reshape(-1)
    offset = scales.mean()
    groups = np.pad(scales - offset, (0, -len(scales) % 256)).reshape(-1, 256)
    second = np.abs(groups).max(1)
    divided = groups * (np.float32(1) / np.maximum(second, np.float32(1e-38)))[:, None]
    small = nearest(np.clip(divided, -1, 1), DYNAMIC_MAP).reshape(-1)[: len(scales)]
    return codes[::2] << 4 | codes[1::2], scales, small, second, offset


@pytest.mark.parametrize("shape", SHAPES)
def test_codes_and_scales_equal_numpy_exactly(shape):
    w = weight(*shape)
    packed, plain = jax.jit(quantize)(w), jax.jit(functools.partial(quantize, double=False))(w)
    bytes_, scales, small, second, _ = numpy_nf4(w)
    np.testing.assert_array_equal(packed.codes, bytes_.reshape(shape[0], -1))
    np.testing.assert_array_equal(plain.codes, packed.codes)
    np.testing.assert_array_equal(plain.scales, scales.reshape(shape[0], -1))
    np.testing.assert_array_equal(packed.scales.codes, small.reshape(shape[0], -1))
    np.testing.assert_allclose(packed.scales.scales, second, rtol=1e-6)


@pytest.mark.parity
@pytest.mark.parametrize("shape", SHAPES)
def test_the_format_equals_bitsandbytes(shape):
    torch = pytest.importorskip("torch", reason="bitsandbytes computes with it")
    theirs = pytest.importorskip("bitsandbytes.functional", reason="pip install bitsandbytes")
    w = weight(*shape)
    np.testing.assert_array_equal(DYNAMIC_MAP, theirs.create_dynamic_map().numpy())
    codes, state = theirs.quantize_4bit(
        torch.from_numpy(w), quant_type="nf4", compress_statistics=True, blocksize=64
    )
    ours = quantize(w)
    np.testing.assert_array_equal(LEVELS, state.code.numpy())
    np.testing.assert_array_equal(ours.codes.reshape(-1, 1), codes.numpy())
    # Its compiled code rounds a scale that lies half way, and a lone one, in a way of its own; its
    # sums of scales differ from ours in the last bit.
    assert (np.asarray(ours.scales.codes).reshape(-1) != state.absmax.numpy()).sum() <= 1
    np.testing.assert_allclose(ours.scales.scales, state.state2.absmax.numpy(), rtol=1e-6)
    np.testing.assert_allclose(ours.scales.offset, state.offset.numpy(), rtol=1e-6)
    plain = quantize(w, double=False)
    codes, state = theirs.quantize_4bit(torch.from_numpy(w), quant_type="nf4", blocksize=64)
    np.testing.assert_array_equal(plain.scales.reshape(-1), state.absmax.numpy())
    back = theirs.dequantize_4bit(codes, state).numpy()
    np.testing.assert_array_equal(dequantize(plain), back)


def test_levels_are_asymmetric_and_kept_exactly():
    assert (LEVELS < 0).sum() == 7 and LEVELS[7] == 0 and (LEVELS > 0).sum() == 8
    w = np.tile(LEVELS, 8).reshape(2, 64) * np.float32(0.7)
    packed = quantize(w, double=False)
    np.testing.assert_array_equal(unpacked(packed.codes), np.tile(np.arange(16), (2, 4)))
    np.testing.assert_array_equal(dequantize(packed), w)


def test_a_tie_goes_down_and_a_block_of_zeros_stays():
    w = np.zeros((2, 64), np.float32)
    w[0, 0], w[0, 1] = 1, (LEVELS[7] + LEVELS[8]) / np.float32(2)
    packed = quantize(w, double=False)
    assert unpacked(packed.codes)[0, 1] == 7
    np.testing.assert_array_equal(dequantize(packed)[1], np.zeros(64))


@settings(max_examples=5, deadline=None, derandomize=True)
@given(
    shape=st.sampled_from([(1, 64), (30, 192)]), seed=st.integers(0, 99), size=st.floats(1e-3, 1e3)
)
def test_the_error_is_bounded_by_half_the_widest_gap(shape, seed, size):
    w = weight(*shape, seed) * np.float32(size)
    packed = quantize(w, double=False)
    error = np.abs(np.asarray(dequantize(packed)) - w).reshape(shape[0], -1, 64)
    half = np.diff(LEVELS).max() / 2 * 1.0001
    assert (error <= half * np.asarray(packed.scales)[..., None]).all()
    double = np.asarray(whole_scales(quantize(w)))
    spread = np.abs(np.asarray(packed.scales) - np.asarray(packed.scales).mean()).max()
    assert np.abs(double - np.asarray(packed.scales)).max() <= 0.02 * spread + 1e-6 * size


CASES = {
    "whole tiles": ((256, 512), (64,)),
    "one token": ((128, 256), (1,)),
    "batch and length, many tiles": ((384, 1024), (2, 9)),
    "ragged": ((70, 192), (5,)),
}
"""Weight, leading shape of x; the last does not fit the TPU kernel."""


def product(name):
    if name != "pallas_tpu":
        return functools.partial(nf4_matmul, backend=name)

    def run(x, packed):
        flat = x.reshape(-1, x.shape[-1])
        return pallas_tpu.forward(flat, packed, interpret=True).reshape(*x.shape[:-1], -1)

    def pull(packed, dy):
        flat = dy.reshape(-1, dy.shape[-1])
        dx = pallas_tpu.backward(flat, packed, interpret=True)
        return dx.reshape(*dy.shape[:-1], -1), None

    differentiable = jax.custom_vjp(run)
    differentiable.defvjp(lambda x, packed: (run(x, packed), packed), pull)
    return differentiable


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", list(BACKENDS))
def test_product_and_gradient(name, case, double, monkeypatch):
    shape, leading = CASES[case]
    if name == "pallas_tpu" and case == "ragged":
        pytest.skip("not in whole tiles")
    monkeypatch.setattr(blockwise, "WEIGHTS", 16 * shape[1])
    packed = quantize(weight(*shape), double=double)
    rng = np.random.default_rng(1)
    x = rng.standard_normal((*leading, shape[1])).astype(np.float32)
    dy = rng.standard_normal((*leading, shape[0])).astype(np.float32)

    def both(x, dy):
        out, pull = jax.vjp(lambda x: product(name)(x, packed), x)
        return out, *pull(dy)

    out, dx = jax.jit(both)(x, dy)
    exact = np.asarray(dequantize(packed), np.float64)
    assert relative_error(out, x @ exact.T) < 2e-6
    assert relative_error(dx, dy @ exact) < 2e-6


@pytest.mark.parametrize("name", list(BACKENDS))
def test_bfloat16_rounds_the_weight_once(name):
    packed = quantize(weight(128, 256))
    x = jnp.asarray(np.random.default_rng(2).standard_normal((16, 256)), jnp.bfloat16)
    rounded = np.asarray(dequantize(packed).astype(jnp.bfloat16), np.float64)
    want = np.asarray(x, np.float64) @ rounded.T
    assert relative_error(product(name)(x, packed), want) < 5e-3


def test_no_whole_weight_is_dequantised():
    packed = jax.eval_shape(quantize, jax.ShapeDtypeStruct((4096, 4096), jnp.float32))
    x = jax.ShapeDtypeStruct((16, 4096), jnp.float32)

    def both(x, packed):
        return jax.value_and_grad(lambda x: nf4_matmul(x, packed, backend="blockwise").sum())(x)

    compiled = jax.jit(both).lower(x, packed).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * 4096 * 4096 * 0.8


def test_no_races_and_nothing_out_of_bounds():
    packed = quantize(weight(256, 512))
    x = np.random.default_rng(3).standard_normal((16, 512)).astype(np.float32)
    strict = pltpu.InterpretParams(detect_races=True, num_cores_or_threads=2)
    exact = np.asarray(dequantize(packed), np.float64)
    out = pallas_tpu.forward(x, packed, interpret=strict)
    assert relative_error(out, x @ exact.T) < 2e-6
    dx = pallas_tpu.backward(np.asarray(out), packed, interpret=strict)
    assert relative_error(dx, np.asarray(out, np.float64) @ exact) < 2e-6


MESH_CUTS = {
    "outputs over tensor, inputs over fsdp": PartitionSpec("tensor", "fsdp"),
    "outputs over fsdp, inputs over tensor": PartitionSpec("fsdp", "tensor"),
    "outputs over both": PartitionSpec(("fsdp", "tensor")),
    "whole": PartitionSpec(),
}


@pytest.mark.parametrize(
    ("cut", "rows"),
    [*((cut, 8) for cut in MESH_CUTS), ("outputs over fsdp, inputs over tensor", 3)],
)
def test_over_a_mesh_value_and_gradient_are_those_of_one_device(cut, rows):
    """Also of rows that the mesh does not divide; and packed parts travel, not weights."""
    cut = MESH_CUTS[cut]
    packed = quantize(weight(48, 512))
    rng = np.random.default_rng(4)
    x = rng.standard_normal((rows, 2, 512)).astype(np.float32)
    dy = rng.standard_normal((rows, 2, 48)).astype(np.float32)

    @functools.partial(jax.jit, static_argnums=3)
    def both(x, packed, dy, cut):
        y, pull = jax.vjp(lambda x: nf4_matmul(x, packed, cut=cut), x)
        return y, *pull(dy)

    want = both(x, packed, dy, PartitionSpec())
    mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        place = NamedSharding(mesh, cut)
        codes = jax.device_put(packed.codes, place)
        scales = dataclasses.replace(
            packed.scales, codes=jax.device_put(packed.scales.codes, place)
        )
        arguments = x, Nf4(codes, scales), dy, cut
        got = both(*arguments)
        text = both.lower(*arguments).compile().as_text()
    for a, b in zip(got, want, strict=True):
        assert relative_error(a, b) < 2e-6
    gathered = re.findall(r"= (\w+)\[([\d,]+)\]\S* all-gather\(", text)
    assert ("u8" in dict(gathered)) == (bool(cut) and rows == 8)
    for kind, shape in gathered:
        assert kind == "u8" or math.prod(map(int, shape.split(","))) <= 48 * 512 / 64, "scales"


def test_a_mesh_that_does_not_divide_the_weight_is_named():
    mesh = jax.make_mesh((8,), ("tensor",), axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh), pytest.raises(ValueError, match="cannot be cut into 8 parts"):
        nf4_matmul(jnp.ones((2, 128)), quantize(weight(4, 128)), cut=PartitionSpec("tensor"))


def test_bad_arguments_are_named():
    packed = quantize(weight(3, 128))
    with pytest.raises(ValueError, match="do not fit a weight"):
        quantize(weight(3, 65))
    with pytest.raises(ValueError, match="does not fit an NF4 weight"):
        nf4_matmul(jnp.ones((2, 64)), packed)
    with pytest.raises(ValueError, match="'fast' is unknown; choose auto"):
        nf4_matmul(jnp.ones((2, 128)), packed, backend="fast")
    with pytest.raises(ValueError, match="cannot run: the Pallas TPU kernel runs on TPU"):
        nf4_matmul(jnp.ones((2, 128)), packed, backend="pallas_tpu")


PROGRAM = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import topologies
from jgpt.kernels.nf4_matmul import nf4_matmul, quantize

topology = topologies.get_topology_desc(platform="tpu", topology_name=json.loads(sys.argv[1]))
place = jax.sharding.SingleDeviceSharding(topology.devices[0])
def put(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)

packed = jax.tree.map(put, jax.eval_shape(quantize, jax.ShapeDtypeStruct((512, 1024), jnp.float32)))
def both(x, packed):
    return jax.value_and_grad(lambda x: nf4_matmul(x, packed).astype(jnp.float32).sum())(x)
mesh = jax.sharding.Mesh(np.array(topology.devices[:1]), ("one",)).abstract_mesh
found = []
with jax.sharding.use_abstract_mesh(mesh):
    for dtype in (jnp.bfloat16, jnp.float32):
        x = put(jax.ShapeDtypeStruct((40, 1024), dtype))
        text = jax.jit(both).lower(x, packed).compile().as_text()
        found.append(text.count('custom_call_target="tpu_custom_call"'))
print(json.dumps(found))
"""


@pytest.mark.tpu_aot
@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_compiles_for_tpu(topology):
    pytest.importorskip("libtpu", reason="the TPU compiler: pip install libtpu")
    assert compiled(PROGRAM, topology) == [2, 2], "our kernels run"
