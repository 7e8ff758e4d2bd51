"""Decode attention: every backend against the definition in float64, over both forms of cache."""

import dataclasses
import functools
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jgpt.kernels.attention import attention
from jgpt.kernels.decode_attention import (
    BACKENDS,
    Pages,
    Slots,
    blockwise,
    contents,
    decode_attention,
    pallas_tpu,
    quantise,
    reference,
    write,
)
from jgpt.typing import AlibiBias, Mask, RelativeBias


class Case(NamedTuple):
    lengths: tuple[int, ...] = (30, 9, 1)
    queries: int = 1
    kv_heads: int = 2
    group: int = 2
    width: int = 8
    value_width: int = 8
    slots: int = 32
    page: int = 0
    """0 for slots"""
    int8: bool = False
    dtype: str = "float32"
    window: int = 0
    softcap: float = 0.0
    sinks: bool = False
    alibi: bool = False


CASES = {
    "slots": Case(),
    "slots, three new tokens, group of 3": Case(queries=3, kv_heads=1, group=3),
    "slots, heads of their own": Case(kv_heads=3, group=1),
    "slots, int8": Case(int8=True, queries=2),
    "slots, everything": Case(window=7, softcap=1.5, sinks=True, alibi=True, queries=4),
    "slots, values of another width": Case(value_width=16),
    "pages of 4": Case(page=4),
    "pages of 8, four new tokens": Case(page=8, queries=4),
    "pages, int8": Case(page=4, int8=True),
    "pages, window": Case(page=4, window=6, queries=2),
    "pages, softcap": Case(page=4, softcap=1.5),
    "pages, sinks": Case(page=4, sinks=True),
    "pages, alibi": Case(page=4, alibi=True, group=3),
    "pages, int8, everything": Case(
        page=4, int8=True, window=7, softcap=1.5, sinks=True, alibi=True, queries=3
    ),
    "pages, an empty row first and last": Case(page=4, lengths=(0, 21, 0)),
    "pages, bfloat16": Case(page=4, dtype="bfloat16"),
    "slots, bfloat16": Case(dtype="bfloat16"),
}
CHUNK = 8
RUNS = {
    "reference": reference.decode_attention,
    "blockwise, one block": blockwise.decode_attention,
    "blockwise": functools.partial(blockwise.decode_attention, block=CHUNK),
    "pallas_tpu": functools.partial(pallas_tpu.decode_attention, chunk=CHUNK, interpret=True),
}


