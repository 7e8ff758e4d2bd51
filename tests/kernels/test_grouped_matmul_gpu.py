"""The GPU kernels of the grouped product: against float64 sums, and lowered for CUDA."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from jgpt.kernels.grouped_matmul import gated, pallas_gpu, pallas_gpu_kernels
from jgpt.kernels.grouped_matmul.pallas_gpu_kernels import Tile, row_tiles
from tests.kernels.test_grouped_matmul import GROUPS, inputs, oracle, relative_error

SMALL = Tile(16, 16, 8, 4, 1)
PRODUCTS = ("y", "dx", "dw")
NUM_ROWS_OF_TILES = 353


@pytest.fixture
def small_tiles(monkeypatch):
    """Several tiles along every axis of the small problems, the last ones ragged."""
    monkeypatch.setattr(pallas_gpu, "choose_tile", lambda *_, **__: SMALL)
    monkeypatch.setattr(pallas_gpu, "_transposed_tile", lambda *_: SMALL)
    monkeypatch.setattr(pallas_gpu_kernels, "BAND", 2)


@functools.partial(jax.jit, static_argnames="dtype")
def three_products(x, w, dy, sizes, dtype="float32"):
    return (
        pallas_gpu.matmul(x, w, sizes, interpret=True),
        pallas_gpu.input_gradient(dy, w, sizes, interpret=True),
        pallas_gpu.weight_gradient(x, dy, sizes, dtype, interpret=True),
    )


def arrays_of(dtype, *arrays):
    return [jnp.asarray(a, dtype) for a in arrays]


@pytest.mark.parametrize("case", GROUPS)
def test_products_equal_float64_sums(case, small_tiles):
    """24 is a multiple of no tile's columns, 40 of no tile's depth in the weight gradient."""
    jax.clear_caches()
    x, w, dy, sizes = inputs(case)
    got = three_products(*arrays_of("float32", x, w, dy), sizes)
    for name, result, want in zip(PRODUCTS, got, oracle(x, w, dy, sizes)):
        assert relative_error(result, want) < 1e-5, name


@pytest.mark.parametrize("dtype, tolerance", [("float16", 1e-3), ("bfloat16", 8e-3)])
def test_low_precision_sums_in_float32_with_default_tiles(dtype, tolerance):
    rng = np.random.default_rng(3)
    sizes = np.array([70, 0, 130, 25], np.int32)
    x, w, dy = (
        np.asarray(jnp.asarray(rng.standard_normal(shape), dtype), np.float64)
        for shape in ((240, 72), (4, 72, 56), (240, 56))
    )
    y, dx, dw = three_products(*arrays_of(dtype, x, w, dy), sizes)
    assert (y.dtype, dx.dtype, dw.dtype) == (dtype, dtype, jnp.float32)
    for result, want in zip((y, dx), oracle(x, w, dy, sizes)):
        assert relative_error(result, want) < tolerance
    assert relative_error(dw, oracle(x, w, dy, sizes)[2]) < 1e-5


def gated_oracle(x, w_gate, w_up, dh, sizes, activation):
    """h and gradients in float64, the forward pass of each group spelled out."""

    def spelled_out(x, w_gate, w_up):
        parts, start = [], 0
        for e, size in enumerate(sizes):
            rows = x[start : start + size]
            value = gated.ACTIVATIONS[activation](rows @ w_gate[e])
            parts.append(value * (rows @ w_up[e]))
            start += size
        parts.append(jnp.zeros((len(x) - start, w_gate.shape[2])))
        return jnp.concatenate(parts)

    with jax.enable_x64(True):
        h, pull = jax.vjp(spelled_out, *arrays_of("float64", x, w_gate, w_up))
        return [np.asarray(a) for a in (h, *pull(jnp.asarray(dh, "float64")))]


@pytest.mark.parametrize("activation", gated.ACTIVATIONS)
@pytest.mark.parametrize("case", ["uneven", "rows left over"])
def test_the_gated_form_and_its_gradients_equal_float64_sums(case, activation, small_tiles):
    x, w_gate, dh, sizes = inputs(case)
    w_up = np.random.default_rng(8).standard_normal(w_gate.shape)
    x, w_gate, w_up = x / 4, w_gate / 2, w_up / 2
    wants = gated_oracle(x, w_gate, w_up, dh, sizes, activation)

    @jax.jit
    def run(x, w_gate, w_up, dh):
        fused = functools.partial(pallas_gpu.gated_forward, interpret=True)
        h, gate, up = fused(x, w_gate, w_up, sizes, activation)
        alone = pallas_gpu.gated(x, w_gate, w_up, sizes, activation, interpret=True)
        gradients = pallas_gpu.gated_backward(
            x, w_gate, w_up, sizes, gate, up, dh, activation, interpret=True
        )
        return h, alone, gradients

    h, alone, gradients = run(*arrays_of("float32", x, w_gate, w_up, dh))
    assert (h == alone).all()
    for result, want in zip((h, *gradients), wants):
        assert relative_error(result, want) < 1e-5


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=(HealthCheck.function_scoped_fixture,),
)
@given(
    sizes=st.lists(st.integers(0, 70), min_size=5, max_size=5),
    height=st.sampled_from([16, 64]),
)
def test_tiles_hold_every_row_once_and_no_two_groups(sizes, height):
    """Rows of a group are cut from its first on; what is left over is in group E."""
    rest = NUM_ROWS_OF_TILES - sum(sizes)
    owner = np.repeat(np.arange(len(sizes) + 1), [*sizes, rest])
    seen = np.zeros(NUM_ROWS_OF_TILES, int)
    make = jax.jit(row_tiles, static_argnums=(1, 2))
    tiles = np.asarray(make(jnp.asarray(sizes, jnp.int32), NUM_ROWS_OF_TILES, height))
    for group, first, end in tiles:
        rows = slice(first, max(first, min(first + height, end)))
        assert (owner[rows] == group).all()
        seen[rows] += 1
    assert (seen == 1).all()
    used = (tiles[:, 1] < tiles[:, 2]).sum()
    assert used == sum(-(-size // height) for size in [*sizes, rest])


def test_reasons_are_given(monkeypatch):
    x, w = jnp.ones((8, 4), jnp.bfloat16), jnp.ones((2, 4, 4))
    assert "runs on NVIDIA GPUs" in pallas_gpu.supports("cpu", x, w)
    assert "runs on NVIDIA GPUs" in pallas_gpu.supports("tpu", x, w)
    assert "not cpu" in pallas_gpu.supports("gpu", x, w)
    monkeypatch.setattr(pallas_gpu, "device_kind", lambda: "NVIDIA L4")
    assert pallas_gpu.supports("gpu", x, w) == pallas_gpu.supports("cuda", x, w) == ""
    assert "not float64" in pallas_gpu.supports("gpu", np.ones((8, 4)), w)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_products_lower_for_cuda(dtype, for_an_h100):
    """Without a GPU or its plugin: every kernel becomes a Triton program."""

    def run(x, w_gate, w_up, dh, sizes):
        h, gate, up = pallas_gpu.gated_forward(x, w_gate, w_up, sizes, "silu")
        gradients = pallas_gpu.gated_backward(x, w_gate, w_up, sizes, gate, up, dh, "silu")
        y = pallas_gpu.matmul(x, w_gate, sizes)
        return h, gradients, pallas_gpu.input_gradient(y, w_gate, sizes)

    x, w, y = (jax.ShapeDtypeStruct(s, dtype) for s in ((300, 72), (4, 72, 80), (300, 80)))
    sizes = jax.ShapeDtypeStruct((4,), jnp.int32)
    lowered = jax.jit(run).trace(x, w, w, y, sizes).lower(lowering_platforms=("cuda",))
    text = lowered.as_text()
    assert text.count("gpu.triton") + text.count("triton_kernel_call") == 6
