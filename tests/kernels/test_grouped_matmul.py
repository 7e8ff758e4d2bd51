"""grouped_matmul: every backend against float64 sums, whatever the groups' sizes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgpt.kernels.grouped_matmul import (
    BACKENDS,
    blockwise,
    choose,
    grouped_gated,
    grouped_matmul,
    ragged,
    reference,
)
from jgpt.kernels.grouped_matmul.gated import ACTIVATIONS

NUM_ROWS = 100
GROUPS = {
    "even": [25, 25, 25, 25],
    "uneven": [3, 64, 1, 32],
    "one takes all": [0, 100, 0, 0],
    "empty first and last": [0, 43, 57, 0],
    "rows left over": [10, 0, 31, 7],
    "nobody": [0, 0, 0, 0],
}
ON_CPU = [n for n, backend in BACKENDS.items() if not backend.supports("cpu", None, None)]


def inputs(case, d=24, f=40):
    sizes = np.array(GROUPS[case], np.int32)
    rng = np.random.default_rng(len(case))
    x = rng.standard_normal((NUM_ROWS, d))
    w = rng.standard_normal((len(sizes), d, f))
    dy = rng.standard_normal((NUM_ROWS, f))
    return x, w, dy, sizes


def oracle(x, w, dy, sizes):
    """y, dx, dw in float64, one group after the other."""
    y, dx, dw = np.zeros_like(dy), np.zeros_like(x), np.zeros_like(w)
    start = 0
    for e, size in enumerate(sizes):
        rows = slice(start, start + size)
        y[rows] = x[rows] @ w[e]
        dx[rows] = dy[rows] @ w[e].T
        dw[e] = x[rows].T @ dy[rows]
        start += size
    return y, dx, dw


def relative_error(got, want):
    scale = np.abs(want).max() or 1.0
    return float(np.abs(np.asarray(got, np.float64) - want).max() / scale)


@functools.partial(jax.jit, static_argnames="backend")
def value_and_gradients(x, w, dy, sizes, backend="auto"):
    y, pull = jax.vjp(lambda x, w: grouped_matmul(x, w, sizes, backend=backend), x, w)
    return y, *pull(dy)


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("case", GROUPS)
def test_value_and_gradients_equal_float64_sums(case, backend):
    x, w, dy, sizes = inputs(case)
    arrays = [jnp.asarray(a, jnp.float32) for a in (x, w, dy)]
    results = value_and_gradients(*arrays, sizes, backend=backend)
    for got, want in zip(results, oracle(x, w, dy, sizes)):
        assert relative_error(got, want) < 1e-5


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gated_form_equals_autodiff_of_the_formula(activation, backend):
    """Rows left over give 0, and an empty group's gradients are 0."""
    x, w_gate, dh, sizes = inputs("rows left over")
    w_up = np.random.default_rng(1).standard_normal(w_gate.shape)
    x, w_gate, w_up, dh = (jnp.asarray(a, jnp.float32) for a in (x, w_gate, w_up, dh))
    sizes = jnp.asarray(sizes)
    act = {"silu": jax.nn.silu, "gelu": lambda a: jax.nn.gelu(a, approximate=False)}
    act = act.get(activation, jax.nn.gelu)

    def formula(x, w_gate, w_up):
        owned = reference.membership(sizes, len(x), x.dtype)
        gate, up = (jnp.einsum("nd,edf->enf", x, w, precision="highest") for w in (w_gate, w_up))
        return jnp.einsum("enf,en->nf", act(gate) * up, owned)

    def ours(x, w_gate, w_up):
        return grouped_gated(x, w_gate, w_up, sizes, activation=activation, backend=backend)

    (got, pull), (want, pull_want) = (jax.vjp(f, x, w_gate, w_up) for f in (ours, formula))
    for a, b in zip((got, *pull(dh)), (want, *pull_want(dh)), strict=True):
        assert relative_error(a, np.asarray(b)) < 1e-5


