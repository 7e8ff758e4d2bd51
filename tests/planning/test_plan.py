"""Plans: what they say of a compiled step, what they refuse, and the command."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from rich.console import Console

from jgpt import models, sharding
from jgpt.config import ConfigError, from_config_dict
from jgpt.data import pipeline
from jgpt.planning import cache, even_load, report, search, step
from jgpt.planning.guess import divides
from jgpt.planning.programs import BATCH, bytes_per_device, describe, out_of_memory, state_bytes
from jgpt.planning.programs import compile_step as compile_for
from jgpt.planning.step import PlanError, decided, make_plan, one_slice
from jgpt.planning.topologies import parse_topology
from jgpt.tokenizers import build
from jgpt.training.assembly import make_steps

ROOT = pathlib.Path(__file__).parent.parent.parent
MODEL = {
    "vocab_size": 128,
    "num_layers": 2,
    "hidden_size": 32,
    "num_heads": 4,
    "num_kv_heads": 2,
    "intermediate_size": 64,
    "scan_layers": "on",
}
KEYS = (
    "config", "topology", "mesh", "fits", "memory_bytes_per_chip", "hbm_bytes_per_chip",
    "model_flops_per_chip", "matmul_flops_per_chip", "pallas_calls", "wire_bytes_per_chip",
    "estimated_step_seconds", "bound_by", "estimated_mfu",
)  # fmt: skip


def config_of(mesh=None, batch=16, **model):
    return from_config_dict(
        {
            "name": "planned",
            "model": {**MODEL, **model},
            "data": {"sequence_length": 64, "batch_size": batch},
            "mesh": mesh or {"data": 2, "fsdp": 4},
        }
    )


@pytest.fixture(scope="module")
def described():
    """The step on eight fake CPU devices, by the code that describes TPU programs."""
    config = config_of()
    return json.loads(json.dumps(describe(config, sharding.make_mesh(config.mesh))))


@pytest.fixture
def compiler(monkeypatch, tmp_path, described):
    """In the TPU compiler's place; the cases it was given."""
    given = []

    def compiled(case, timeout):
        given.append(case)
        return described

    monkeypatch.setattr(step, "_compiled", compiled)
    monkeypatch.setenv("JGPT_PLAN_CACHE", str(tmp_path))
    return given


def test_state_is_what_a_device_holds():
    """The bytes said of one device are those of the arrays that a run puts there."""
    config = config_of()
    mesh = sharding.make_mesh(config.mesh)
    _, state, batch = compile_for(config, mesh)
    said = state_bytes(state, batch)
    first = mesh.devices.flat[0]

    def held(tree):
        arrays = jax.tree.map(
            lambda leaf: jax.device_put(np.ones(leaf.shape, leaf.dtype), leaf.sharding), tree
        )
        shards = [s for a in jax.tree.leaves(arrays) for s in a.addressable_shards]
        return sum(s.data.nbytes for s in shards if s.device == first)

    assert said["parameters"] == held(state.params)
    assert said["optimizer"] == held(state.opt_state)
    assert said["optimizer"] >= 2 * said["parameters"], "AdamW keeps two moments"


def test_state_in_the_hosts_memory_is_none_of_the_chips():
    """Offloaded moments are named apart; what is left on the chip is the counters."""

    def sizes(offload):
        config = config_of()
        optimizer = dataclasses.replace(config.optimizer, offload=offload)
        config = dataclasses.replace(config, optimizer=optimizer)
        state = make_steps(config, sharding.make_mesh(config.mesh))[1]
        return state_bytes(state, {}), bytes_per_device(state, on_host=True)

    kept, nothing = sizes(False)
    offloaded, host = sizes(True)
    assert nothing == 0 and host > 0.9 * kept["optimizer"]
    assert offloaded == {**kept, "optimizer": kept["optimizer"] - host}


def test_parts_add_up_to_the_total(compiler):
    plan = make_plan(config_of(), parse_topology("v5e-8"))
    parts = sum(v for name, v in plan.memory.items() if name != "total")
    assert parts == pytest.approx(plan.memory["total"], rel=0.01)
    assert plan.memory["activations"] > 0


def test_products_agree_with_the_model_flops(compiler):
    """Attention is materialised on this CPU, so its whole square is multiplied, not the half."""
    plan = make_plan(config_of(), parse_topology("v5e-8"))
    assert plan.model_flops < plan.matmul_flops < 1.6 * plan.model_flops


def test_a_plan_is_kept_until_something_changes(compiler):
    topology = parse_topology("v5e-8")
    make_plan(config_of(), topology)
    make_plan(config_of(), topology)
    assert len(compiler) == 1
    make_plan(config_of(), topology, fresh=True)
    make_plan(config_of(remat="full"), topology)
    make_plan(config_of(), parse_topology("v6e-8"))
    assert len(compiler) == 4
    assert cache.source_digest() in cache.versions().values()


