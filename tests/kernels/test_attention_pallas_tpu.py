"""The TPU kernels: against the reference in the interpreter, and through the TPU compiler."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jgpt.kernels.attention import attention, pallas_tpu, pallas_tpu_steps, reference
from jgpt.kernels.attention.pallas_tpu_block import gather, spread
from jgpt.kernels.attention.pallas_tpu_steps import Blocks
from jgpt.kernels.attention.schedule import make_schedule
from jgpt.typing import AlibiBias, Mask, RelativeBias
from tests.kernels.test_attention import (
    HEADS,
    NAMES,
    cases,
    inputs,
    normal,
    relative_error,
    segments,
    value_and_gradients,
    with_logsumexp,
)


def cut(queries, keys, forward_part=(1024, 1024), backward_part=(1024, 1024)):
    return Blocks(queries, keys, forward_part, backward_part)


EIGHT = cut(8, 8)


def float32(tree):
    def cast(x):
        return x.astype(jnp.float32) if getattr(x, "dtype", None) == jnp.float64 else x

    return jax.tree.map(cast, tree)


def both_ways(arrays, mask, options, quick_jit, interpret=True, blocks=EIGHT):
    """Values and gradients of the kernels and, in float64, of the reference."""
    kernels = functools.partial(pallas_tpu.attention, blocks=blocks, interpret=interpret)
    got = value_and_gradients(kernels, float32(arrays), mask, float32(options), quick_jit)
    got = jax.tree.map(np.asarray, got)
    with jax.enable_x64(True):
        want = value_and_gradients(reference.attention, arrays, mask, options, quick_jit)
        return got, jax.tree.map(np.asarray, want)


def strict(**options):
    return pltpu.InterpretParams(detect_races=True, num_cores_or_threads=2, **options)


def case(name):
    with jax.enable_x64(True):
        queries, keys, mask, options = cases()[name]
        return inputs(queries, keys), mask, options


@pytest.mark.parametrize("name", NAMES)
def test_kernels_equal_the_reference(name, quick_jit):
    """21 and 29 tokens in blocks of 8: several blocks, the last one ragged."""
    errors = jax.tree.map(relative_error, *both_ways(*case(name), quick_jit))
    assert max(jax.tree.leaves(errors)) < 5e-5, errors


@pytest.mark.parametrize(
    "name", ["causal", "prefix and window", "segments, window, sinks", "cache", "relative"]
)
def test_parts_of_a_block_and_spans_of_keys_equal_the_whole(name, quick_jit, monkeypatch):
    """Blocks of 16 in four parts; the backward pass takes 16 of the keys at a time."""
    monkeypatch.setattr(pallas_tpu, "longest", lambda *_: 16)
    blocks = cut(16, 16, (8, 8), (8, 8))
    errors = jax.tree.map(relative_error, *both_ways(*case(name), quick_jit, blocks=blocks))
    assert max(jax.tree.leaves(errors)) < 5e-5, errors


@pytest.mark.parametrize(
    "name", ["segments, window, sinks", "alibi in a cache", "softcap and sinks"]
)
def test_logsumexp_and_its_gradients(name, quick_jit):
    arrays, mask, options = case(name)
    kernels = functools.partial(pallas_tpu.attention_with_logsumexp, blocks=EIGHT, interpret=True)
    got = value_and_gradients(
        with_logsumexp(kernels), float32(arrays), mask, float32(options), quick_jit
    )
    got = jax.tree.map(np.asarray, got)
    with jax.enable_x64(True):
        function = with_logsumexp(reference.attention_with_logsumexp)
        want = value_and_gradients(function, arrays, mask, options, quick_jit)
        errors = jax.tree.map(relative_error, got, want)
    assert max(jax.tree.leaves(errors)) < 5e-5, errors


@hypothesis.settings(
    max_examples=3, deadline=None, derandomize=True, phases=[hypothesis.Phase.generate]
)
@hypothesis.given(data=st.data())
def test_random_shapes_masks_and_cuts(data, quick_jit):
    draw = data.draw
    queries, keys = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    kv_heads, group = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    heads = kv_heads * group
    sizes = st.sampled_from([8, 16, 24])
    blocks = cut(draw(sizes), draw(sizes), (8, 16), (16, 8))
    with jax.enable_x64(True):
        arrays = inputs(queries, keys, heads, kv_heads, draw(st.integers(1, 9)))
        ids = jnp.asarray(np.random.default_rng(draw(st.integers(0, 9))).integers(0, 3, (2, 40)))
        documents = {"q_segment_ids": ids[:, :queries], "kv_segment_ids": ids[:, :keys]}
        mask = Mask(
            causal=draw(st.booleans()),
            window=draw(st.sampled_from([0, 0, 3, 7])),
            prefix_lengths=draw(st.sampled_from([None, jnp.asarray([5, 0])])),
            **draw(st.sampled_from([{}, documents])),
        )
        bias = [
            None,
            AlibiBias(abs(normal(7, heads))),
            RelativeBias(normal(6, 8, heads), draw(st.booleans()), 16),
        ]
        options = {
            "softcap": draw(st.sampled_from([0.0, 2.0])),
            "bias": draw(st.sampled_from(bias)),
        }
        if options["bias"] is None:
            del options["bias"]
    got, want = both_ways(arrays, mask, options, quick_jit, blocks=blocks)
    errors = jax.tree.map(lambda a, b: np.abs(a - b).max() / max(np.abs(b).max(), 1), got, want)
    assert max(jax.tree.leaves(errors)) < 1e-4, errors


@pytest.mark.parametrize("rows, columns", [(8, 8), (8, 24), (24, 16), (128, 40)])
def test_a_bias_by_distance_is_spread_and_gathered(rows, columns, quick_jit):
    """Against the definition; `gather` is the transpose of `spread`."""
    window, block = normal(1, 1, rows + columns), normal(2, rows, columns)
    got = quick_jit(lambda x: run_in_kernel(lambda x: spread(x, (rows, columns)), x))(window)
    r, c = np.indices((rows, columns))
    np.testing.assert_array_equal(got, np.asarray(window)[0][rows + c - r])
    sums = quick_jit(lambda x: run_in_kernel(gather, x))(block)
    np.testing.assert_allclose((sums * window).sum(), (got * block).sum(), rtol=1e-4)


def run_in_kernel(function, x):
    def kernel(source, target):
        target[...] = function(source[...])

    out = jax.eval_shape(function, x)
    return pl.pallas_call(kernel, out, interpret=True)(x)


@pytest.mark.parametrize("kv_heads", [1, 3])
def test_every_grouping_of_heads_and_two_widths(kv_heads, quick_jit):
    with jax.enable_x64(True):
        arrays = inputs(17, 17, heads=3, kv_heads=kv_heads, width=5)
        arrays |= {"v": normal(2, 2, 17, kv_heads, 9)}
    errors = jax.tree.map(
        relative_error, *both_ways(arrays, Mask(), {}, quick_jit, blocks=cut(8, 16))
    )
    assert max(jax.tree.leaves(errors)) < 5e-5, errors


@pytest.mark.parametrize(
    "length, window, parts", [(300, 0, 1024), (440, 256, 128), (530, 512, 1024)]
)
def test_parts_of_the_diagonal_equal_the_whole(length, window, parts, quick_jit):
    """Squares of 256 are cut in two; everything that a part has to cut along goes with it. A window
    of whole blocks has squares on its far edge too; its documents are longer than the window."""
    with jax.enable_x64(True):
        arrays = inputs(length, length, 2, 1)
        ids = jnp.ones((2, length), jnp.int32).at[:, -20:].set(2) if window else segments(length)
        mask = Mask(window=window, q_segment_ids=ids, kv_segment_ids=ids)
        options = {
            "softcap": 2.0,
            "sinks": normal(5, 2),
            "bias": AlibiBias(jnp.asarray([0.05, 0.01])),
        }
    blocks = cut(256, 256, (parts, parts), (parts, parts))
    got, want = both_ways(arrays, mask, options, quick_jit, blocks=blocks)
    errors = jax.tree.map(relative_error, got, want)
    assert max(jax.tree.leaves(errors)) < 5e-5, errors


@pytest.mark.parametrize(
    "mask, options",
    [
        (Mask(), {}),
        (Mask(window=6), {"dma_execution_mode": "eager"}),
    ],
    ids=["causal, segments", "window, eager"],
)
def test_no_race_and_nothing_out_of_bounds(mask, options, quick_jit, capfd):
    """The strict interpreter raises on what is out of bounds and prints what races."""
    with jax.enable_x64(True):
        arrays = {n: x[:1] if n in "qkv" else x for n, x in inputs(21, 21, 2, 1).items()}
        if not options:
            ids = segments(21)[:1]
            mask = Mask(q_segment_ids=ids, kv_segment_ids=ids)
    got, want = both_ways(arrays, mask, {}, quick_jit, strict(**options), blocks=cut(16, 8))
    errors = jax.tree.map(relative_error, got, want)
    assert max(jax.tree.leaves(errors)) < 5e-5, errors
    assert "RACE" not in capfd.readouterr().out


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_default_blocks_stay_close_to_float64(dtype, tolerance, quick_jit):
    with jax.enable_x64(True):
        arrays = {
            n: x.astype(dtype).astype("float64") for n, x in inputs(700, 700, 2, 1, 16).items()
        }
        arrays["scale"] = jnp.asarray(0.25)
        want = value_and_gradients(reference.attention, arrays, Mask(), {}, quick_jit)
        want = jax.tree.map(np.asarray, want)
    arrays = {n: jnp.asarray(x, "float32" if n == "scale" else dtype) for n, x in arrays.items()}
    kernels = functools.partial(pallas_tpu.attention, interpret=True)
    got = value_and_gradients(kernels, arrays, Mask(), {}, quick_jit)
    assert got[0].dtype == dtype
    errors = jax.tree.map(relative_error, got, want)
    assert max(jax.tree.leaves(errors)) < tolerance, errors


def test_query_without_a_key_gives_zero_and_no_gradient(quick_jit):
    arrays = {n: x.astype("float32") for n, x in inputs(20, 20).items()}
    ids = segments(20)
    empty = np.asarray(ids) == 0
    mask = Mask(q_segment_ids=ids, kv_segment_ids=ids)
    kernels = functools.partial(pallas_tpu.attention, blocks=EIGHT, interpret=True)
    out, gradients = value_and_gradients(kernels, arrays, mask, {}, quick_jit)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((out, gradients)))
    assert not np.asarray(out)[empty].any()
    for n in ("q", "k", "v"):
        assert not np.asarray(gradients[n])[empty].any()
        assert np.asarray(gradients[n])[~empty].any()


def walk(mask, queries=32, keys=32, batch=1):
    """[(row, column)] with work, of each batch row, in blocks of 8; fetches counted beside."""
    ids = mask.q_segment_ids
    static = pallas_tpu_steps.Static(
        schedule=make_schedule(mask, queries, keys, 8, 8),
        mask=mask,
        prefix=False,
        positions=False,
        keys=keys,
        group=1,
        softcap=0.0,
        blocks=EIGHT,
        vmem_bytes=0,
        longest=keys,
        interpret=True,
    )
    extras = pallas_tpu_steps.Extras(jnp.ones(1), q_segments=ids, kv_segments=ids)
    steps = pallas_tpu_steps.make_steps(static, extras, mask.prefix_lengths)
    rows = np.asarray(steps.rows)
    work = np.asarray(steps.kinds) & pallas_tpu_steps.RUN > 0
    columns = np.asarray(steps.columns)
    fetches = (np.diff(columns, axis=1) != 0).sum(1) + 1
    return [set(zip(rows[w], c[w])) for w, c in zip(work, columns)], fetches


def test_work_is_what_the_mask_leaves():
    """Nothing above the diagonal, a band for a window, one square for each segment."""
    (causal,), _ = walk(Mask())
    assert causal == {(i, j) for i in range(4) for j in range(i + 1)}
    (band,), fetches = walk(Mask(window=9))
    assert band == {(i, j) for i in range(4) for j in (i - 1, i) if j >= 0}
    assert fetches[0] <= len(band)
    ids = jnp.asarray(np.repeat([[1, 1, 2, 2], [1, 2, 3, 0]], 8, axis=1), jnp.int32)
    (halves, singles), fetches = walk(Mask(q_segment_ids=ids, kv_segment_ids=ids), batch=2)
    assert halves == {(0, 0), (1, 0), (1, 1), (2, 2), (3, 2), (3, 3)}
    assert singles == {(0, 0), (1, 1), (2, 2)}
    assert fetches[1] == 3, "a block without work is not fetched"


def test_a_row_of_blocks_without_a_key_gives_zero(quick_jit):
    """Queries far behind the last key, with a window: no block in their row."""
    with jax.enable_x64(True):
        arrays = inputs(40, 9)
    mask = Mask(causal=False, window=4)
    errors = jax.tree.map(relative_error, *both_ways(arrays, mask, {}, quick_jit))
    assert max(jax.tree.leaves(errors)) < 5e-5, errors


def test_over_a_mesh_every_gradient_is_that_of_one_device(quick_jit):
    """Rows cut over data and fsdp, heads over tensor; no array is gathered for it."""
    with jax.enable_x64(True):
        arrays = {
            n: jnp.concatenate([x, 2 * x]) if n in "qkv" else x for n, x in inputs(12, 12).items()
        }
        ids = jnp.concatenate([segments(12), segments(12, seed=5)])
        options = {"sinks": normal(5, HEADS), "bias": AlibiBias(abs(normal(6, HEADS)))}
    arrays, options = float32(arrays), float32(options)
    mask = Mask(q_segment_ids=ids, kv_segment_ids=ids)
    kernels = functools.partial(pallas_tpu.attention, blocks=EIGHT, interpret=True)
    want = value_and_gradients(kernels, arrays, mask, options, quick_jit)
    axes = {"data": 2, "fsdp": 2, "tensor": 2}
    mesh = jax.make_mesh((2, 2, 2), tuple(axes), axis_types=(AxisType.Auto,) * 3)
    with jax.set_mesh(mesh):
        place = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None, "tensor"))
        placed = {n: jax.device_put(x, place) if n in "qkv" else x for n, x in arrays.items()}
        got = value_and_gradients(kernels, placed, mask, options, quick_jit)
    errors = jax.tree.map(relative_error, got, want)
    assert max(jax.tree.leaves(errors)) < 1e-4, errors  # the scale's gradient is a small difference


def test_auto_takes_it_on_tpu_only_and_reasons_are_given(monkeypatch):
    arrays = {n: x.astype("bfloat16") for n, x in inputs(20, 20).items()}
    arrays["scale"] = 0.3
    supports = functools.partial(pallas_tpu.supports, **arrays)
    assert "runs on TPU" in supports(mask=Mask())
    with pytest.raises(ValueError, match=r"'pallas_tpu' cannot run: .*; choose auto"):
        attention(mask=Mask(), backend="pallas_tpu", **arrays)
    monkeypatch.setattr(pallas_tpu, "device_kind", lambda: "TPU v5 lite")
    assert supports(mask=Mask()) == ""
    assert supports(mask=Mask(window=3), softcap=2.0, sinks=jnp.ones(HEADS)) == ""
    positions = Mask(q_positions=jnp.zeros((2, 20), jnp.int32))
    relative = RelativeBias(jnp.ones((8, HEADS)))
    assert supports(mask=positions) == supports(mask=Mask(), bias=relative) == ""
    assert "relative bias with explicit positions" in supports(mask=positions, bias=relative)
    assert "dropout" in supports(mask=Mask(), dropout=0.1)
    wrong = {n: x.astype("float16") if n in "qkv" else x for n, x in arrays.items()}
    assert "not float16" in pallas_tpu.supports(mask=Mask(), **wrong)
    long = jax.ShapeDtypeStruct((1, 2**17, 2, 128), jnp.bfloat16)
    assert pallas_tpu.supports(long, long, long, Mask()) == ""
    longer = jax.ShapeDtypeStruct((1, 2**20, 2, 128), jnp.bfloat16)
    assert "no room for 1048576 blocks" in pallas_tpu.supports(longer, longer, longer, Mask())


PROGRAM = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
from jgpt.kernels.attention import attention, pallas_tpu
from jgpt.typing import AlibiBias, Mask, RelativeBias

topology = topologies.get_topology_desc(platform="tpu", topology_name=sys.argv[1])
place = SingleDeviceSharding(topology.devices[0])
mesh = jax.sharding.Mesh(np.array(topology.devices[:1]), ("one",)).abstract_mesh

def check(name, queries, keys, heads, kv_heads, width, dtype="bfloat16", segments=False,
          value_width=None, sinks=False, alibi=False, relative=False, softcap=0.0, prefix=False,
          positions=False, kernels=2, **mask):
    def array(*shape, dtype=dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    def run(q, k, v, scale, numbers, ids, lengths):
        def attend(q, k, v, scale, numbers):
            made = Mask(q_segment_ids=ids if segments else None,
                        kv_segment_ids=ids if segments else None,
                        q_positions=ids if positions else None,
                        prefix_lengths=lengths if prefix else None, **mask)
            bias = AlibiBias(numbers) if alibi else None
            bias = RelativeBias(jnp.outer(numbers, numbers)) if relative else bias
            return attention(q, k, v, made, scale=scale, softcap=softcap,
                             sinks=numbers if sinks else None,
                             bias=bias, backend="pallas_tpu")
        out, pull = jax.vjp(attend, q, k, v, scale, numbers)
        return out, pull(out)

    text = jax.jit(run).lower(
        array(2, queries, heads, width), array(2, keys, kv_heads, width),
        array(2, keys, kv_heads, value_width or width), array(dtype="float32"),
        array(heads, dtype="float32"), array(2, queries, dtype="int32"), array(2, dtype="int32"),
    ).compile().as_text()
    count = text.count('custom_call_target="tpu_custom_call"')
    assert count == kernels, f"{name}: {count} kernels"
    print("ok", name, flush=True)

with jax.sharding.use_abstract_mesh(mesh):
    check("causal", 2048, 2048, 4, 2, 128)
    check("everything, ragged, width 64", 1000, 1000, 4, 1, 64, segments=True, sinks=True,
          softcap=30.0, window=300)
    check("cross, width 80, float32", 300, 700, 2, 2, 80, "float32", causal=False)
    check("alibi, prefix, two widths", 600, 600, 2, 2, 192, value_width=128, alibi=True,
          prefix=True)
    check("block-sparse, short", 40, 40, 2, 1, 128, block_size=8, num_local_blocks=2,
          num_global_blocks=1)
    check("relative, ragged", 1300, 1300, 2, 2, 128, relative=True)
    check("positions", 700, 1500, 2, 1, 64, positions=True, window=256)
    chip = pallas_tpu.CHIPS[pallas_tpu.device_kind()]
    most = pallas_tpu.longest(chip, 128, 128)
    check("longest on chip", 2048, most, 1, 1, 128, causal=False)
    check("longer", 1024, most + 1024, 1, 1, 128, causal=False, kernels=3)
"""


@pytest.mark.tpu_aot
@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_both_passes_compile_for_tpu(topology, compile_for_tpu):
    assert compile_for_tpu(PROGRAM, topology).count("ok ") == 9
