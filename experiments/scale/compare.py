"""Whole training steps compiled ahead of time for TPUs, beside MaxText's for the same two models.

    python experiments/scale/compare.py [--case NAME ...]

Per chip and step: memory, FLOPs of XLA's matrix products (Pallas kernels apart), bytes sent. Both
sides: Python 3.12, jax 0.11.1, libtpu 0.0.46, no TPU; 2,048 tokens a row, 4 rows a chip, AdamW,
float32 weights, bfloat16 compute. MaxText 0.2.5 in its own default, which computes every layer
again (`remat='full'`); its program was read by a counter of its own. The mixture's mesh is fsdp 4 x
expert 4 where nothing else is said. Minutes per case, unless `jgpt.plan` has it kept. Prints each
case as soon as it is there, a table, and one JSON line last.
"""

import argparse
import importlib
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from experiments.benchmarks import harness
from jgpt.config import from_config_dict
from jgpt.planning.step import make_plan
from jgpt.planning.topologies import parse_topology

GIB = 2**30
DENSE_16, DENSE_64 = (4.21, 6.487e13, 6.57), (2.33, 6.487e13, 9.19)
MOE_16, MOE_16_CAPACITY = (5.13, 4.96e12, 4.57), (4.16, 4.207e13, 8.75)
MOE_64 = (5.55, 4.96e12, 11.70)
ON_64 = {"data.batch_size": 256}
CAPACITY = {"model.moe.dispatch": "capacity", "model.remat": "full"}
CASES = {
    "dense v5e-16, remat dots": ("llama_1b", "v5e-16", {}, DENSE_16),
    "dense v5e-16, remat full": ("llama_1b", "v5e-16", {"model.remat": "full"}, DENSE_16),
    "dense v5e-64, remat dots": ("llama_1b", "v5e-64", ON_64, DENSE_64),
    "dense v5e-64, remat full": (
        "llama_1b",
        "v5e-64",
        {**ON_64, "model.remat": "full"},
        DENSE_64,
    ),
    "dense v5e-64, data 4 x fsdp 16, remat dots": (
        "llama_1b",
        "v5e-64",
        {**ON_64, "mesh.data": 4, "mesh.fsdp": 16},
        DENSE_64,
    ),
    "moe v5e-16, remat dots": ("moe_8x", "v5e-16", {"model.remat": "dots"}, MOE_16),
    "moe v5e-16, remat full": ("moe_8x", "v5e-16", {"model.remat": "full"}, MOE_16),
    "moe v5e-16, capacity 1.25, remat full": ("moe_8x", "v5e-16", CAPACITY, MOE_16_CAPACITY),
    "moe v5e-64, fsdp 8 x expert 8, remat dots": (
        "moe_8x",
        "v5e-64",
        {**ON_64, "mesh.expert": 8, "model.remat": "dots"},
        MOE_64,
    ),
    "moe v5e-64, fsdp 8 x expert 8, remat full": (
        "moe_8x",
        "v5e-64",
        {**ON_64, "mesh.expert": 8, "model.remat": "full"},
        MOE_64,
    ),
}
"""Config, topology, overrides, and MaxText's GiB, FLOPs and GB sent."""
METRICS = (("memory", "GiB"), ("matmul FLOPs without Pallas", "FLOP"), ("wire", "GB"))


def planned(name, overrides, topology):
    """The plan of a config with these overrides."""
    values = importlib.import_module(f"configs.{name}").get_config()
    values.update_from_flattened_dict(overrides)
    return make_plan(from_config_dict(values), parse_topology(topology))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", action="append", choices=CASES, help="all by default")
    rows, lines = [], []
    for case in parser.parse_args().case or CASES:
        name, topology, overrides, peer = CASES[case]
        plan = planned(name, overrides, topology)
        ours = (
            plan.memory["total"] / GIB,
            plan.matmul_flops,
            sum(plan.wire_bytes.values()) / 1e9,
        )
        shown = zip(METRICS, ours, peer, strict=True)
        figures = (f"{name} {our:.4g} / {theirs:.4g} {unit}" for (name, unit), our, theirs in shown)
        print(f"{case}, ours / MaxText: {', '.join(figures)}", flush=True)
        for (metric, unit), our, theirs in zip(METRICS, ours, peer, strict=True):
            rows.append(
                harness.row(case, metric, unit, our, {"MaxText": theirs}, higher_is_better=False)
            )
            lines.append([case, f"{metric}, {unit}", our, theirs, rows[-1]["ratio"]])
    harness.show("per chip and step", ["case", "figure", "ours", "MaxText", "MaxText/ours"], lines)
    harness.emit("scale", rows, ("libtpu",))


if __name__ == "__main__":
    main()