def test_slices_are_data_parallel(compiler):
    """Two slices compute half a batch each and send each other their gradients."""
    one = make_plan(config_of(), parse_topology("v5e-8"))
    two = make_plan(config_of({"data": 4, "fsdp": 4}, batch=32), parse_topology("2xv5e-8"))
    assert compiler[0] == compiler[-1] and two.mesh["data"] == 4
    assert two.model_flops == one.model_flops
    assert two.wire_bytes["between-slices"] == one.memory["parameters"]
    with pytest.raises(ConfigError, match="slices"):
        one_slice(config_of({"data": 1, "fsdp": 16}), parse_topology("2xv5e-8"))


MIXTURE = {"ffn_pattern": ("moe",), "moe": {"num_experts": 8, "top_k": 2, "exchange_factor": 1.5}}


@pytest.mark.parametrize(
    ("mesh", "moe", "room"),
    [
        ({"data": 1, "fsdp": 8}, {}, 1.0),
        ({"data": 1, "fsdp": 2, "expert": 4}, {"dispatch": "capacity"}, 1.0),
        # 2 x 4096 tokens a device, 2 experts each: 4 blocks of 4096 rows for an even load, each
        # filled up by its half and one row, to a multiple of 128.
        ({"data": 1, "fsdp": 2, "expert": 4}, {}, (1.5 * 4096 + 128) / 4096),
    ],
)
def test_rows_without_a_token_are_not_counted_as_multiplied(mesh, moe, room):
    config = config_of(mesh, 16, **MIXTURE | {"moe": MIXTURE["moe"] | moe})
    config = dataclasses.replace(
        config, data=dataclasses.replace(config.data, sequence_length=4096)
    )
    assert even_load.room_over_even_load(config, sharding.make_mesh(config.mesh)) == room
    flops = {"jvp_grouped_matmul_": 300.0, "attention_forward": 500.0}
    assert even_load.spare_flops(flops, room) == pytest.approx(300 - 300 / room)


def test_the_estimate_takes_loads_to_be_even(described):
    """What kernels declare stays as it is; time is without the rows that they skip."""
    declared = {"pallas_flops": 9e9, "pallas_flops_by_kernel": {"grouped_x": 9e9}}
    found = described | {"counts": described["counts"] | declared}
    topology = parse_topology("v5e-8")
    plans = [
        step._plan(config_of(), topology, found | {"room_over_even_load": room})
        for room in (1.0, 1.5)
    ]
    assert [plan.pallas_flops for plan in plans] == [9e9, 9e9]
    assert [plan.spare_flops for plan in plans] == [0, pytest.approx(3e9)]
    saved = plans[0].estimate.compute - plans[1].estimate.compute
    assert saved == pytest.approx(3e9 / topology.chip.peak_flops, rel=1e-6)


def test_json_has_the_agreed_form(compiler, described, monkeypatch):
    plan = make_plan(config_of(), parse_topology("v5e-8"))
    record = json.loads(report.as_json(plan))
    assert tuple(record)[: len(KEYS)] == KEYS
    assert record["fits"] and record["reasons"] == {}
    assert record["wire_bytes_per_chip"]["total"] == sum(plan.wire_bytes.values())
    assert 0 < record["estimated_mfu"] <= 1
    large = {"needed": 40 * 2**30, "available": 15 * 2**30}
    few = {"model": described["model"], "mesh": described["mesh"], "seconds": 1.0}
    monkeypatch.setattr(step, "_compiled", lambda *_: {**few, "out_of_memory": large})
    plan = make_plan(config_of(), parse_topology("v5e-8"), fresh=True)
    record = json.loads(report.as_json(plan))
    assert not record["fits"] and record["memory_bytes_per_chip"]["total"] == 40 * 2**30
    for name in KEYS:
        unknown = record[name] is None
        assert not unknown or record["reasons"][name], f"{name} is null without a reason"
    assert "40.00 GiB of 15.00 GiB" in report.verdict(plan)


