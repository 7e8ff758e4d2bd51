"""The GPU kernels: against the reference in the interpreter, and through the lowering for CUDA."""

import functools
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jgpt.kernels.attention import BACKENDS, attention, cudnn, pallas_gpu, reference
from jgpt.kernels.attention.mask import row_indices, visible
from jgpt.kernels.attention.pallas_gpu import Tiles
from jgpt.kernels.attention.pallas_gpu_walk import Tile, make_cover, make_walk
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
)

BENCHMARK = pathlib.Path(__file__).parents[2] / "experiments/benchmarks/gpu_kernels.py"
OURS = [n for n in NAMES if "relative" not in n]
SMALL = Tiles(Tile(16, 8, 4, 1), Tile(8, 16, 4, 1), Tile(16, 8, 4, 1))
"""Several blocks of 21 and 29 tokens, the last ones ragged; every kernel cuts differently."""


def float32(tree):
    def cast(x):
        return x.astype(jnp.float32) if getattr(x, "dtype", None) == jnp.float64 else x

    return jax.tree.map(cast, tree)


def both_ways(arrays, mask, options, quick_jit, tiles=SMALL):
    """Values and gradients of the kernels and, in float64, of the reference."""
    kernels = functools.partial(pallas_gpu.attention, tiles=tiles, interpret=True)
    got = value_and_gradients(kernels, float32(arrays), mask, float32(options), quick_jit)
    got = jax.tree.map(np.asarray, got)
    with jax.enable_x64(True):
        want = value_and_gradients(reference.attention, arrays, mask, options, quick_jit)
        return got, jax.tree.map(np.asarray, want)


def errors_of(*arguments, **options):
    return jax.tree.map(relative_error, *both_ways(*arguments, **options))


@pytest.mark.parametrize("name", OURS)
def test_kernels_equal_the_reference(name, quick_jit):
    with jax.enable_x64(True):
        queries, keys, mask, options = cases()[name]
        arrays = inputs(queries, keys)
    errors = errors_of(arrays, mask, options, quick_jit)
    assert max(jax.tree.leaves(errors)) < 5e-5, errors


@pytest.mark.parametrize("kv_heads", [1, 3])
def test_every_grouping_of_heads_and_two_widths(kv_heads, quick_jit):
    with jax.enable_x64(True):
        arrays = inputs(17, 17, heads=3, kv_heads=kv_heads, width=5)
        arrays |= {"v": normal(2, 2, 17, kv_heads, 19)}
    errors = errors_of(arrays, Mask(), {}, quick_jit)
    assert max(jax.tree.leaves(errors)) < 5e-5, errors


@pytest.mark.parametrize(
    "dtype, tolerance", [("float32", 1e-5), ("float16", 4e-3), ("bfloat16", 2e-2)]
)
def test_default_blocks_stay_close_to_float64(dtype, tolerance, quick_jit):
    with jax.enable_x64(True):
        arrays = {
            n: x.astype(dtype).astype("float64") for n, x in inputs(300, 300, 2, 1, 16).items()
        }
        arrays["scale"] = jnp.asarray(0.25)
        want = value_and_gradients(reference.attention, arrays, Mask(), {}, quick_jit)
        want = jax.tree.map(np.asarray, want)
    arrays = {n: jnp.asarray(x, "float32" if n == "scale" else dtype) for n, x in arrays.items()}
    kernels = functools.partial(pallas_gpu.attention, interpret=True)
    got = value_and_gradients(kernels, arrays, Mask(), {}, quick_jit)
    assert got[0].dtype == dtype
    errors = jax.tree.map(relative_error, got, want)
    assert max(jax.tree.leaves(errors)) < tolerance, errors


def test_query_without_a_key_gives_zero_and_no_gradient(quick_jit):
    arrays = {n: x.astype("float32") for n, x in inputs(20, 20).items()}
    ids = segments(20)
    empty = np.asarray(ids) == 0
    mask = Mask(q_segment_ids=ids, kv_segment_ids=ids)
    kernels = functools.partial(pallas_gpu.attention, tiles=SMALL, interpret=True)
    out, gradients = value_and_gradients(kernels, arrays, mask, {}, quick_jit)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((out, gradients)))
    assert not np.asarray(out)[empty].any()
    for n in ("q", "k", "v"):
        assert not np.asarray(gradients[n])[empty].any()
        assert np.asarray(gradients[n])[~empty].any()


