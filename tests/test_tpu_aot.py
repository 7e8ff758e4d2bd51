"""Whole training steps compiled by the real TPU compiler for described topologies, no TPU needed.

Each case runs in a process of its own: the compiler takes its settings from the environment.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PROGRAM = """
import json, sys
import jax, jax.numpy as jnp
from jax.experimental import topologies
from jgpt import sharding
from jgpt.config import from_config_dict
from jgpt.training.assembly import make_steps, placed

case = json.loads(sys.argv[1])
config = from_config_dict(case["config"])
topology = topologies.get_topology_desc(platform="tpu", topology_name=case["topology"])
mesh = sharding.make_mesh(config.mesh, topology.devices)
data = config.data
_, state, step, _ = make_steps(config, mesh)
with placed(mesh):
    place = sharding.batch_sharding(mesh)
    shape = (data.batch_size, data.sequence_length)
    kinds = dict(inputs="int32", targets="int32", loss_weights="float32", positions="int32",
                 segment_ids="int32", characters="int32")
    batch = {n: jax.ShapeDtypeStruct(shape, jnp.dtype(k), sharding=place) for n, k in kinds.items()}
    compiled = step.lower(state, batch).compile()
memory = compiled.memory_analysis()
text = compiled.as_text()
print(json.dumps({
    "bytes": memory.argument_size_in_bytes + memory.temp_size_in_bytes,
    "collectives": [n for n in ("all-reduce", "all-gather", "reduce-scatter", "all-to-all",
                                "collective-permute") if f" {n}" in text],
    "while": " while(" in text,
    "kernels": text.count('custom_call_target="tpu_custom_call"'),
}))
"""
MODEL = {
    "vocab_size": 1024,
    "num_layers": 4,
    "hidden_size": 256,
    "num_heads": 4,
    "num_kv_heads": 2,
    "intermediate_size": 512,
    "dtype": "bfloat16",
    "scan_layers": "on",
}
MOE = {"ffn_pattern": ("dense", "moe"), "moe": {"num_experts": 4, "top_k": 2}}
CASES = {
    "dense, fsdp": {"model": MODEL, "mesh": {"data": 1, "fsdp": 4}},
    "dense, tensor parallel": {
        "model": {**MODEL, "remat": "full"},
        "mesh": {"data": 2, "tensor": 2},
    },
    "mixture of experts, data parallel": {"model": {**MODEL, **MOE}, "mesh": {"data": 4}},
    "mixture of experts, capacity, expert parallel": {
        "model": {**MODEL, **MOE, "moe": {**MOE["moe"], "dispatch": "capacity"}},
        "mesh": {"data": 2, "expert": 2},
    },
    "dense, ring attention": {
        "model": {**MODEL, "remat": "full"},
        "mesh": {"data": 1, "fsdp": 4, "context": 4},
        "topology": "v5e:4x4",
    },
}


def compiled(program, case):
    """What `program` prints last, run with the TPU compiler on `case`."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(case)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.tpu_aot
@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_training_step_compiles_for_tpu(name):
    pytest.importorskip("libtpu", reason="the TPU compiler: pip install libtpu")
    data = {"sequence_length": 512, "batch_size": 8, "virtual_shards": 64}
    sections = {n: CASES[name][n] for n in ("model", "mesh")}
    topology = CASES[name].get("topology", "v5e:2x2")
    facts = compiled(PROGRAM, {"config": {**sections, "data": data}, "topology": topology})
    assert facts["bytes"] < 2**30
    assert facts["kernels"] >= 2, "attention runs in our kernels, forward and backward"
    assert facts["while"], "scanned layers compile to a loop"
    assert facts["collectives"], "a step on several chips communicates"
    if "context" in sections["mesh"]:
        assert "collective-permute" in facts["collectives"]
        assert facts["kernels"] >= 4, "keys at home and keys of the others"