def problem(case, seed=0):
    """(q, stored, mask, options) with random contents; numpy's random numbers in `case.dtype`."""
    random = np.random.default_rng(seed)
    batch, heads = len(case.lengths), case.kv_heads * case.group

    def normal(*shape, dtype=case.dtype):
        return jnp.asarray(random.normal(size=shape), dtype)

    widths = (case.width, case.value_width)
    index = np.arange(case.slots)
    stored_dtype = "int8" if case.int8 else case.dtype
    if case.page:
        columns = case.slots // case.page
        pool = (batch * columns + 3, case.kv_heads, case.page)
        # Pages lie anywhere, and what rows do not need is not allotted.
        table = random.permutation(pool[0])[: batch * columns].reshape(batch, columns)
        needed = -(-np.asarray(case.lengths)[:, None] // case.page)
        table = np.where(np.arange(columns) < needed, table, -1)
        rest = {"table": jnp.asarray(table, jnp.int32), "lengths": jnp.zeros(batch, jnp.int32)}
    else:
        pool = (batch, case.kv_heads, case.slots)
        rest = {"positions": jnp.full((batch, case.slots), -1, jnp.int32)}
    arrays = {
        name: (100 * normal(*pool, width)).astype(stored_dtype) for name, width in zip("kv", widths)
    }
    if case.int8:
        arrays |= {f"{name}_scales": abs(normal(*pool)) for name in "kv"}
    positions = np.where(index < np.asarray(case.lengths)[:, None], index, -1).astype(np.int32)
    k, v = (normal(batch, case.slots, case.kv_heads, width) for width in widths)
    stored = write((Pages if case.page else Slots)(**arrays, **rest), k, v, jnp.asarray(positions))
    asked = np.asarray(case.lengths)[:, None] - case.queries + np.arange(case.queries)
    mask = Mask(window=case.window, q_positions=jnp.asarray(np.maximum(asked, -1), jnp.int32))
    options = {"scale": 0.4, "softcap": case.softcap}
    if case.sinks:
        options["sinks"] = normal(heads, dtype="float32")
    if case.alibi:
        options["bias"] = AlibiBias(abs(normal(heads, dtype="float32")))
    return normal(batch, case.queries, heads, case.width), stored, mask, options


def by_definition(q, stored, mask, scale, softcap=0.0, bias=None, sinks=None):
    """In numpy and float64, one query after the other; [B, Q, H, u] and [B, Q, H]."""
    kept = jax.tree.map(np.asarray, contents(stored))
    k, v = np.float64(kept.k), np.float64(kept.v)
    if kept.k_scales is not None:
        k, v = k * kept.k_scales[..., None], v * kept.v_scales[..., None]
    q, at = np.float64(q), np.asarray(mask.q_positions)
    out = np.zeros((*q.shape[:3], v.shape[-1]))
    logsumexp = np.full(q.shape[:3], -np.inf)
    for b, s, h in np.ndindex(*q.shape[:3]):
        here, position = h // (q.shape[2] // k.shape[1]), at[b, s]
        seen = (kept.positions[b] >= 0) & (kept.positions[b] <= position)
        if mask.window:
            seen &= kept.positions[b] > position - mask.window
        scores = scale * k[b, here, seen] @ q[b, s, h]
        if softcap:
            scores = softcap * np.tanh(scores / softcap)
        if bias is not None:
            scores -= np.float64(bias.slopes[h]) * (position - kept.positions[b][seen])
        weights = np.exp(scores)
        total = weights.sum() + (0 if sinks is None else np.exp(np.float64(sinks[h])))
        if seen.any():
            out[b, s, h] = weights @ v[b, here, seen] / total
        logsumexp[b, s, h] = np.log(total) if total else -np.inf
    return out, logsumexp


def largest_error(got, want):
    """Of both results, relative to the largest entry; infinities have to be the same."""
    errors = []
    for x, y in zip(got, want):
        x, finite = np.float64(x), np.isfinite(y)
        assert (np.isfinite(x) == finite).all()
        x, y = x[finite], y[finite]
        errors.append(abs(x - y).max(initial=0) / max(abs(y).max(initial=0), 1e-9))
    return max(errors)


def run(name, q, stored, mask, options, quick_jit):
    return quick_jit(functools.partial(RUNS[name], softcap=options["softcap"]))(
        q, stored, mask, **{n: x for n, x in options.items() if n != "softcap"}
    )


@pytest.mark.parametrize("backend", RUNS)
@pytest.mark.parametrize("name", CASES)
def test_every_backend_is_the_definition(name, backend, quick_jit):
    case = CASES[name]
    q, stored, mask, options = problem(case)
    got = run(backend, q, stored, mask, options, quick_jit)
    assert got[0].dtype == q.dtype
    tolerance = 2e-2 if case.dtype == "bfloat16" else 5e-6
    assert largest_error(got, by_definition(q, stored, mask, **options)) < tolerance


@pytest.mark.parametrize("name", ["blockwise", "pallas_tpu"])
@pytest.mark.parametrize(
    "case",
    [
        Case(lengths=(30, 9, 1, 17), int8=True, window=7, sinks=True, alibi=True, queries=2),
        Case(lengths=(30, 0, 21, 5), page=8, softcap=1.5),
    ],
    ids=["slots", "pages"],
)
def test_rows_and_heads_lie_on_a_mesh(name, case):
    """Rows over four devices, heads over two; the cache's heads stay where they are."""
    q, stored, mask, options = problem(case)
    want = by_definition(q, stored, mask, **options)
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    rows = ("data", "fsdp")
    pool = PartitionSpec(None if case.page else rows, "tensor")

    def place(x, spec):
        return jax.device_put(x, NamedSharding(mesh, spec))

    stored = jax.tree.map(lambda x: place(x, pool if x.ndim > 2 else PartitionSpec(rows)), stored)
    q = place(q, PartitionSpec(rows, None, "tensor"))
    with jax.set_mesh(mesh):
        run = jax.jit(lambda q, stored: RUNS[name](q, stored, mask, **options))
        compiled = run.lower(q, stored).compile()
        out, logsumexp = compiled(q, stored)
    assert largest_error((out, logsumexp), want) < 5e-6
    whole = rf"\[\d+,{case.kv_heads},{stored.k.shape[2]},{case.width}\]"
    assert not re.search(whole, compiled.as_text()), "a device has all heads"


SHAPES = {
    "slots, window": Case(queries=2, window=5),
    "pages": Case(page=4, queries=3),
    "pages, int8, window": Case(page=4, int8=True, window=9),
}


@pytest.mark.parametrize("name", SHAPES)
def test_any_lengths(name, quick_jit):
    """One program for each backend, whatever the lengths and wherever the pages."""
    case = SHAPES[name]
    programs = [quick_jit(RUNS[backend]) for backend in ("blockwise", "pallas_tpu")]

    @given(lengths=st.tuples(*[st.integers(0, 32)] * 3), seed=st.integers(0, 99))
    @settings(max_examples=10, deadline=None, derandomize=True)
    def check(lengths, seed):
        q, stored, mask, options = problem(case._replace(lengths=lengths), seed)
        want = by_definition(q, stored, mask, **options)
        for program in programs:
            assert largest_error(program(q, stored, mask, scale=options["scale"]), want) < 5e-6

    check()


@pytest.mark.parametrize("backend", RUNS)
def test_a_ring_that_has_wrapped_is_read_by_its_positions(backend, quick_jit):
    """Rows of 45 and 20 tokens in 16 slots: only the newest 16 are there, in any order."""
    q, stored, mask, options = problem(Case(lengths=(16, 16), slots=16))
    last = jnp.asarray([[44], [19]])
    index = jnp.arange(16)
    positions = last - (last - index) % 16
    stored = dataclasses.replace(stored, positions=positions)
    mask = dataclasses.replace(mask, q_positions=last, window=10)
    got = run(backend, q, stored, mask, options, quick_jit)
    assert largest_error(got, by_definition(q, stored, mask, **options)) < 5e-6


@pytest.mark.parametrize("window", [0, 14])
@pytest.mark.parametrize("page", [0, 4])
def test_blocks_that_do_not_divide_the_slots_count_once(page, window):
    """32 slots in blocks of 12: the last one reaches back; a window leaves the first one out."""
    q, stored, mask, options = problem(Case(lengths=(30,), page=page, window=window))
    got = blockwise.decode_attention(q, stored, mask, block=12, **options)
    assert largest_error(got, by_definition(q, stored, mask, **options)) < 5e-6


def test_pages_that_nobody_may_see_do_not_count(quick_jit):
    """Pages past the length or before the window hold NaN, and are not even read."""
    q, stored, mask, options = problem(Case(lengths=(13, 30), page=4, window=6))
    want = by_definition(q, stored, mask, **options)
    table = np.asarray(stored.table)
    seen = {*table[0, 1:4], *table[1, 6:8]}
    unseen = np.asarray([n for n in range(stored.k.shape[0]) if n not in seen])
    spoiled = {n: getattr(stored, n).at[unseen].set(jnp.nan) for n in "kv"}
    stored = dataclasses.replace(stored, **spoiled)
    chunk_of_one_page = functools.partial(pallas_tpu.decode_attention, chunk=4, interpret=True)
    got = quick_jit(chunk_of_one_page)(q, stored, mask, scale=options["scale"])
    assert largest_error(got, want) < 5e-6


def test_the_walk_visits_what_is_in_use():
    _, stored, mask, _ = problem(Case(lengths=(13, 0, 30), page=4, window=6))
    tables = pallas_tpu.make_tables(stored, mask, 8)
    # positions 7 to 12, nothing, 24 to 29, in chunks of 8
    np.testing.assert_array_equal(tables.first, [0, 0, 3])
    np.testing.assert_array_equal(tables.count, [2, 0, 1])
    np.testing.assert_array_equal(tables.before, [0, 2, 2])
    np.testing.assert_array_equal(tables.following, [0, 2, 2, 3])
    np.testing.assert_array_equal(tables.stop, [13, 0, 30])
    _, stored, mask, _ = problem(Case(lengths=(13, 0, 30)))
    tables = pallas_tpu.make_tables(stored, mask, 8)
    np.testing.assert_array_equal(tables.count, [2, 0, 4])


@pytest.mark.parametrize(
    "case, options",
    [
        (Case(lengths=(21, 0, 9), page=4, queries=2, int8=True), {}),
        (Case(lengths=(21, 3), window=9), {"dma_execution_mode": "eager"}),
    ],
    ids=["pages, int8", "slots, window, eager"],
)
def test_no_race_and_nothing_out_of_bounds(case, options, quick_jit, capfd):
    """The strict interpreter raises on what is out of bounds and prints what races."""
    q, stored, mask, given_options = problem(case)
    strict = pltpu.InterpretParams(detect_races=True, num_cores_or_threads=2, **options)
    kernel = functools.partial(pallas_tpu.decode_attention, chunk=CHUNK, interpret=strict)
    got = quick_jit(kernel)(q, stored, mask, scale=given_options["scale"])
    assert largest_error(got, by_definition(q, stored, mask, **given_options)) < 5e-6
    assert "RACE" not in capfd.readouterr().out


@pytest.mark.parametrize("page", [0, 4])
def test_new_tokens_equal_attention_over_the_whole_row(page, quick_jit):
    """The last three tokens of a text, against attention that computes all of it at once."""
    q, stored, _, _ = problem(Case(lengths=(0, 0), queries=11, page=page))
    if page:
        table = jnp.arange(16, dtype=jnp.int32).reshape(2, 8)
        stored = dataclasses.replace(stored, table=table)
    random = np.random.default_rng(5)
    k, v = (jnp.asarray(random.normal(size=(2, 11, 2, 8)), jnp.float32) for _ in "kv")
    positions = jnp.broadcast_to(jnp.arange(11), (2, 11))
    stored = write(stored, k[:, :8], v[:, :8], positions[:, :8])
    stored = write(stored, k[:, 8:], v[:, 8:], positions[:, 8:])
    whole = attention(q, k, v, Mask(), scale=0.3, backend="reference")
    mask = Mask(q_positions=positions[:, 8:])
    got = decode_attention(q[:, 8:], stored, mask, scale=0.3)
    np.testing.assert_allclose(got, whole[:, 8:], atol=1e-5)


def test_results_over_parts_combine_by_their_logsumexp():
    q, stored, mask, options = problem(Case(lengths=(30, 17)))
    attend = functools.partial(decode_attention, q, mask=mask, with_logsumexp=True, **options)
    parts = [
        dataclasses.replace(stored, positions=jnp.where(half, stored.positions, -1))
        for half in (jnp.arange(32) < 12, jnp.arange(32) >= 12)
    ]
    (a, la), (b, lb) = (attend(stored=part) for part in parts)
    whole, normalizer = attend(stored=stored)
    np.testing.assert_allclose(jnp.logaddexp(la, lb), normalizer, rtol=1e-5)
    shares = (jnp.exp(x - normalizer)[..., None] for x in (la, lb))
    np.testing.assert_allclose(sum(s * x for s, x in zip(shares, (a, b))), whole, atol=1e-6)


def test_int8_is_within_half_a_step():
    x = jnp.asarray(np.random.default_rng(3).normal(size=(5, 7, 16)), jnp.float32)
    x = x.at[0, 0].set(0)
    values, scales = quantise(x)
    assert values.dtype == jnp.int8 and scales.shape == (5, 7)
    error = abs(values * scales[..., None] - x)
    assert (error <= 0.5001 * scales[..., None] + 1e-9).all()
    assert abs(np.asarray(values)).max() == 127


def test_writing_leaves_out_padding_and_what_has_no_page():
    _, stored, _, _ = problem(Case(lengths=(5, 4), page=4))
    k = jnp.ones((2, 2, 2, 8))
    # Row 0 has two pages and writes into the second; row 1 has one page, which is full.
    after = write(stored, k, 2 * k, jnp.asarray([[5, -1], [4, -1]]))
    changed = np.argwhere(np.asarray(after.k != stored.k).any((1, 3)))
    np.testing.assert_array_equal(changed, [[stored.table[0, 1], 1]])
    np.testing.assert_array_equal(after.v[stored.table[0, 1], :, 1], 2)
    np.testing.assert_array_equal(after.lengths, [6, 5])
    assert contents(after).positions[1].max() == 3


def test_backends_say_why_not(monkeypatch):
    q, stored, mask, options = problem(Case(page=4))
    with pytest.raises(ValueError, match=r"runs on TPU.*choose auto"):
        decode_attention(q, stored, mask, backend="pallas_tpu", **options)
    with pytest.raises(ValueError, match="'nothing' is unknown"):
        decode_attention(q, stored, mask, backend="nothing", **options)
    with pytest.raises(ValueError, match="q_positions"):
        decode_attention(q, stored, Mask(), **options)
    with pytest.raises(ValueError, match="prefix_lengths"):
        prefix = dataclasses.replace(mask, prefix_lengths=jnp.ones(3))
        decode_attention(q, stored, prefix, **options)
    with pytest.raises(ValueError, match="int8"):
        wrong = dataclasses.replace(stored, k_scales=stored.k[..., 0])
        decode_attention(q, wrong, mask, **options)

    monkeypatch.setattr(pallas_tpu, "device_kind", lambda: "TPU v5 lite")
    supports = BACKENDS["pallas_tpu"].supports
    good = problem(Case(page=16, width=128, value_width=128))
    assert supports(*good[:3], **good[3]) == ""
    assert "width" in supports(q, stored, mask, **options)
    for case, reason in (
        (Case(page=8, width=128, value_width=128), "multiples of 8|"),
        (Case(page=16, int8=True, width=128, value_width=128), "multiples of 128 tokens"),
        (Case(width=128, value_width=128), "slots in multiples of 128"),
        (Case(queries=65, width=128, value_width=128, page=16), "128 query rows"),
    ):
        other = problem(case)
        assert any(part in supports(*other[:3]) for part in reason.split("|")), reason
    relative = RelativeBias(jnp.ones((8, 4)))
    assert "relative bias" in supports(*good[:3], bias=relative)
    sparse = dataclasses.replace(good[2], block_size=4)
    assert "block-sparse" in supports(good[0], good[1], sparse)


PROGRAM = """
import sys
import jax, numpy as np
from jax import ShapeDtypeStruct
from jax.experimental import topologies
from jgpt.kernels.decode_attention import Pages, Slots, decode_attention
from jgpt.typing import AlibiBias, Mask

topology = topologies.get_topology_desc(platform="tpu", topology_name=sys.argv[1])
place = jax.sharding.SingleDeviceSharding(topology.devices[0])
mesh = jax.sharding.Mesh(np.array(topology.devices[:1]), ("one",)).abstract_mesh

def array(*shape, dtype="bfloat16"):
    return ShapeDtypeStruct(shape, dtype, sharding=place)

def check(name, page=0, int8=False, queries=1, kv_heads=4, group=4, width=128, slots=1024,
          dtype="bfloat16", window=0, softcap=0.0, extras=False, backend="auto"):
    pool = (2 * slots // page, kv_heads, page) if page else (2, kv_heads, slots)
    arrays = [array(*pool, width, dtype="int8" if int8 else dtype)] * 2
    scales = [array(*pool, dtype="float32") if int8 else None] * 2
    whole = (2, slots // page) if page else (2, slots)
    rest = [array(*whole, dtype="int32")] + ([array(2, dtype="int32")] if page else [])
    stored = (Pages if page else Slots)(*arrays, *rest, *scales)

    def run(q, stored, positions, scale, numbers):
        return decode_attention(
            q, stored, Mask(window=window, q_positions=positions), scale=scale, softcap=softcap,
            sinks=numbers if extras else None, bias=AlibiBias(numbers) if extras else None,
            with_logsumexp=True)

    heads = kv_heads * group
    text = jax.jit(run).lower(
        array(2, queries, heads, width, dtype=dtype), stored, array(2, queries, dtype="int32"),
        array(dtype="float32"), array(heads, dtype="float32")).compile().as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 1, name
    print("ok", name, flush=True)

with jax.sharding.use_abstract_mesh(mesh):
    check("pages of 16", page=16)
    check("slots, int8", int8=True)
    check("pages, int8, everything", page=128, int8=True, queries=3, kv_heads=2, window=300,
          softcap=5.0, extras=True)
    check("float32", page=8, dtype="float32", kv_heads=2)
"""


@pytest.mark.tpu_aot
@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_compiles_for_tpu(topology, compile_for_tpu):
    assert compile_for_tpu(PROGRAM, topology).count("ok") == 4