def test_results_over_parts_of_the_keys_add_up(quick_jit):
    """With their log-sum-exps, values and gradients; a query that sees no key has -inf."""
    with jax.enable_x64(True):
        arrays = inputs(21, 32)
        mask = Mask(causal=False, window=16)
        want = value_and_gradients(reference.attention, arrays, mask, {}, quick_jit)
        want = jax.tree.map(np.asarray, want)

    def in_two(q, k, v, scale, mask):
        outs, logs = [], []
        for part in (slice(0, 16), slice(16, 32)):
            at = jnp.arange(32, dtype=jnp.int32)[None, part]
            half = Mask(causal=False, window=16, kv_positions=at)
            out, log = pallas_gpu.attention_with_logsumexp(
                q, k[:, part], v[:, part], half, scale=scale, tiles=SMALL, interpret=True
            )
            outs.append(out)
            logs.append(log)
        shares = jax.nn.softmax(jnp.stack(logs), axis=0)
        return (jnp.stack(outs) * shares[..., None]).sum(0)

    got = value_and_gradients(in_two, float32(arrays), mask, {}, quick_jit)
    errors = jax.tree.map(relative_error, got, want)
    assert max(jax.tree.leaves(errors)) < 5e-4, errors  # the scale's is a small difference
    arrays = float32(arrays)
    far = Mask(causal=False, window=2, kv_positions=jnp.arange(90, 122, dtype=jnp.int32)[None])
    kernels = functools.partial(pallas_gpu.attention_with_logsumexp, tiles=SMALL, interpret=True)
    assert (kernels(mask=far, **arrays)[1] == -jnp.inf).all()


QUICK = {
    "deadline": None,
    "derandomize": True,
    "phases": (Phase.explicit, Phase.generate),  # to shrink a failing mask takes minutes
    "suppress_health_check": (HealthCheck.function_scoped_fixture,),
}
MASKS = st.fixed_dictionaries(
    {
        "causal": st.booleans(),
        "window": st.sampled_from([0, 1, 7, 20]),
        "block_size": st.sampled_from([0, 0, 3, 8]),
        "num_local_blocks": st.integers(1, 3),
        "num_global_blocks": st.integers(0, 2),
        "stride": st.sampled_from([0, 2]),
    }
)


def arrays_of_mask(draw_segments, draw_prefix, queries, keys, seed):
    rng = np.random.default_rng(seed)
    made = {}
    if draw_segments:  # in no order, which packing never gives but the contract allows
        made["q_segment_ids"] = jnp.asarray(rng.integers(0, 3, (2, queries)), jnp.int32)
        made["kv_segment_ids"] = jnp.asarray(rng.integers(0, 3, (2, keys)), jnp.int32)
    if draw_prefix:
        made["prefix_lengths"] = jnp.asarray(rng.integers(0, keys, 2), jnp.int32)
    return made


def allowed_pairs(mask, queries, keys):
    """[2, S, T] bool."""
    at = row_indices(mask, queries, keys)
    seen = visible(mask, at, mask.q_segment_ids, mask.kv_segment_ids)
    seen = np.ones((1, queries, keys), bool) if seen is None else np.asarray(seen)
    return np.broadcast_to(seen, (2, queries, keys))


