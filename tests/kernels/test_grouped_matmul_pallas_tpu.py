"""The TPU kernels: against float64 sums in the interpreter, and through the TPU compiler."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jgpt.kernels.grouped_matmul import gated, pallas_tpu
from jgpt.kernels.grouped_matmul.pallas_tpu_calls import CHIPS, MIB, Chip
from jgpt.kernels.grouped_matmul.pallas_tpu_visits import make_visits
from tests.kernels.test_grouped_matmul import relative_error
from tests.test_tpu_aot import MODEL, MOE, compiled
from tests.test_tpu_aot import PROGRAM as STEP

SMALL = Chip(32, 16, 256, 128, 128, 1, 100 * MIB)
"""Tiles of 32 rows, of which 16 are computed where not all are needed."""
CASES = {
    "even": ([32, 32, 32, 4], 100, 24, 40),
    "uneven": ([3, 64, 1, 32], 100, 24, 40),
    "one takes all": ([0, 100, 0, 0], 100, 24, 40),
    "empty first and last": ([0, 43, 57, 0], 100, 24, 40),
    "rows left over": ([10, 0, 31, 7], 100, 24, 40),
    "left over behind whole tiles": ([33, 31, 0, 0], 100, 24, 40),
    "nobody": ([0, 0, 0, 0], 100, 24, 40),
    "fewer rows than groups": ([0, 1, 0, 0, 2, 0, 0, 0, 0, 1], 5, 24, 40),
    "wide": ([50, 0, 3, 40], 96, 256, 384),
}
WIDE = Chip(32, 16, 256, 128, 128, 2, 100 * MIB)
"""Matrices in several chunks of columns and pieces of chunks."""


def inputs(name, dtype="float32"):
    """x, w_gate, w_up, dy as they are after rounding to dtype, in float64; sizes."""
    sizes, rows, d, f = CASES[name]
    rng = np.random.default_rng(len(name))
    e = len(sizes)
    shapes = ((rows, d), (e, d, f), (e, d, f), (rows, f))
    made = [jnp.asarray(rng.standard_normal(s), dtype) for s in shapes]
    return made, jnp.asarray(sizes, jnp.int32)


def products(x, w, dy, sizes):
    """y, dx, dw in float64, one group after the other."""
    x, w, dy = (np.asarray(a, np.float64) for a in (x, w, dy))
    y, dx, dw = np.zeros_like(dy), np.zeros_like(x), np.zeros_like(w)
    start = 0
    for e, size in enumerate(np.asarray(sizes)):
        rows = slice(start, start + size)
        y[rows], dx[rows], dw[e] = x[rows] @ w[e], dy[rows] @ w[e].T, x[rows].T @ dy[rows]
        start += size
    return y, dx, dw


@functools.cache
def functions(chip, interpret, quick_jit):
    """Every function of the backend, by name; compiled once for each shape."""
    run = {"chip": chip, "interpret": interpret}

    def ours(x, w_gate, w_up, dy, sizes):
        h, gate, up = pallas_tpu.gated_forward(x, w_gate, w_up, sizes, "silu", **run)
        back = pallas_tpu.gated_backward(x, w_gate, w_up, sizes, gate, up, dy, "silu", **run)
        return {
            "y": pallas_tpu.matmul(x, w_gate, sizes, **run),
            "dx": pallas_tpu.input_gradient(dy, w_gate, sizes, **run),
            "dw": pallas_tpu.weight_gradient(x, dy, sizes, "float32", **run),
            **dict(zip(("h", "gate", "up"), (h, gate, up))),
            **dict(zip(("gated dx", "dw_gate", "dw_up"), back)),
        }

    return quick_jit(ours)


def wanted(x, w_gate, w_up, dy, sizes):
    """The same in float64."""
    y, dx, dw = products(x, w_gate, dy, sizes)
    up = products(x, w_up, dy, sizes)[0]
    with jax.enable_x64(True):
        arrays = [jnp.asarray(a, jnp.float64) for a in (y, up, dy)]
        h = np.asarray(gated.gated(*arrays[:2], "silu"))
        dgate, dup = (np.asarray(a) for a in gated.gated_gradients(*arrays, "silu"))
    _, through_gate, dw_gate = products(x, w_gate, dgate, sizes)
    _, through_up, dw_up = products(x, w_up, dup, sizes)
    return {
        "y": y,
        "dx": dx,
        "dw": dw,
        "h": h,
        "gate": y,
        "up": up,
        "gated dx": through_gate + through_up,
        "dw_gate": dw_gate,
        "dw_up": dw_up,
    }


def errors(arrays, sizes, quick_jit, chip=SMALL, interpret=True):
    got = functions(chip, interpret, quick_jit)(*arrays, sizes)
    assert {got[n].dtype for n in got if n != "dw"} == {arrays[0].dtype}
    want = wanted(*arrays, sizes)
    return {n: relative_error(got[n], want[n]) for n in want}


@pytest.mark.parametrize("name", CASES)
def test_kernels_equal_float64_sums(name, quick_jit):
    """Every function; rows that nobody owns give 0, and so do gradients of empty groups."""
    found = errors(*inputs(name), quick_jit, WIDE if name == "wide" else SMALL)
    assert max(found.values()) < 1e-5, found


@settings(max_examples=10, deadline=None, derandomize=True)
@given(ends=st.lists(st.integers(0, 100), min_size=4, max_size=4))
def test_groups_of_any_sizes(ends, quick_jit):
    sizes = jnp.asarray(np.diff(sorted(ends), prepend=0), jnp.int32)
    found = errors(inputs("uneven")[0], sizes, quick_jit)
    assert max(found.values()) < 1e-5, found


def test_bfloat16_is_rounded_only_once(quick_jit):
    """Float32 sums of the weights' gradient, of bfloat16 rows, are as exact as in float32."""
    found = errors(*inputs("uneven", "bfloat16"), quick_jit)
    assert found["dw"] < 1e-5
    assert max(found.values()) < 2e-2, found