def test_tables_and_plot(compiler, tmp_path):
    plan = make_plan(config_of(), parse_topology("v5e-8"))
    console = Console(width=120, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    report.show(plan, console)
    text = console.export_text()
    assert "Estimated, not measured" in text and "activations" in text
    report.plot(plan, tmp_path / "memory.png")
    assert (tmp_path / "memory.png").stat().st_size > 1000


def test_the_search_orders_what_it_compiled(compiler, capsys):
    config, topology = decided(config_of()), parse_topology("v5e-8")
    found = list(search.candidates(config, topology))
    assert len(found) > 20
    assert all(divides(c, dataclasses.asdict(c.mesh)) for c in found)
    console = Console(file=open(os.devnull, "w"))  # noqa: SIM115
    best = search.run(config, topology, 3, console)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and search.overrides(best.config) == lines[0]


def test_the_search_prefers_what_fits(described):
    fits = step._plan(config_of(), parse_topology("v5e-8"), described)
    few = {"model": described["model"], "mesh": described["mesh"], "seconds": 1.0}
    sizes = {"out_of_memory": {"needed": 2, "available": 1}}
    does_not = step._plan(config_of(), parse_topology("v5e-8"), few | sizes)
    assert sorted([does_not, fits], key=search.rank) == [fits, does_not]


def test_messages_of_full_memory_are_read():
    new = (
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory "
        "required for HLO temporaries (279.49G) exceeds available HBM (15.75G). HLO module: f."
    )
    old = "Ran out of memory in memory space hbm. Used 17.50G of 15.75G hbm. Exceeded by 1.75G."
    assert out_of_memory(new) == {"needed": int(279.49 * 2**30), "available": int(15.75 * 2**30)}
    assert out_of_memory(old)["needed"] == int(17.5 * 2**30)
    assert out_of_memory("INTERNAL: something else") is None


@pytest.mark.parametrize(
    ("mesh", "batch", "topology", "message"),
    [
        ({"data": 1, "fsdp": 3}, 16, "v5e-8", "does not fit 8 devices"),
        ({"data": 1, "fsdp": -1}, 4, "v5e-8", "data.batch_size"),
    ],
)
def test_a_config_that_cannot_be_cut_is_refused(mesh, batch, topology, message):
    config = config_of(mesh, batch)
    with pytest.raises(ConfigError, match=message) as caught:
        part = one_slice(decided(config), parse_topology(topology))
        compile_for(part, sharding.make_mesh(part.mesh))
    assert "\n" not in str(caught.value)


def test_without_the_compiler_there_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("JGPT_PLAN_CACHE", str(tmp_path))
    monkeypatch.setattr(step.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PlanError, match=r"pip install 'jgpt\[tpu\]'"):
        make_plan(config_of(), parse_topology("v5e-8"))


def test_the_planned_batch_is_the_one_that_the_pipeline_makes():
    config = from_config_dict(
        {"tokenizer": {"kind": "byte"}, "data": {"batch_size": 2, "sequence_length": 32}}
    )
    corpus = pipeline.open_corpus(config.data)
    tokenizer = build(config.tokenizer, corpus.training_texts, None)
    batches = pipeline.training_batches(corpus, tokenizer, config.data)
    try:
        batch = next(batches)
    finally:
        batches.close()
    assert {name: str(array.dtype) for name, array in batch.items()} == BATCH
    assert {array.shape for array in batch.values()} == {(2, 32)}


def run_command(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "jgpt.plan", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_the_command_refuses_in_one_line():
    done = run_command("--config=configs/llama_1b.py", "--topology=v5e-17")
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "v5e-17" in done.stderr and "choose one of" in done.stderr


@pytest.mark.slow
@pytest.mark.tpu_aot
def test_a_plan_for_real_chips(tmp_path):
    pytest.importorskip("libtpu", reason="the TPU compiler: pip install libtpu")
    overrides = {**MODEL, "hidden_size": 256, "dtype": "bfloat16", "intermediate_size": 512}
    overrides["remat"] = "dots"
    done = run_command(
        "--config=configs/default.py",
        *(f"--config.model.{name}={value}" for name, value in overrides.items()),
        "--config.data.sequence_length=512",
        "--config.mesh.fsdp=4",
        "--topology=v5e-4",
        "--json",
        f"--plot={tmp_path / 'memory.png'}",
        JGPT_PLAN_CACHE=str(tmp_path),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads(done.stdout.splitlines()[-1])
    assert record["fits"] and record["pallas_calls"] >= 4, "attention and loss run in our kernels"
    assert record["pallas_flops_per_chip"] > 0
    kernels = record["pallas_calls_by_kernel"]
    assert kernels["attention_forward"] == MODEL["num_layers"], "attention is not computed again"
    executed = record["matmul_flops_per_chip"] + record["pallas_flops_per_chip"]
    assert record["model_flops_per_chip"] <= executed < 1.5 * record["model_flops_per_chip"]
    memory = record["memory_bytes_per_chip"]
    parts = sum(size for name, size in memory.items() if name != "total" and size)
    assert parts == pytest.approx(memory["total"], rel=0.02)
    model = from_config_dict({"model": overrides}).model
    weights = models.count_params(model)[0]
    # float32, cut over four chips but for norms; both moments are as large.
    assert memory["parameters"] == pytest.approx(weights, rel=0.02)
    assert memory["optimizer"] == pytest.approx(2 * weights, rel=0.02)
    assert record["wire_bytes_per_chip"]["all-gather"] > 0, "weights are gathered"
    assert (tmp_path / "memory.png").exists() and list(tmp_path.glob("*.json"))
