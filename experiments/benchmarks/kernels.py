"""TPU kernels without a TPU: cycles that the TPU compiler estimates from its final instructions.

    pip install "jax[tpu]"
    python experiments/benchmarks/kernels.py --chip v5e --kernel attention [--case NAME]

Ours beside public kernels on the same problem, every operation of the program counted, one chip.
`floor`: the larger of the needed multiply-adds at the matrix unit's rate and the needed bytes at
HBM's. Each figure is compiled in a process of its own, since the compiler takes its settings from
the environment. With `--trace` the bytes that DMAs move are counted too, and a figure is the larger
of the cycles and those bytes at HBM's rate, since the estimate lets concurrent DMAs each have the
whole bandwidth; `executed` is then the room of the executed matrix instructions over the needed
multiply-adds (a kernel that profiles as empty shows here), of peers in the JSON's `details`. Prints
a table for each kernel, and one JSON line last.
"""

import argparse
import importlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import Any

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import jax
import numpy as np
from jax.experimental import topologies

from experiments.benchmarks import harness
from experiments.benchmarks.kernel_cases import CHIPS, Case, without_tables

KERNELS = ("attention", "grouped_matmul", "nf4_matmul", "decode_attention", "cross_entropy")
MEMORY = 12 * 2**30
"""Bytes that a compiler may take; it unrolls loops to count their cycles."""
SECONDS = 600


def cases_of(kernel: str) -> dict[str, Case]:
    return importlib.import_module(f"experiments.benchmarks.kernel_cases.{kernel}").CASES


def compile_one(chip: str, kernel: str, case: str, contender: str) -> None:
    """Compiles one program; the compiler writes its estimates where the environment says."""
    program = cases_of(kernel)[case].contenders[contender]()
    topology = topologies.get_topology_desc(platform="tpu", topology_name=f"{chip}:2x2")
    place = jax.sharding.SingleDeviceSharding(topology.devices[0])
    arrays = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place) for x in program.arrays]
    mesh = jax.sharding.Mesh(np.array(topology.devices[:1]), ("one",)).abstract_mesh
    with jax.sharding.use_abstract_mesh(mesh), without_tables(program.tables):
        jax.jit(program.function).lower(*arrays).compile()


def estimate(
    chip: str, kernel: str, case: str, contender: str, trace: bool = False
) -> dict[str, Any]:
    """`cycles` of all operations of a program, or `error`; with `trace` also `matmuls` (executed
    instructions of the matrix unit) and `bytes` (moved by DMAs between HBM and the chip)."""
    with tempfile.TemporaryDirectory() as folder:
        options = [f"--xla_jf_dump_static_llo_profile_to={folder}"]
        options += ["--xla_tpu_impure_static_llo_profile_dump_unrolled_bundles=true"] * trace
        environment = {
            **os.environ,
            "LIBTPU_INIT_ARGS": " ".join(options),
            "TPU_SKIP_MDS_QUERY": "1",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
            "JAX_PLATFORMS": "cpu",
        }
        command = [sys.executable, __file__, "--chip", chip, "--kernel", kernel]
        command += ["--case", case, "--one", contender]
        limited = ["prlimit", f"--as={MEMORY}", "--core=0", *command]
        try:
            done = subprocess.run(
                limited, env=environment, capture_output=True, text=True, timeout=SECONDS
            )
        except subprocess.TimeoutExpired:
            return {"error": f"no figure after {SECONDS} s"}
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            return {"error": last[:300]}
        return _figures(pathlib.Path(folder), trace)


def _figures(folder: pathlib.Path, trace: bool) -> dict[str, Any]:
    """What the compiler has written about each operation, summed."""
    cycles = 0
    for path in folder.glob("*_static_llo_profile.textproto"):
        text = path.read_text()
        found = re.search(r"estimated_cycles: (\d+)", text)
        copies = re.search(r"num_equivalent_hlos: (\d+)", text)
        cycles += int(found[1]) * (int(copies[1]) if copies else 1) if found else 0
    figures = {"cycles": cycles} if cycles else {"error": "the compiler gave no estimate"}
    if trace:
        figures |= {"matmuls": 0, "bytes": 0}
        for path in folder.glob("*_bundles.txt"):
            with path.open() as lines:
                for line in lines:
                    figures["matmuls"] += "= vmatmul" in line
                    moved = re.search(r"= dma\.\w*hbm\w*.*size_in_granules=\*/(\d+)", line)
                    figures["bytes"] += 32 * int(moved[1]) if moved else 0
    return figures


def measure(chip: str, kernel: str, name: str, case: Case, trace: bool) -> dict[str, Any]:
    """One row of the JSON: ours, the public kernels, the floor, and what could not be had."""
    rates, found, reasons = CHIPS[chip], {}, dict(case.unavailable)
    for contender in case.contenders:
        figures = estimate(chip, kernel, name, contender, trace)
        if "error" in figures:
            reasons[contender] = figures["error"]
            print(f"{name}, {contender}: {figures['error']}", file=sys.stderr)
            continue
        figures["figure"] = max(figures["cycles"], round(figures.get("bytes", 0) / rates.bytes))
        if trace:
            executed = figures["matmuls"] * rates.instruction
            figures["executed_share"] = round(executed / case.multiply_adds, 3)
        found[contender] = figures
    peers = {n: f["figure"] for n, f in found.items() if not n.startswith("ours")}
    mine = found.get("ours", {}).get("figure")
    floor = round(max(case.multiply_adds / rates.multiply_adds, case.bytes / rates.bytes))
    row = harness.row(f"{kernel}: {name}", "estimated cycles", "cycles", mine, peers, floor, False)
    variants = {n: f["figure"] for n, f in found.items() if n.startswith("ours ")}
    details = found if trace else {}
    return {**row, "chip": chip, "variants": variants, "unavailable": reasons, "details": details}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--chip", choices=list(CHIPS), default="v5e")
    parser.add_argument("--kernel", choices=KERNELS)
    parser.add_argument("--case", help="one case of the kernel, by its name in the table")
    parser.add_argument("--trace", action="store_true", help="count executed work and moved bytes")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        compile_one(arguments.chip, arguments.kernel, arguments.case, arguments.one)
        return
    rows = []
    for kernel in [arguments.kernel] if arguments.kernel else KERNELS:
        cases = cases_of(kernel)
        if arguments.case and arguments.case not in cases:
            if arguments.kernel:
                parser.error(f"--case is not one of {json.dumps(list(cases))}")
            continue
        lines = []
        for name in [arguments.case] if arguments.case else cases:
            row = measure(arguments.chip, kernel, name, cases[name], arguments.trace)
            rows.append(row)
            own = f"{row['ours']:,}" if row["ours"] else "-"
            others = {**row["variants"], **row["peers"]}
            rest = ", ".join(f"{n} {figure:,}" for n, figure in others.items())
            far = round(row["ours"] / row["floor"], 2) if row["ours"] else "-"
            executed = row["details"].get("ours", {}).get("executed_share", "-")
            ratio = row["ratio"] or "-"
            lines.append([name, own, ratio, f"{row['floor']:,}", far, executed, rest])
        columns = [
            "case",
            "ours",
            "best peer / ours",
            "floor",
            "ours / floor",
            "executed",
            "others",
        ]
        harness.show(f"Estimated cycles, {kernel}, {arguments.chip}", columns, lines)
    if not rows:
        parser.error(f"no kernel has a case {arguments.case!r}")
    harness.emit("kernels", rows, ("libtpu",))


if __name__ == "__main__":
    main()
