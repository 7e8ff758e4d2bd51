"""matmul: value and both gradients, dtypes, shapes, and a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jgpt.kernels.matmul import matmul


def inputs(*rows, dtype="float32"):
    rng = np.random.default_rng(len(rows))
    x, w = rng.standard_normal((*rows, 24)), rng.standard_normal((24, 40))
    return jnp.asarray(x, dtype), jnp.asarray(w, "float32"), rng.standard_normal((*rows, 40))


def value_and_gradients(x, w, dy, **options):
    @jax.jit
    def run(x, w):
        out, pull = jax.vjp(lambda x, w: matmul(x, w, **options), x, w)
        return out, *pull(dy.astype(out.dtype))

    return run(x, w)


def oracle(x, w, dy):
    x, w, dy = (np.asarray(a, np.float64) for a in (x, w, dy))
    rows = x.reshape(-1, x.shape[-1])
    return x @ w, dy @ w.T, rows.T @ dy.reshape(-1, dy.shape[-1])


def errors(got, want):
    return [np.abs(np.float64(g) - w).max() / np.abs(w).max() for g, w in zip(got, want)]


@pytest.mark.parametrize("rows", [(), (7,), (3, 5), (2, 3, 4)])
@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-6), ("bfloat16", 1e-2)])
def test_value_and_gradients(rows, dtype, tolerance):
    x, w, dy = inputs(*rows, dtype=dtype)
    got = value_and_gradients(x, w, dy)
    assert [g.dtype for g in got] == [dtype, dtype, "float32"]
    assert max(errors(got, oracle(x, w, dy))) < tolerance


def test_sums_are_float32_whatever_the_inputs():
    """A thousand ones and a thousand tiny ones: bfloat16 sums would lose the tiny ones."""
    x = jnp.concatenate([jnp.ones((1, 1000)), jnp.full((1, 1000), 1 / 512)], 1)
    w = jnp.ones((2000, 1))
    out = matmul(x.astype("bfloat16"), w, out_dtype="float32")
    assert out.dtype == "float32"
    np.testing.assert_allclose(out, 1000 + 1000 / 512)
    # and so are those of the weight gradient, which comes back in float32
    dw = jax.grad(lambda w: matmul(x.T.astype("bfloat16"), w, out_dtype="float32").sum())
    np.testing.assert_allclose(dw(jnp.ones((1, 1))), 1000 + 1000 / 512)


def test_batched_by_vmap():
    x, w, dy = inputs(4, 6)
    batched = jax.vmap(lambda x: jax.grad(lambda w: matmul(x, w).sum())(w))(x)
    want = np.einsum("brd,brf->bdf", np.asarray(x), np.ones_like(dy))
    np.testing.assert_allclose(batched, want, rtol=1e-5)


def test_a_sharded_batch_is_never_gathered():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    x, w, dy = inputs(16, 6)
    with jax.set_mesh(mesh):
        x = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
        dy = jax.device_put(jnp.asarray(dy, "float32"), x.sharding)
        run = jax.jit(lambda x, w, dy: jax.vjp(matmul, x, w)[1](dy))
        text = run.lower(x, w, dy).compile().as_text()
        dx, dw = run(x, w, dy)
    assert "all-gather" not in text
    assert max(errors((dx, dw), oracle(x, w, dy)[1:])) < 1e-6


def test_lowers_for_tpu_without_layouts():
    x, w, dy = inputs(16)
    traced = jax.jit(jax.grad(lambda x, w: (matmul(x, w) * dy).sum(), (0, 1))).trace(x, w)
    assert "LayoutConstraint" not in traced.lower(lowering_platforms=("tpu",)).as_text()


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"\(3, 4\) and \(5, 6\)"):
        matmul(jnp.ones((3, 4)), jnp.ones((5, 6)))
