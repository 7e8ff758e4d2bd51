"""grouped_matmul: every backend against float64 sums, whatever the groups' sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgpt.kernels.grouped_matmul import BACKENDS, blockwise, choose, grouped_matmul, ragged

GROUPS = {
    "even": [25, 25, 25, 25],
    "uneven": [3, 64, 1, 29],
    "one takes all": [0, 97, 0, 0],
    "empty first and last": [0, 40, 57, 0],
    "rows left over": [10, 0, 31, 7],
    "nobody": [0, 0, 0, 0],
}
ROWS = {"even": 100, "rows left over": 64, "nobody": 20}
ON_CPU = [name for name, backend in BACKENDS.items() if not backend.supports("cpu")]


def inputs(case, d=24, f=40, seed=0):
    sizes = np.array(GROUPS[case], np.int32)
    rng = np.random.default_rng([seed, len(case)])
    n = ROWS.get(case, int(sizes.sum()))
    x = rng.standard_normal((n, d))
    w = rng.standard_normal((len(sizes), d, f))
    dy = rng.standard_normal((n, f))
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


def run(x, w, dy, sizes, dtype, weight_dtype=None, backend="auto"):
    x, dy = jnp.asarray(x, dtype), jnp.asarray(dy, dtype)
    w = jnp.asarray(w, weight_dtype or dtype)

    @jax.jit
    def value_and_gradients(x, w, dy, sizes):
        y, pull = jax.vjp(lambda x, w: grouped_matmul(x, w, sizes, backend=backend), x, w)
        return y, *pull(dy)

    return value_and_gradients(x, w, dy, jnp.asarray(sizes))


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("case", GROUPS)
def test_value_and_gradients_equal_float64_sums(case, backend):
    arrays = inputs(case)
    for got, want in zip(run(*arrays, jnp.float32, backend=backend), oracle(*arrays)):
        assert relative_error(got, want) < 1e-5


@pytest.mark.parametrize("case", ["uneven", "rows left over"])
def test_ragged_dot_gives_the_same(case):
    # Never chosen on CPU, but its expansion there has the meaning that TPU and GPU compute.
    x, w, dy, sizes = inputs(case)
    arrays = [jnp.asarray(a, jnp.float32) for a in (x, w, dy)] + [jnp.asarray(sizes)]
    y, dx, dw = oracle(x, w, dy, sizes)
    x, w, dy, sizes = arrays
    assert relative_error(ragged.matmul(x, w, sizes), y) < 1e-5
    assert relative_error(ragged.input_gradient(dy, w, sizes), dx) < 1e-5
    assert relative_error(ragged.weight_gradient(x, dy, sizes), dw) < 1e-5


def test_auto_never_takes_ragged_dot_on_cpu():
    assert choose("cpu") == "blockwise"
    assert choose("tpu") == "ragged"
    assert choose("cuda") == "ragged"
    x, w, _, sizes = inputs("even")
    text = jax.jit(grouped_matmul).lower(*map(jnp.asarray, (x, w, sizes))).as_text()
    assert "ragged_dot" not in text
    with pytest.raises(ValueError, match="expands ragged_dot"):
        grouped_matmul(*map(jnp.asarray, (x, w, sizes)), backend="ragged")


@pytest.mark.parametrize("seed", range(6))
def test_blocks_cover_every_row_and_mend_what_they_spill(seed):
    """Runs the block schedule on row numbers: whoever writes a row last must own it."""
    rng = np.random.default_rng(seed)
    groups = int(rng.integers(1, 12))
    sizes = rng.multinomial(int(rng.integers(0, 700)), rng.dirichlet(np.full(groups, 0.4)))
    total = int(sizes.sum())
    lengths = blockwise.block_sizes(max(total, 1), groups)
    writer = np.full(total + lengths[0], -1)
    for blocks in blockwise.cut(jnp.asarray(sizes, jnp.int32), lengths):
        for index in range(int(blocks.count)):
            group, row, _ = (int(a) for a in blocks.locate(jnp.asarray(index)))
            writer[row : row + blocks.size] = group
    np.testing.assert_array_equal(writer[:total], np.repeat(np.arange(groups), sizes))


def test_mixed_precision_sums_in_float32_and_keeps_the_weights_dtype():
    x, w, dy, sizes = inputs("uneven", d=64, f=48)
    rounded = [np.asarray(jnp.asarray(a, jnp.bfloat16), np.float64) for a in (x, w, dy)]
    wants = oracle(*rounded, sizes)
    y, dx, dw = run(x, w, dy, sizes, jnp.bfloat16, weight_dtype=jnp.float32)
    assert (y.dtype, dx.dtype, dw.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    for got, want, tolerance in zip((y, dx, dw), wants, (5e-3, 5e-3, 1e-5)):
        assert relative_error(got, want) < tolerance


def test_wrong_shapes_and_names_are_named():
    x, w, _, sizes = map(jnp.asarray, inputs("even"))
    with pytest.raises(ValueError, match="group_sizes"):
        grouped_matmul(x, w, sizes[:2])
    with pytest.raises(ValueError, match="blockwise"):
        grouped_matmul(x, w, sizes, backend="fastest")