SCATTERED = """
import json, sys
import jax
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec
from jgpt import sharding
from jgpt.config import MeshConfig
from jgpt.layers.expert_parallel import _scattered

topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:4x4")
mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=4, expert=4), topology.devices)
place = PartitionSpec(("fsdp", "expert"))
found = []
for shape, axis in json.loads(sys.argv[1]):
    run = jax.shard_map(lambda dy: _scattered(2 * dy[0], ("fsdp",), axis)[None], mesh=mesh,
                        in_specs=place, out_specs=place, check_vma=False)
    dy = jax.ShapeDtypeStruct((16, *shape), "bfloat16", sharding=NamedSharding(mesh, place))
    text = jax.jit(run).lower(dy).compile().as_text()
    found.append(["reduce-scatter" in text, " all-reduce(" in text])
print(json.dumps(found))
"""


@pytest.mark.tpu_aot
@pytest.mark.slow
def test_gradients_of_experts_cost_a_reduce_scatter():
    """One expert's matrix that is cut along its rows, along its columns, one tile a device."""
    pytest.importorskip("libtpu", reason="the TPU compiler: pip install libtpu")
    cases = [((1, 512, 1024), 1), ((1, 1024, 512), 2), ((2, 1024, 2048), 2)]
    assert compiled(SCATTERED, cases) == [[True, False]] * len(cases)


LAYER = """
import json, sys
import jax, jax.numpy as jnp
from flax.core import meta
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec
from jgpt import sharding
from jgpt.config import MeshConfig, ModelConfig, MoEConfig
from jgpt.layers.moe import MoE

found = []
for name, form in json.loads(sys.argv[1]):
    topology = topologies.get_topology_desc(platform="tpu", topology_name=name)
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=2, expert=-1), topology.devices)
    moe = MoEConfig(num_experts=8, top_k=2, exchange=form)
    config = ModelConfig(hidden_size=256, intermediate_size=256, dtype="bfloat16", moe=moe,
                         ffn_pattern=("moe",))
    layer = MoE(config)
    x = jax.ShapeDtypeStruct((8, 256, 256), jnp.bfloat16)
    boxed = jax.eval_shape(layer.init, jax.random.key(0), x)["params"]
    place = lambda leaf, axes: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, sharding.spec(axes)))
    params = jax.tree.map(lambda box: place(box.value, box.names), boxed,
                          is_leaf=lambda box: isinstance(box, meta.AxisMetadata))
    loss = lambda params, x: jnp.sum(layer.apply({"params": params}, x)[0].astype("float32") ** 2)
    with jax.set_mesh(mesh):
        text = jax.jit(jax.grad(loss, (0, 1))).lower(
            params, place(x, ("batch", "length", None))).compile().as_text()
    found.append({
        "rows": [text.count(f" {n}(") + text.count(f" {n}-start(")
                 for n in ("ragged-all-to-all", "all-to-all")],
        "kernels": text.count('custom_call_target="tpu_custom_call"'),
    })
torus = topologies.get_topology_desc(platform="tpu", topology_name="v5p:4x4x4")
found.append(dict(sharding.make_mesh(MeshConfig(data=1, fsdp=8, expert=8), torus.devices).shape))
print(json.dumps(found))
"""


@pytest.mark.tpu_aot
@pytest.mark.slow
def test_rows_reach_their_experts_in_both_forms():
    """By both collectives, forward and backward, with the experts' products in our kernels."""
    pytest.importorskip("libtpu", reason="the TPU compiler: pip install libtpu")
    ragged, padded, mesh = compiled(LAYER, [["v5e:2x2", form] for form in ("ragged", "padded")])
    assert ragged["rows"][0] >= 4, "there and back, and their gradients"
    assert padded["rows"][0] == 0 and padded["rows"][1] >= 4
    assert min(ragged["kernels"], padded["kernels"]) >= 3, "grouped products, and their gradients"
    assert mesh["fsdp"] == mesh["expert"] == 8, "axes that share a dimension of the torus"