@settings(max_examples=12, **QUICK)
@given(
    structure=MASKS,
    queries=st.sampled_from([1, 17, 40]),
    keys=st.sampled_from([1, 23, 40]),
    blocks=st.sampled_from([(4, 8), (16, 4), (8, 8)]),
    ids=st.booleans(),
    prefix=st.booleans(),
    columns=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_walk_visits_every_allowed_pair_and_masks_every_forbidden_one(
    structure, queries, keys, blocks, ids, prefix, columns, seed
):
    """Whatever the mask: nothing allowed is skipped, nothing forbidden goes unmasked."""
    mask = Mask(**structure, **arrays_of_mask(ids, prefix, queries, keys, seed))
    tile = Tile(*blocks, 4, 1)
    pairs = allowed_pairs(mask, queries, keys)
    walk = make_walk(mask, queries, keys, tile, columns)
    bounds = np.broadcast_to(walk.bounds, (2, *walk.bounds.shape[1:]))
    for b, line in np.ndindex(bounds.shape[:2]):
        begin, full_begin, full_end, end = bounds[b, line]
        assert begin <= full_begin <= full_end <= end
        for (first, last), wanted in zip(
            ((begin, full_begin), (full_begin, full_end), (full_end, end)), walk.loops
        ):
            assert wanted or first == last
        visited = np.zeros((queries, keys), bool)
        for n in range(begin, end):
            other = n if walk.order is None else int(walk.order[b % len(walk.order), line, n])
            i, j = (other, line) if columns else (line, other)
            rows = slice(i * blocks[0], (i + 1) * blocks[0])
            cells = slice(j * blocks[1], (j + 1) * blocks[1])
            assert not visited[rows, cells].any()
            visited[rows, cells] = True
            if full_begin <= n < full_end:
                assert pairs[b, rows, cells].all()
                assert columns or (j + 1) * blocks[1] <= keys
        own = slice(line * blocks[columns], (line + 1) * blocks[columns])
        own = (slice(None), own) if columns else own
        assert visited[own][pairs[b][own]].all()


def test_work_is_what_the_mask_leaves():
    """Nothing above the diagonal, a band for a window, one square for each document."""
    tile = Tile(8, 8, 4, 1)

    def visited(mask, **options):
        bounds = np.asarray(make_walk(mask, 64, 64, tile, **options).bounds)
        return (bounds[..., 3] - bounds[..., 0]).sum(-1), (bounds[..., 2] - bounds[..., 1]).sum(-1)

    assert visited(Mask(), columns=False) == (36, 28)
    assert visited(Mask(), columns=True) == (36, 28)
    assert visited(Mask(window=9), columns=False) == (15, 0)
    assert visited(Mask(causal=False), columns=False) == (64, 64)
    ids = jnp.asarray(np.repeat([[1, 1, 1, 1, 2, 2, 2, 2], [1, 2, 3, 4, 5, 6, 7, 0]], 8, axis=1))
    documents = Mask(q_segment_ids=ids, kv_segment_ids=ids)
    some, every = visited(documents, columns=False)
    assert some.tolist() == [20, 7]
    assert every.tolist() == [12, 0]
    sparse = Mask(block_size=8, num_local_blocks=2, num_global_blocks=1)
    assert visited(sparse, columns=False) == (1 + 2 + 6 * 3, 1 + 6 * 2 + 0)
    cover = make_cover(Mask(q_positions=jnp.zeros((1, 64), jnp.int32)), 64, 64, tile)
    assert cover.some.all() and not cover.every.any()


@settings(max_examples=6, **QUICK)
@given(
    structure=MASKS,
    queries=st.integers(1, 40),
    keys=st.integers(1, 40),
    ids=st.booleans(),
    prefix=st.booleans(),
    softcap=st.sampled_from([0.0, 1.5]),
)
def test_random_shapes_and_masks_equal_the_reference(
    quick_jit, structure, queries, keys, ids, prefix, softcap
):
    mask = Mask(**structure, **arrays_of_mask(ids, prefix, queries, keys, 7))
    with jax.enable_x64(True):
        arrays = inputs(queries, keys, 2, 1)
    got, want = both_ways(arrays, mask, {"softcap": softcap}, quick_jit)
    # a row with one key has no gradient but rounding: errors are absolute, values around 1
    errors = jax.tree.map(lambda g, w: abs(g - w).max() / max(1, abs(w).max()), got, want)
    assert max(jax.tree.leaves(errors)) < 1e-4, errors


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
    kernels = functools.partial(pallas_gpu.attention, tiles=SMALL, interpret=True)
    want = value_and_gradients(kernels, arrays, mask, options, quick_jit)
    axes = {"data": 2, "fsdp": 2, "tensor": 2}
    mesh = jax.make_mesh((2, 2, 2), tuple(axes), axis_types=(AxisType.Auto,) * 3)
    with jax.set_mesh(mesh):
        place = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None, "tensor"))
        placed = {n: jax.device_put(x, place) if n in "qkv" else x for n, x in arrays.items()}
        got = value_and_gradients(kernels, placed, mask, options, quick_jit)
    errors = jax.tree.map(relative_error, got, want)
    assert max(jax.tree.leaves(errors)) < 1e-4, errors


def test_reasons_are_given(monkeypatch):
    arrays = {n: x.astype("bfloat16") for n, x in inputs(20, 20).items()}
    arrays["scale"] = 0.3
    for backend in ("pallas_gpu", "cudnn"):
        assert "runs on NVIDIA GPUs" in BACKENDS[backend].supports(mask=Mask(), **arrays)
        with pytest.raises(ValueError, match=rf"'{backend}' cannot run: .*; choose auto"):
            attention(mask=Mask(), backend=backend, **arrays)
    monkeypatch.setattr(pallas_gpu, "device_kind", lambda: "NVIDIA H100 80GB HBM3")
    supports = functools.partial(pallas_gpu.supports, **arrays)
    assert supports(mask=Mask()) == ""
    assert supports(mask=Mask(window=3), softcap=2.0, sinks=jnp.ones(HEADS)) == ""
    assert supports(mask=Mask(q_positions=jnp.zeros((2, 20), jnp.int32))) == ""
    assert "relative bias" in supports(mask=Mask(), bias=RelativeBias(jnp.ones((8, HEADS))))
    assert "dropout" in supports(mask=Mask(), dropout=0.1)
    wrong = {n: x.astype("float8_e4m3fn") if n in "qkv" else x for n, x in arrays.items()}
    assert "not float8" in pallas_gpu.supports(mask=Mask(), **wrong)
    wide = jax.ShapeDtypeStruct((1, 64, 2, 320), jnp.bfloat16)
    assert "width 256 at most, not 320" in pallas_gpu.supports(wide, wide, wide, Mask())