@pytest.mark.parametrize("case", ["uneven", "rows left over"])
def test_ragged_dot_gives_the_same(case):
    # Never chosen on CPU, but its expansion there has the meaning that TPU and GPU compute.
    x, w, dy, sizes = inputs(case)
    arrays = [jnp.asarray(a, jnp.float32) for a in (x, w, dy)] + [jnp.asarray(sizes)]
    y, dx, dw = oracle(x, w, dy, sizes)
    x, w, dy, sizes = arrays
    assert relative_error(ragged.matmul(x, w, sizes), y) < 1e-5
    assert relative_error(ragged.input_gradient(dy, w, sizes), dx) < 1e-5
    assert relative_error(ragged.weight_gradient(x, dy, sizes, x.dtype), dw) < 1e-5


def test_auto_never_takes_ragged_dot_on_cpu():
    x, w, _, sizes = inputs("even")
    assert choose("auto", x, w) == "blockwise"
    text = jax.jit(grouped_matmul).lower(*map(jnp.asarray, (x, w, sizes))).as_text()
    assert "ragged_dot" not in text
    with pytest.raises(ValueError, match="expands ragged_dot"):
        grouped_matmul(*map(jnp.asarray, (x, w, sizes)), backend="ragged")


@pytest.mark.parametrize(("num_rows", "num_groups"), [(4, 8), (7, 3), (700, 4), (300, 1)])
def test_blockwise_at_every_size_of_problem(num_rows, num_groups):
    """Row by row, one block size, several block sizes; groups of random sizes."""
    rng = np.random.default_rng(num_rows)
    x, w, dy = (
        rng.standard_normal(shape) for shape in ((num_rows, 16), (num_groups, 16, 8), (num_rows, 8))
    )
    arrays = [jnp.asarray(a, jnp.float32) for a in (x, w, dy)]
    for concentration in (0.2, 1.0, 50.0):
        shares = rng.dirichlet(np.full(num_groups, concentration))
        sizes = rng.multinomial(num_rows - num_rows // 10, shares).astype(np.int32)
        results = value_and_gradients(*arrays, sizes, backend="blockwise")
        for got, want in zip(results, oracle(x, w, dy, sizes)):
            assert relative_error(got, want) < 1e-5


def test_rows_and_products_are_about_as_many_as_needed():
    """Fewer rows than a smallest block per group are for nothing; large groups get large blocks."""
    rng = np.random.default_rng(3)
    for num_groups in (1, 8, 64):
        lengths = blockwise.block_sizes(4096, num_groups)

        def count(at, weights, totals):
            return totals + jnp.array([at.size, 1])

        sizes = jnp.asarray(rng.multinomial(4096, rng.dirichlet(np.full(num_groups, 2.0))))
        start = jnp.zeros(2, jnp.int32)
        rows, products = blockwise._over_blocks(4096, sizes, (), count, start)
        assert 4096 <= rows < 4096 + num_groups * lengths[0]
        assert products <= 4096 // lengths[-1] + num_groups * len(lengths)


def test_mixed_precision_sums_in_float32_and_keeps_the_weights_dtype():
    x, w, dy, sizes = inputs("uneven", d=64, f=48)
    x, w, dy = (jnp.asarray(a, jnp.bfloat16) for a in (x, w, dy))
    wants = oracle(*(np.asarray(a, np.float64) for a in (x, w, dy)), sizes)
    y, dx, dw = value_and_gradients(x, w.astype(jnp.float32), dy, sizes)
    assert (y.dtype, dx.dtype, dw.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    for got, want, tolerance in zip((y, dx, dw), wants, (5e-3, 5e-3, 1e-5)):
        assert relative_error(got, want) < tolerance


def test_wrong_shapes_and_names_are_named():
    x, w, _, sizes = map(jnp.asarray, inputs("even"))
    with pytest.raises(ValueError, match="group_sizes"):
        grouped_matmul(x, w, sizes[:2])
    with pytest.raises(ValueError, match="blockwise"):
        grouped_matmul(x, w, sizes, backend="fastest")
