"""Ring attention against one device: values, gradients, and what is communicated."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jgpt.kernels import attention as attention_package
from jgpt.kernels.attention import (
    attention,
    attention_with_logsumexp,
    blockwise,
    pallas_tpu,
    reference,
    ring,
)
from jgpt.kernels.attention.ring_schedule import make_ring, zigzag_order
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
    tokens = NamedSharding(mesh, PartitionSpec(("data", "fsdp", "expert"), "context"))
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


@pytest.mark.parametrize(
    "sizes", [{"context": 8}, {"context": 2, "data": 2, "tensor": 2}, {"context": 2, "tensor": 4}]
)
def test_every_mesh(sizes, x64, quick_jit):
    """The last one has more devices than key/value heads along `tensor`."""
    error, _ = compare(quick_jit, "window, packed, sinks", make_mesh(**sizes))
    assert error < 1e-12


def test_the_rows_own_order(x64, quick_jit):
    error, _ = compare(quick_jit, "packed", make_mesh(context=4), zigzag=False)
    assert error < 1e-12


def test_parts_of_many_blocks(x64, quick_jit, monkeypatch):
    """Chunks long enough for the blockwise backend, which has a gradient for parts of its own."""
    monkeypatch.setattr(attention_package, "SHORT_QUERY", 3)
    error, _ = compare(quick_jit, "alibi, packed, sinks, softcap", make_mesh(context=2))
    assert error < 1e-12


def test_bfloat16_is_as_near_as_on_one_device(quick_jit):
    half = {n: x.astype(jnp.bfloat16) for n, x in inputs().items() if n != "scale"}
    smooth = half | {"scale": jnp.asarray(0.4, jnp.float32)}
    exact = {n: x.astype(jnp.float32) for n, x in smooth.items()}
    plain = reference.attention_with_logsumexp
    want = quick_jit(lambda x: value_and_gradients(plain, x, Mask(), 0.0))(exact)
    got, _ = on_ring(quick_jit, make_mesh(context=4), smooth, Mask())
    assert worst(got, want) < 2e-2


def planted(monkeypatch, error):
    """Plants `error` in the ring."""
    if error == "masks are one token off":
        stack = ring._Pairs._mask

        def shifted(self, *arguments):
            mask = stack(self, *arguments)
            if mask.q_positions is None:
                return mask
            return dataclasses.replace(mask, q_positions=mask.q_positions + 1)

        monkeypatch.setattr(ring._Pairs, "_mask", shifted)
    elif error == "a sink in every part":
        attend = ring.Static.__init__

        def with_sinks(self, ring, mask, softcap, one):
            def doubled(*arrays, **options):
                return one(*arrays, sinks=jnp.ones(HEADS), **options)

            attend(self, ring, mask, softcap, doubled)

        monkeypatch.setattr(ring.Static, "__init__", with_sinks)
    elif error == "a step is left out":
        make = ring.make_ring

        def shorter(*arguments):
            made = make(*arguments)
            return dataclasses.replace(made, steps=(*made.steps[:1], *made.steps[2:]))

        monkeypatch.setattr(ring, "make_ring", shorter)
    elif error == "gradients do not come home":
        make = ring.make_ring
        monkeypatch.setattr(ring, "make_ring", lambda *a: dataclasses.replace(make(*a), last=0))
    elif error == "ids stay where they are":
        rotate = ring._rotate

        def without_ids(tree, hop, devices):
            if isinstance(tree, tuple) and len(tree) == 3:
                return (*rotate(tree[:2], hop, devices), tree[2])
            return rotate(tree, hop, devices)

        monkeypatch.setattr(ring, "_rotate", without_ids)


@pytest.mark.parametrize(
    "error",
    [
        "masks are one token off",
        "a sink in every part",
        "a step is left out",
        "gradients do not come home",
        "ids stay where they are",
    ],
)
def test_planted_errors_are_seen(error, x64, quick_jit, monkeypatch):
    planted(monkeypatch, error)
    found, _ = compare(quick_jit, "window, packed, sinks", make_mesh(context=4))
    assert found > 1e-3


def test_only_neighbours_talk_and_nothing_is_gathered(quick_jit):
    mesh = make_mesh(context=4)
    x = {n: x.astype(jnp.float32) for n, x in inputs().items()}
    tokens = NamedSharding(mesh, PartitionSpec(None, "context"))

    def loss(q, k, v):
        return (attention(q, k, v, Mask(zigzag=4), scale=0.4) ** 2).sum()

    with jax.set_mesh(mesh):
        arrays = [jax.device_put(x[n], tokens) for n in "qkv"]
        text = quick_jit(jax.grad(loss, (0, 1, 2))).lower(*arrays).compile().as_text()
    assert "collective-permute" in text
    assert "all-gather" not in text
    assert "all-to-all" not in text


def work(ring):
    """[steps, devices]: pairs of a query and a key that each device computes."""
    pairs = {"full": 1, "mixed": 1, "diagonal": 0.5}
    return np.array(
        [sum(pairs[c.kind] * c.table[:, :, 4].sum(1) for c in step.calls) for step in ring.steps]
    )


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_in_zigzag_order_every_device_has_the_same_work_at_every_step(devices):
    causal = make_ring(Mask(), False, False, devices, True, 32 * devices)
    assert np.ptp(work(causal), axis=1).max() == 0
    # a 2n-th of the row squared, times the 2n (2n + 1) / 2 pairs below and on the diagonal
    assert work(causal).sum() == pytest.approx(devices * (2 * devices + 1) - devices)
    natural = make_ring(Mask(), False, False, devices, False, 32 * devices)
    assert np.ptp(work(natural), axis=1).max() == 1


@pytest.mark.parametrize("zigzag", [False, True])
def test_steps_outside_the_window_are_left_out(zigzag):
    made = make_ring(Mask(window=16), False, False, 8, zigzag, 32 * 16)
    assert len(made.steps) == (3 if zigzag else 2)
    assert len(make_ring(Mask(window=1), False, False, 8, zigzag, 512).steps) == 1


def test_what_a_ring_cannot_do_is_said():
    q = jnp.zeros((2, 32, 4, 8))
    k = q[:, :, :2]
    positions = Mask(q_positions=jnp.zeros((2, 32), jnp.int32))
    assert "mesh.context is 1" in ring.supports(q, k, k, Mask())
    with jax.set_mesh(make_mesh(context=4)):
        assert ring.supports(q, k, k, Mask()) == ""
        assert "dropout" in ring.supports(q, k, k, Mask(), dropout=0.1)
        assert "cache" in ring.supports(q, k, k, positions)
        assert "30 tokens cannot be cut into 4" in ring.supports(q[:, :30], k[:, :30], k, Mask())
        assert "for 8 devices, not for 4" in ring.supports(q, k, k, Mask(zigzag=8))
        with pytest.raises(ValueError, match="dropout"):
            attention(
                q,
                k,
                k,
                Mask(),
                scale=1.0,
                backend="ring",
                dropout=0.1,
                dropout_key=jax.random.key(0),
            )


def test_tokens_in_zigzag_order_are_understood_without_a_ring(x64, quick_jit):
    """Dropout is a reason to do without: then indices are handed over."""
    x = inputs()
    order = zigzag_order(LENGTH, 4)
    plain = functools.partial(reference.attention, mask=Mask(window=5), scale=0.4)
    want = quick_jit(plain)(x["q"], x["k"], x["v"])
    arrays = [x[n][:, order] for n in ("q", "k", "v")]
    zigzag = functools.partial(attention, mask=Mask(window=5, zigzag=4), scale=0.4)
    got = quick_jit(zigzag)(*arrays)
    np.testing.assert_allclose(got, want[:, order], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("backend", ["blockwise", "pallas_tpu", "reference"])
def test_a_part_of_a_known_whole_has_its_share_of_the_gradients(backend, quick_jit):
    """Shares of two halves of the keys sum to the gradients of the whole."""
    x = {n: a.astype(jnp.float32) for n, a in inputs().items()}
    half = LENGTH // 2
    weights = normal(9, *x["q"].shape).astype(jnp.float32)
    functions = {
        "blockwise": blockwise.attention_with_logsumexp,
        "pallas_tpu": functools.partial(pallas_tpu.attention_with_logsumexp, interpret=True),
        "reference": functools.partial(attention_with_logsumexp, backend="reference"),
    }

    def mask(keys):
        row = jnp.broadcast_to(jnp.arange(LENGTH, dtype=jnp.int32), (BATCH, LENGTH))
        return Mask(q_positions=row - 2, kv_positions=row[:, keys])

    def value(function, keys, q, k, v, scale, **options):
        found = function(q, k[:, keys], v[:, keys], mask(keys), scale=scale, softcap=2.0, **options)
        return (found[0] * weights).sum() + jnp.where(found[1] < -1e9, 0, found[1]).sum(), found

    def gradients(function, keys, **options):
        of = jax.grad(lambda x: value(function, keys, **x, **options), has_aux=True)
        return quick_jit(of)(x)

    want, whole = gradients(reference.attention_with_logsumexp, slice(0, LENGTH))
    first, _ = gradients(functions[backend], slice(0, half), known=whole)
    second, found = gradients(functions[backend], slice(half, LENGTH), known=whole)
    assert worst(jax.tree.map(jnp.add, first, second), want) < 1e-5
    assert worst(found, whole) == 0


def test_a_device_needs_no_more_memory_for_a_longer_row_on_more_devices(quick_jit):
    def loss(q, k, v):
        return (attention(q, k, v, Mask(zigzag=q.shape[1] // 64), scale=0.4) ** 2).sum()

    def memory(devices):
        mesh = make_mesh(context=devices)
        tokens = NamedSharding(mesh, PartitionSpec(None, "context"))
        shape = (1, 64 * devices, 2, WIDTH)
        array = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=tokens)
        with jax.set_mesh(mesh):
            program = quick_jit(jax.grad(loss, (0, 1, 2))).lower(array, array, array).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert memory(8) < 1.1 * memory(4)