@pytest.mark.parametrize(
    "mask, options, reason",
    [
        (Mask(causal=False, window=3), {}, "window without a causal mask"),
        (Mask(), {"softcap": 3.0}, "softcap"),
        (Mask(), {"sinks": jnp.ones(HEADS)}, "sinks"),
        (Mask(block_size=4, num_local_blocks=1), {}, "block-sparse"),
        (Mask(prefix_lengths=jnp.asarray([1, 2])), {}, "prefix lengths"),
        (Mask(q_segment_ids=jnp.ones((2, 20)), kv_segment_ids=jnp.ones((2, 20))), {}, "segment"),
        (Mask(), {}, "cuDNN is not detected"),  # the library's own words, where it is not installed
    ],
)
def test_cudnn_says_why_it_cannot(mask, options, reason, monkeypatch):
    monkeypatch.setattr(cudnn, "device_kind", lambda: "NVIDIA H100 80GB HBM3")
    arrays = {n: x.astype("bfloat16") for n, x in inputs(20, 20).items()}
    assert reason in cudnn.supports(mask=mask, **arrays, **options)


LOWERED = {
    "causal, grouped": ({"queries": 512, "keys": 512}, Mask(), {}),
    "everything, ragged": (
        {"queries": 300, "keys": 300, "width": 80},
        Mask(window=70),
        {"softcap": 30.0, "segments": True, "sinks": True, "alibi": True},
    ),
    "cross, float32": ({"queries": 100, "keys": 230, "dtype": "float32"}, Mask(causal=False), {}),
    "block-sparse, prefix": (
        {"queries": 256, "keys": 256},
        Mask(block_size=16, num_local_blocks=2, num_global_blocks=1, stride=3),
        {"prefix": True},
    ),
}


@pytest.mark.parametrize("name", LOWERED)
def test_both_passes_lower_for_cuda(name, for_an_h100):
    """Without a GPU or its plugin: the kernels become Triton programs, three of them."""
    shape, mask, options = LOWERED[name]
    queries, keys, width = shape["queries"], shape["keys"], shape.get("width", 64)
    dtype = shape.get("dtype", "bfloat16")

    def array(*shape, dtype=dtype):
        return jax.ShapeDtypeStruct(shape, dtype)

    def run(q, k, v, scale, numbers, ids, lengths):
        made = {"segments": {"q_segment_ids": ids, "kv_segment_ids": ids}}
        made["prefix"] = {"prefix_lengths": lengths}
        fields = {n: x for use, got in made.items() if options.get(use) for n, x in got.items()}
        full = Mask(**{n: getattr(mask, n) for n in pallas_gpu.STRUCTURE}, **fields)

        def attend(q, k, v, scale, numbers):
            return pallas_gpu.attention(
                q,
                k,
                v,
                full,
                scale=scale,
                softcap=options.get("softcap", 0.0),
                sinks=numbers if options.get("sinks") else None,
                bias=AlibiBias(numbers) if options.get("alibi") else None,
            )

        out, pull = jax.vjp(attend, q, k, v, scale, numbers)
        return out, pull(out)

    arguments = (
        array(2, queries, 4, width),
        array(2, keys, 2, width),
        array(2, keys, 2, width),
        array(dtype="float32"),
        array(4, dtype="float32"),
        array(2, queries, dtype="int32"),
        array(2, dtype="int32"),
    )
    text = jax.jit(run).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
    kernels = ("attention_forward", "attention_backward_dq", "attention_backward_dkv")
    assert text.count("gpu.triton") + text.count("triton_kernel_call") == 3
    assert all(name in text for name in kernels)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["everything, ragged, both", "experts 8, gated"])
def test_kernels_compile_for_an_h100_and_spill_nothing(case):
    """The whole way to machine code, without a GPU, in tensor core instructions of Hopper."""
    pytest.importorskip("jax_cuda12_plugin", reason="the CUDA compiler: pip install jax[cuda12]")
    command = [sys.executable, str(BENCHMARK), "--compile", "h100", "--case", case]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "--compile needs ptxas" in done.stderr:
        pytest.skip("needs ptxas: pip install nvidia-cuda-nvcc-cu12")
    assert done.returncode == 0, done.stderr[-3000:]
    (ours,) = (
        row["details"]["ours"]
        for row in json.loads(done.stdout.splitlines()[-1])["rows"]
        if "details" in row
    )
    assert "error" not in ours, ours["error"]
    assert ours["kernels"]
    for name, facts in ours["kernels"].items():
        assert facts["spilled"] == 0, name
        assert facts["HGMMA"], name
