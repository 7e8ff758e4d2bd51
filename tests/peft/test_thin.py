"""Products with a thin matrix: their gradients, and no transposed copy of the input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgpt.kernels.matmul import matmul
from jgpt.peft.thin import thin_matmul

SHAPES = {"thin": (96, 8), "wide": (8, 96), "square": (24, 24)}


def inputs(shape, dtype):
    keys = jax.random.split(jax.random.key(0), 3)
    sizes = (2, 40, shape[0]), shape, (2, 40, shape[1])
    return [jax.random.normal(k, s).astype(dtype) for k, s in zip(keys, sizes)]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 1e-2)])
def test_value_and_gradients(shape, dtype, tolerance):
    x, w, dy = inputs(shape, dtype)
    y, back = jax.vjp(thin_matmul, x, w.astype(jnp.float32))
    dx, dw = back(dy)
    x, w, dy = (np.asarray(a, np.float64) for a in (x, w, dy))
    expected = x @ w, dy @ w.T, np.einsum("bsd,bsf->df", x, dy)
    for found, right in zip((y, dx, dw), expected):
        error = np.linalg.norm(np.asarray(found, np.float64) - right) / np.linalg.norm(right)
        assert error < tolerance
    assert (y.dtype, dx.dtype, dw.dtype) == (dtype, dtype, jnp.float32)


def copies_of_the_input(product, dtype):
    """Transposed copies of x [tokens, in] in the compiled gradient of a thin w."""
    x, w, dy = inputs(SHAPES["thin"], dtype)
    gradient = jax.jit(lambda x, w, dy: jax.vjp(product, x, w)[1](dy)[1])
    return gradient.lower(x, w, dy).compile().as_text().count("[96,80]")


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="of XLA's CPU backend")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_input_is_not_copied(dtype):
    assert copies_of_the_input(matmul, dtype) > 0  # it would be found
    assert copies_of_the_input(thin_matmul, dtype) == 0
