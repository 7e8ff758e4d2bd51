"""int8 weights: the format against bitsandbytes, the product against float64, the common form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jgpt.kernels import quantized
from jgpt.kernels.int8_matmul import BACKENDS, dequantize, int8_matmul, quantize
from jgpt.kernels.weight_mesh import UNCUT
from tests.kernels.test_nf4_matmul import relative_error, weight


def test_codes_are_the_nearest_and_a_row_of_zeros_stays():
    w = weight(6, 40)
    w[2] = 0
    packed = quantize(w)
    largest = np.abs(w).max(1, keepdims=True)
    np.testing.assert_array_equal(packed.scales, largest)
    assert (np.abs(packed.codes).max(1) == np.where(largest[:, 0] > 0, 127, 0)).all()
    assert (np.abs(dequantize(packed) - w) <= largest / 254 * 1.0001).all()


@pytest.mark.parity
def test_the_format_equals_bitsandbytes():
    torch = pytest.importorskip("torch", reason="bitsandbytes computes with it")
    theirs = pytest.importorskip("bitsandbytes.functional", reason="pip install bitsandbytes")
    w = weight(33, 100)
    codes, scales, _ = theirs.int8_vectorwise_quant(torch.from_numpy(w).half())
    ours = quantize(w.astype(np.float16))
    np.testing.assert_array_equal(ours.codes, codes.numpy())
    np.testing.assert_array_equal(ours.scales[:, 0], scales.numpy())


@functools.partial(jax.jit, static_argnames=("backend", "cut"))
def both(x, packed, dy, backend="auto", cut=UNCUT):
    """The product, and x's gradient."""
    y, pull = jax.vjp(lambda x: quantized.matmul(x, packed, backend=backend, cut=cut), x)
    return y, *pull(dy)


def inputs(dtype="float32"):
    rng = np.random.default_rng(7)
    return (jnp.asarray(rng.standard_normal((8, 3, n)), dtype) for n in (128, 48))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("bfloat16", 1e-2)])
def test_product_and_gradient_equal_float64(backend, dtype, tolerance):
    x, dy = inputs(dtype)
    packed = quantize(weight(48, 128))
    exact = np.asarray(dequantize(packed), np.float64)
    y, dx = both(x, packed, dy, backend)
    assert y.dtype == dx.dtype == dtype
    assert relative_error(y, np.asarray(x, np.float64) @ exact.T) < tolerance
    assert relative_error(dx, np.asarray(dy, np.float64) @ exact) < tolerance


@pytest.mark.parametrize("cut", [("tensor", "fsdp"), ("fsdp", "tensor")])
def test_over_a_mesh_it_is_the_same(cut):
    x, dy = inputs()
    packed, cut = quantize(weight(48, 128)), PartitionSpec(*cut)
    want = both(x, packed, dy)
    mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        placed = jax.device_put(
            packed,
            type(packed)(
                codes=NamedSharding(mesh, cut), scales=NamedSharding(mesh, PartitionSpec(cut[0]))
            ),
        )
        got = both(x, placed, dy, cut=cut)
    for a, b in zip(got, want, strict=True):
        assert relative_error(a, b) < 2e-6


@pytest.mark.parametrize("kind", quantized.KINDS)
def test_every_kind_multiplies_what_it_dequantises_and_freezes_it(kind):
    x, dy = inputs()
    w = weight(48, 128)
    packed = quantized.quantize(w, kind)
    restored = np.asarray(quantized.dequantize(packed), np.float64)
    assert relative_error(restored, w) < (0.01 if kind == "int8" else 0.2)
    y, dx = both(x, packed, dy)
    assert relative_error(y, np.asarray(x, np.float64) @ restored.T) < 2e-6
    assert relative_error(dx, np.asarray(dy, np.float64) @ restored) < 2e-6


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="'fp3' are unknown; choose nf4"):
        quantized.quantize(weight(3, 64), "fp3")
    with pytest.raises(ValueError, match="takes a weight"):
        quantize(jnp.ones(3))
    packed = quantize(weight(3, 64))
    with pytest.raises(ValueError, match="does not fit an int8 weight"):
        int8_matmul(jnp.ones((2, 3)), packed)
    with pytest.raises(ValueError, match="'fast' is unknown; choose auto"):
        int8_matmul(jnp.ones((2, 64)), packed, backend="fast")