def test_no_race_and_nothing_out_of_bounds(capfd):
    """The strict interpreter raises on what is out of bounds and prints what races. The gated form
    goes through every path: two matrices, rows that are prepared, two gradients of matrices."""
    arrays, sizes = inputs("rows left over")
    strict = pltpu.InterpretParams(detect_races=True, num_cores_or_threads=2)
    run = {"chip": SMALL._replace(tile=64, some=32), "interpret": strict}
    x, w_gate, w_up, dy = arrays
    h, gate, up = pallas_tpu.gated_forward(x, w_gate, w_up, sizes, "silu", **run)
    back = pallas_tpu.gated_backward(x, w_gate, w_up, sizes, gate, up, dy, "silu", **run)
    got = {"h": h, **dict(zip(("gated dx", "dw_gate", "dw_up"), back))}
    want = wanted(*arrays, sizes)
    for name, value in got.items():
        assert relative_error(value, want[name]) < 1e-5, name
    assert "RACE" not in capfd.readouterr().out


def test_work_is_one_part_more_for_each_boundary():
    """A tile is visited once for each group in it; empty groups and rows left over cost nothing."""
    rng = np.random.default_rng(5)
    for _ in range(20):
        sizes = rng.multinomial(900, rng.dirichlet(np.full(8, 0.5)))
        sizes[rng.integers(8)] = 0
        visits = make_visits(jnp.asarray(sizes, jnp.int32), 8, 128)
        count = int(visits.counts[0])
        lows, highs = (np.asarray(x)[:count] for x in (visits.lows, visits.highs))
        assert (highs - lows).sum() == sizes.sum()
        assert count <= 8 + (sizes > 0).sum() - 1
        computed = sum((-(-h // 16) - low // 16) * 16 for low, h in zip(lows, highs) if h > low)
        assert computed < sizes.sum() + 2 * 16 * (sizes > 0).sum()


def test_over_a_mesh_every_device_takes_its_share_of_the_rows(quick_jit):
    arrays, sizes = inputs("rows left over")
    mesh = jax.make_mesh((2, 2), ("fsdp", "expert"), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        rows = NamedSharding(mesh, PartitionSpec("fsdp"))
        placed = [jax.device_put(a, rows) if a.ndim == 2 else a for a in arrays]
        run = {"chip": SMALL, "interpret": True}

        @quick_jit
        def ours(x, w, _, dy, sizes):
            y = pallas_tpu.matmul(x, w, sizes, **run)
            return y, pallas_tpu.weight_gradient(x, dy, sizes, "float32", **run)

        y, dw = ours(*placed, sizes)
    want = wanted(*arrays, sizes)
    assert relative_error(y, want["y"]) < 1e-5
    assert relative_error(dw, want["dw"]) < 1e-5


def test_reasons_are_given(monkeypatch):
    (x, w, _, _), _ = inputs("uneven")
    assert "run on TPU" in pallas_tpu.supports("cpu", x, w)
    monkeypatch.setattr(pallas_tpu, "_chip", lambda: CHIPS["TPU v5 lite"])
    assert pallas_tpu.supports("tpu", x, w) == ""
    assert "not float16" in pallas_tpu.supports("tpu", x.astype("float16"), w)
    wide = jax.ShapeDtypeStruct((2, 100_001, 200_001), jnp.bfloat16)
    assert "do not fit" in pallas_tpu.supports("tpu", x, wide)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh):
        assert "100 rows cannot be cut into 8" in pallas_tpu.supports("tpu", x, w)


PROGRAM = """
import json, sys
import jax, jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jgpt.kernels.grouped_matmul import grouped_gated, grouped_matmul

topology = topologies.get_topology_desc(platform="tpu", topology_name=json.loads(sys.argv[1]))

found = {}

def check(name, mesh, rows, groups, d, f, dtype="bfloat16", weights="bfloat16"):
    def array(*shape, dtype=dtype, spec=PartitionSpec()):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    def run(x, gate, up, down, sizes):
        def layer(x, gate, up, down):
            h = grouped_gated(x, gate, up, sizes, backend="pallas_tpu")
            return grouped_matmul(h, down, sizes, backend="pallas_tpu")
        y, pull = jax.vjp(layer, x, gate, up, down)
        return y, pull(y)

    by_expert = PartitionSpec(mesh.axis_names[0])
    with jax.set_mesh(mesh):
        text = jax.jit(run).lower(
            array(rows, d, spec=by_expert), array(groups, d, f, dtype=weights, spec=by_expert),
            array(groups, d, f, dtype=weights, spec=by_expert),
            array(groups, f, d, dtype=weights, spec=by_expert), array(groups, dtype="int32"),
        ).compile().as_text()
    found[name] = text.count('custom_call_target="tpu_custom_call"')

one = jax.make_mesh((1,), ("expert",), devices=topology.devices[:1], axis_types=(AxisType.Auto,))
four = jax.make_mesh((4,), ("expert",), devices=topology.devices[:4], axis_types=(AxisType.Auto,))
check("ragged", one, 100, 5, 24, 40)
check("mixed, over a mesh", four, 1024, 8, 256, 384, weights="float32")
check("float32", one, 300, 4, 256, 384, "float32", "float32")
print(json.dumps(found))
"""


@pytest.mark.tpu_aot
@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_a_layer_and_its_gradients_compile_for_tpu(topology):
    pytest.importorskip("libtpu", reason="the TPU compiler: pip install libtpu")
    found = compiled(PROGRAM, topology)
    assert found == dict.fromkeys(("ragged", "mixed, over a mesh", "float32"), 6)


NAMES = """
import re
print(json.dumps(sorted(set(re.findall(r"grouped_[a-z_]+", text)))))
"""


@pytest.mark.tpu_aot
@pytest.mark.slow
def test_a_training_step_of_a_mixture_of_experts_runs_in_these_kernels():
    """Expert parallel, forward and backward, as `auto` chooses."""
    pytest.importorskip("libtpu", reason="the TPU compiler: pip install libtpu")
    config = {
        "model": {**MODEL, **MOE, "num_layers": 2},
        "mesh": {"data": 1, "fsdp": 2, "expert": 2},
        "data": {"sequence_length": 512, "batch_size": 8, "virtual_shards": 64},
    }
    names = compiled(STEP + NAMES, {"config": config, "topology": "v5e:2x2"})
    kernels = {
        "grouped_gated",
        "grouped_gated_input_gradient",
        "grouped_matmul",
        "grouped_matmul_input_gradient",
        "grouped_matmul_weight_gradient",
    }
    assert kernels <= set(names), names
