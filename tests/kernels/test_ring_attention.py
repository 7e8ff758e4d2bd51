"""Ring attention against one device: values, gradients, and what is communicated."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jgpt.kernels.attention import attention_with_logsumexp, reference
from jgpt.kernels.attention.ring_schedule import zigzag_order
from jgpt.typing import AlibiBias, Mask, RelativeBias

AXES = ("data", "fsdp", "expert", "tensor", "context")
BATCH, LENGTH, HEADS, KV_HEADS, WIDTH = 2, 32, 4, 2, 8
ROWS = ("q_segment_ids", "kv_segment_ids")


def make_mesh(**sizes):
    sizes = {name: sizes.get(name, 1) for name in AXES}
    count = int(np.prod(list(sizes.values())))
    kinds = (AxisType.Auto,) * len(sizes)
    devices = jax.devices()[:count]
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=kinds, devices=devices)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def cases():
    """name -> (mask, options); built late, since arrays depend on x64."""
    ids = np.sort(np.random.default_rng(3).integers(1, 5, (BATCH, LENGTH)), axis=1)
    ids[:, -3:] = 0
    packed = dict.fromkeys(ROWS, jnp.asarray(ids, jnp.int32))
    sinks = {"sinks": normal(5, HEADS)}
    slopes = {"bias": AlibiBias(jnp.asarray([0.5, 0.25, 0.125, 0.0625]))}
    table = {"bias": RelativeBias(normal(6, 8, HEADS), max_distance=20)}
    prefix = jnp.asarray([3, 19])
    return {
        "causal": (Mask(), {}),
        "packed": (Mask(**packed), {}),
        "sinks": (Mask(), sinks),
        "softcap": (Mask(), {"softcap": 1.5}),
        "window": (Mask(window=6), {}),
        "window, packed, sinks": (Mask(window=9, **packed), sinks),
        "window both ways": (Mask(causal=False, window=5), {}),
        "bidirectional, packed": (Mask(causal=False, **packed), {}),
        "prefix": (Mask(prefix_lengths=prefix), {}),
        "prefix, packed, window": (Mask(window=7, prefix_lengths=prefix, **packed), {}),
        "block-sparse": (Mask(block_size=4, num_local_blocks=2, num_global_blocks=1), {}),
        "alibi": (Mask(), slopes),
        "alibi, packed, sinks, softcap": (Mask(**packed), {**slopes, **sinks, "softcap": 2.0}),
        "relative": (Mask(), table),
    }


def inputs():
    return {
        "q": normal(0, BATCH, LENGTH, HEADS, WIDTH),
        "k": normal(1, BATCH, LENGTH, KV_HEADS, WIDTH),
        "v": normal(2, BATCH, LENGTH, KV_HEADS, WIDTH),
        "scale": jnp.asarray(0.4),
    }


def value_and_gradients(function, smooth, mask, softcap):
    def weighted(smooth):
        q, k, v = (smooth.pop(n) for n in "qkv")
        out, logsumexp = function(q, k, v, mask, softcap=softcap, **smooth)
        seen = jnp.isfinite(logsumexp)
        total = (out * weights).sum() + (jnp.where(seen, logsumexp, 0) * weights[..., 0]).sum()
        return total, (out, logsumexp)

    weights = normal(9, *smooth["q"].shape)
    (_, outs), gradients = jax.value_and_grad(lambda s: weighted(dict(s)), has_aux=True)(smooth)
    return outs, gradients


def on_ring(jit, mesh, smooth, mask, softcap=0.0, zigzag=True):
    """The ring's value and gradients, tokens back in the row's order; and its program."""
    devices = mesh.shape["context"]
    order = zigzag_order(LENGTH, devices) if zigzag else np.arange(LENGTH)
    rows = {n: getattr(mask, n) for n in ROWS}
    mask = dataclasses.replace(
        mask,
        zigzag=devices if zigzag else 0,
        **{n: None if x is None else x[:, order] for n, x in rows.items()},
    )
    tokens = NamedSharding(mesh, PartitionSpec(("data", "fsdp", "expert"), "context", "tensor"))
    whole = NamedSharding(mesh, PartitionSpec())
    placed = {
        n: jax.device_put(x[:, order], tokens) if n in ("q", "k", "v") else jax.device_put(x, whole)
        for n, x in smooth.items()
    }
    back = np.argsort(order)

    def run(smooth):
        def function(q, k, v, mask, **options):
            found = attention_with_logsumexp(q, k, v, mask, backend="ring", **options)
            return tuple(x[:, back] for x in found)

        return value_and_gradients(function, smooth, mask, softcap)

    with jax.set_mesh(mesh):
        compiled = jit(run).lower(placed).compile()
        outs, gradients = jax.tree.map(np.asarray, compiled(placed))
    gradients = {n: g[:, back] if n in ("q", "k", "v") else g for n, g in gradients.items()}
    return (outs, gradients), compiled.as_text()


def worst(got, want):
    """The largest error relative to the largest entry of each array."""

    def error(got, want):
        got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
        seen = np.isfinite(want)
        if (np.isfinite(got) != seen).any():
            return np.inf
        got, want = got[seen], want[seen]
        return float(abs(got - want).max() / max(abs(want).max(), 1e-9))

    return max(jax.tree.leaves(jax.tree.map(error, got, want)))


def compare(jit, name, mesh, zigzag=True):
    mask, options = cases()[name]
    options = dict(options)
    softcap = options.pop("softcap", 0.0)
    smooth = inputs() | options
    plain = reference.attention_with_logsumexp
    want = jit(lambda smooth: value_and_gradients(plain, smooth, mask, softcap))(smooth)
    got, text = on_ring(jit, mesh, smooth, mask, softcap, zigzag)
    return worst(got, want), text


@pytest.mark.parametrize("name", cases())
def test_equals_one_device(name, x64, quick_jit):
    error, _ = compare(quick_jit, name, make_mesh(context=4))
    assert error < 1e-12
