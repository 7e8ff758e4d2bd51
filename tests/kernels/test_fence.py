"""A fenced function is computed once on CPU, whoever reads it, and is otherwise the function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgpt.kernels.fence import fenced


def cosines(table, readers):
    """Cosines in the program of several readers of `table(x)`."""

    def read(x, y):
        made = table(x)[:, None, :]
        return [y * made + i for i in range(readers)]

    x, y = jnp.ones((16, 8)), jnp.ones((16, 4, 8))
    return jax.jit(read).lower(x, y).compile().as_text().count(" cosine(")


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="of XLA's CPU backend")
def test_readers_share_it():
    assert cosines(jnp.cos, 3) > 1  # what it is there for
    assert cosines(fenced(jnp.cos), 3) == 1


def test_value_and_gradient():
    x = jax.random.normal(jax.random.key(0), (5, 7))
    weights = jax.random.normal(jax.random.key(1), (5, 7))

    def loss(function, x):
        return (function(x) * weights).sum()

    for derive in (lambda f: f, jax.grad):
        found = jax.jit(derive(lambda x: loss(fenced(jnp.sin), x)))(x)
        np.testing.assert_allclose(found, derive(lambda x: loss(jnp.sin, x))(x), rtol=1e-6)
