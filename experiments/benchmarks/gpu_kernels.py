"""Attention and grouped matmul on NVIDIA GPUs: time where there is a GPU, else what is compiled.

    python experiments/benchmarks/gpu_kernels.py [--case NAME]
    python experiments/benchmarks/gpu_kernels.py --compile h100|a100|l4 [--case NAME]

With a GPU: medians of alternating runs beside cuDNN, XLA and jax's own Pallas kernels, and the
products' rate. With `--compile`, without one: programs are compiled for a described GPU, and each
kernel's registers, spilled bytes and SASS instructions are counted. That needs

    pip install jax-cuda12-plugin jax-cuda12-pjrt nvidia-cuda-nvcc-cu12 nvidia-cuda-nvdisasm

(`jax[cuda12]` has all but the last) and tells neither time nor occupancy. Prints a table, and one
JSON line last.
"""

import argparse
import contextlib
import dataclasses
import functools
import glob
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
DUMP = tempfile.mkdtemp(prefix="gpu_kernels")
COMPILING = "--compile" in sys.argv
if COMPILING:
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = f"--xla_dump_to={DUMP} {os.environ.get('XLA_FLAGS', '')}"

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.experimental.pallas.ops.gpu import attention as jax_attention

from experiments.benchmarks import harness
from jgpt.kernels.attention import pallas_gpu
from jgpt.kernels.grouped_matmul import pallas_gpu as grouped
from jgpt.kernels.grouped_matmul import ragged
from jgpt.typing import AlibiBias, Mask

SASS = "HGMMA", "HMMA", "FFMA", "MUFU", "LDGSTS", "STL", "LDL"


@dataclasses.dataclass(frozen=True)
class Target:
    """A GPU as its data sheet describes it."""

    name: str
    capability: tuple[int, int]
    cores: int
    shared_kib: int
    l2_mib: int
    memory_gb: int
    bandwidth: int
    clock_ghz: float

    def description(self) -> str:
        """What XLA compiles for, in the text form of its GpuTargetConfigProto."""
        major, minor = self.capability
        info = {
            "threads_per_block_limit": 1024,
            "threads_per_warp": 32,
            "shared_memory_per_block": 48 << 10,
            "shared_memory_per_core": (self.shared_kib + 1) << 10,
            "shared_memory_per_block_optin": self.shared_kib << 10,
            "threads_per_core_limit": 1536 if self.shared_kib < 128 else 2048,
            "core_count": self.cores,
            "fpus_per_core": 64 if self.capability == (8, 0) else 128,
            "block_dim_limit_x": 2**31 - 1,
            "block_dim_limit_y": 65535,
            "block_dim_limit_z": 65535,
            "memory_bandwidth": self.bandwidth,
            "l2_cache_size": self.l2_mib << 20,
            "clock_rate_ghz": self.clock_ghz,
            "device_memory_size": self.memory_gb * 10**9,
            "cuda_compute_capability": f"{{ major: {major} minor: {minor} }}",
            "registers_per_core_limit": 65536,
            "registers_per_block_limit": 65536,
        }
        body = " ".join(
            f"{key} {value}" if str(value).startswith("{") else f"{key}: {value}"
            for key, value in info.items()
        )
        return (
            f'gpu_device_info {{ {body} }} platform_name: "CUDA" '
            "dnn_version_info { major: 9 minor: 8 } runtime_version { major: 12 minor: 9 } "
            f'device_description_str: "{self.name}"'
        )


TARGETS = {
    "h100": Target("NVIDIA H100 80GB HBM3", (9, 0), 132, 227, 50, 80, 3_352_000_000_000, 1.98),
    "a100": Target("NVIDIA A100-SXM4-80GB", (8, 0), 108, 163, 40, 80, 2_039_000_000_000, 1.41),
    "l4": Target("NVIDIA L4", (8, 9), 58, 99, 48, 24, 300_000_000_000, 2.04),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One problem: contenders by name, all of the same arrays; `flops` are what it needs."""

    arrays: tuple[jax.ShapeDtypeStruct, ...]
    contenders: dict[str, Callable[..., Any]]
    flops: float


def shaped(*shape: int, dtype: str = "bfloat16") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def with_gradients(function: Callable, count: int = 3) -> Callable:
    """The result and the gradients of the first `count` arguments."""

    def both(*arrays):
        out, pull = jax.vjp(lambda *x: function(*x, *arrays[count:]), *arrays[:count])
        return out, pull(out)

    return both


def attention_case(
    length: int = 4096,
    heads: int = 16,
    kv_heads: int = 16,
    width: int = 128,
    batch: int = 2,
    dtype: str = "bfloat16",
    backward: bool = True,
    documents: bool = False,
    everything: bool = False,
    window: int = 0,
) -> Case:
    scale, mask = width**-0.5, Mask(window=window)
    q, k = (
        shaped(batch, length, heads, width, dtype=dtype),
        shaped(batch, length, kv_heads, width, dtype=dtype),
    )
    contenders = {}

    def ours(q, k, v, ids, slopes):
        made, options = mask, {}
        if documents:
            made = dataclasses.replace(mask, q_segment_ids=ids, kv_segment_ids=ids)
        if everything:
            options = {"softcap": 30.0, "bias": AlibiBias(slopes), "sinks": slopes}
        return pallas_gpu.attention(q, k, v, made, scale=scale, **options)

    def platform(q, k, v, ids, slopes, implementation):
        return jax.nn.dot_product_attention(
            q,
            k,
            v,
            scale=scale,
            is_causal=True,
            local_window_size=(window - 1, 0) if window else None,
            implementation=implementation,
        )

    def jax_pallas(q, k, v, ids, slopes):
        sizes = jax_attention.BlockSizes(128, 64, 64, 64, 64, 64)
        sequence_ids = ids if documents else None
        return jax_attention.mha(q, k, v, sequence_ids, scale, True, block_sizes=sizes)

    contenders["ours"] = ours
    if not documents and not everything:
        if not COMPILING:
            contenders["cudnn"] = functools.partial(platform, implementation="cudnn")
        contenders["xla"] = functools.partial(platform, implementation="xla")
    if kv_heads == heads and not window and not everything and width == 128:
        contenders["jax pallas"] = jax_pallas
    if backward:
        contenders = {n: with_gradients(f) for n, f in contenders.items()}
    pairs = length * (length + 1) / 2
    if window:
        pairs = window * (window + 1) / 2 + (length - window) * window
    products = 7 if backward else 2
    arrays = q, k, k, shaped(batch, length, dtype="int32"), shaped(heads, dtype="float32")
    return Case(arrays, contenders, 2 * products * pairs * batch * heads * width)


def grouped_case(rows: int, groups: int, width: int, inner: int, part: str) -> Case:
    x, y = shaped(rows, width), shaped(rows, inner)
    w, sizes = shaped(groups, width, inner), shaped(groups, dtype="int32")
    flops = 2 * rows * width * inner
    if part == "gated":
        arrays = x, w, w, sizes

        def separate(x, w_gate, w_up, sizes):
            gate, up = ragged.matmul(x, w_gate, sizes), ragged.matmul(x, w_up, sizes)
            return jax.nn.silu(gate) * up

        contenders = {
            "ours": functools.partial(grouped.gated, activation="silu"),
            "ragged_dot": separate,
        }
        return Case(arrays, contenders, 2 * flops)
    arrays = {"matmul": (x, w, sizes), "dx": (y, w, sizes), "dw": (x, y, sizes)}[part]
    names = {"matmul": "matmul", "dx": "input_gradient", "dw": "weight_gradient"}
    extra = {"dtype": "bfloat16"} if part == "dw" else {}
    contenders = {
        name: functools.partial(getattr(module, names[part]), **extra)
        for name, module in (("ours", grouped), ("ragged_dot", ragged))
    }
    return Case(arrays, contenders, flops)


CASES: dict[str, Callable[[], Case]] = {
    "causal 4096, forward": functools.partial(attention_case, backward=False),
    "causal 4096, both": attention_case,
    "causal 4096, width 64, both": functools.partial(attention_case, width=64),
    "causal 4096, width 256, both": functools.partial(
        attention_case, width=256, heads=8, kv_heads=8
    ),
    "grouped 16:4, both": functools.partial(attention_case, kv_heads=4),
    "window 1024, both": functools.partial(attention_case, window=1024),
    "documents, both": functools.partial(attention_case, documents=True),
    "everything, ragged, both": functools.partial(
        attention_case, length=4000, kv_heads=4, documents=True, everything=True, window=1024
    ),
    "float32, width 64, both": functools.partial(attention_case, width=64, dtype="float32"),
    "float32, width 128, both": functools.partial(attention_case, dtype="float32"),
    **{
        f"experts 8, {part}": functools.partial(grouped_case, 16384, 8, 2048, 4096, part)
        for part in ("matmul", "dx", "dw", "gated")
    },
}


def find(tool: str) -> str | None:
    """A tool of the CUDA toolkit: on the path, or in NVIDIA's wheels."""
    wheels = (glob.glob(f"{place}/nvidia/*/bin/{tool}") for place in sys.path)
    return shutil.which(tool) or next((hits[0] for hits in wheels if hits), None)


def kernel_facts(ptx: str, target: Target) -> dict[str, dict[str, int]]:
    """Registers, spilled bytes and SASS counts of the kernels in a PTX file."""
    major, minor = target.capability
    architecture = f"sm_{major}{minor}{'a' if major == 9 else ''}"
    command = [find("ptxas"), f"-arch={architecture}", "-v", ptx, "-o", f"{ptx}.cubin"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    facts, now = {}, {}
    for line in (done.stdout + done.stderr).splitlines():
        if found := re.search(r"Compiling entry function '([^']+)'", line):
            now = facts.setdefault(found[1], {})
        if found := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line):
            now["spilled"] = int(found[1]) + int(found[2])
        if found := re.search(r"Used (\d+) registers", line):
            now["registers"] = int(found[1])
    if find("nvdisasm"):
        command = [find("nvdisasm"), "-c", f"{ptx}.cubin"]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        counts = {name: len(re.findall(rf"\b{name}\b", text)) for name in SASS}
        for kernel in facts.values():
            kernel |= {name: count for name, count in counts.items() if count}
    return facts


def compile_case(name: str, target: Target) -> dict[str, dict[str, Any]]:
    """Facts by contender: temporary MiB, and those of its kernels that multiply matrices."""
    topology = topologies.get_topology_desc(
        platform="cuda", target_config=target.description(), topology="1x1x1"
    )
    place = jax.sharding.SingleDeviceSharding(topology.devices[0])
    mesh = jax.sharding.Mesh(np.array(topology.devices[:1]), ("one",)).abstract_mesh
    case, facts = CASES[name](), {}
    arrays = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place) for x in case.arrays]
    for contender, function in case.contenders.items():
        shutil.rmtree(DUMP, ignore_errors=True)
        os.mkdir(DUMP)
        with jax.sharding.use_abstract_mesh(mesh):
            try:
                compiled = jax.jit(function).lower(*arrays).compile()
            except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError) as error:
                facts[contender] = {"error": str(error).splitlines()[0][:160]}
                continue
        kernels = {}
        for path in glob.glob(f"{DUMP}/*.ptx"):
            if ".entry" in pathlib.Path(path).read_text():
                kernels |= kernel_facts(path, target)
        kernels = {n: k for n, k in kernels.items() if {"HGMMA", "HMMA"} & set(k) or k["spilled"]}
        memory = compiled.memory_analysis().temp_size_in_bytes / 2**20
        facts[contender] = {"temporary_mib": memory, "kernels": kernels}
    return facts


def report_compiled(names: list[str], target: Target) -> None:
    """A table for each case as soon as it is compiled, all of them as JSON last."""
    rows = []
    columns = ["contender", "kernel", "registers", "spilled bytes", "SASS"]
    for name in names:
        facts, lines = compile_case(name, target), []
        for contender, fact in facts.items():
            if "error" in fact:
                lines.append([contender, fact["error"], "", "", ""])
                continue
            lines.append(
                [contender, f"temporary memory {fact['temporary_mib']:.1f} MiB", *[""] * 3]
            )
            for kernel, k in sorted(fact["kernels"].items()):
                counts = " ".join(f"{n} {k[n]}" for n in SASS if n in k)
                lines.append([contender, kernel, k["registers"], k["spilled"], counts])
        harness.show(f"{name}, compiled for {target.name}", columns, lines)
        sizes = {n: f["temporary_mib"] for n, f in facts.items() if "temporary_mib" in f}
        spilled = sum(k["spilled"] for k in facts["ours"].get("kernels", {}).values())
        rows.append(harness.row(name, "spilled registers", "bytes", spilled, floor=0))
        ours = sizes.pop("ours", None)
        row = harness.row(name, "temporary memory", "MiB", ours, sizes, higher_is_better=False)
        rows.append(row | {"details": facts})
    harness.emit("gpu_kernels compiled", rows, ("jax-cuda12-plugin", "nvidia-cuda-nvcc-cu12"))


def values(array: jax.ShapeDtypeStruct, case: str, seed: int) -> jax.Array:
    """Random entries; ids are eight documents, sizes uneven groups that hold every row."""
    rng = np.random.default_rng(seed)
    if array.dtype != jnp.int32:
        return jnp.asarray(rng.standard_normal(array.shape, np.float32) / 8, array.dtype)
    if len(array.shape) == 2:
        return jnp.sort(jnp.asarray(rng.integers(1, 9, array.shape), jnp.int32), axis=1)
    shares = rng.dirichlet(np.full(array.shape[0], 2.0))
    return jnp.asarray(rng.multinomial(16384, shares), jnp.int32)


def report_times(names: list[str], rounds: int = 15) -> None:
    lines, rows = [], []
    for name in names:
        case = CASES[name]()
        arrays = [values(x, name, i) for i, x in enumerate(case.arrays)]
        ready, failed = {}, {}
        for contender, function in case.contenders.items():
            try:
                compiled = jax.jit(function).lower(*arrays).compile()
                jax.block_until_ready(compiled(*arrays))
                ready[contender] = compiled
            except (jax.errors.JaxRuntimeError, NotImplementedError, RuntimeError, ValueError) as e:
                failed[contender] = str(e).splitlines()[0][:100]
        seconds = {contender: [] for contender in ready}
        for turn in range(rounds):
            for contender in list(ready)[:: 1 if turn % 2 else -1]:
                start = time.perf_counter()
                for _ in range(4):  # queued behind each other, so that launching costs nothing
                    out = ready[contender](*arrays)
                jax.block_until_ready(out)
                seconds[contender].append((time.perf_counter() - start) / 4)
        medians = {contender: 1e3 * statistics.median(s) for contender, s in seconds.items()}
        for contender, ms in medians.items():
            lines.append([name, contender, ms, case.flops / ms / 1e9])
        lines += [[name, contender, why, ""] for contender, why in failed.items()]
        ours = medians.pop("ours", None)
        rows.append(harness.row(name, "time", "ms", ours, medians, higher_is_better=False))
    device = jax.devices()[0].device_kind
    harness.show(f"medians on {device}", ["case", "contender", "ms", "TFLOP/s"], lines)
    harness.emit(f"gpu_kernels on {device}", rows, ("jax-cuda12-plugin",))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--compile", choices=TARGETS, help="for a GPU that is not here")
    parser.add_argument("--case", choices=CASES, action="append")
    arguments = parser.parse_args()
    names = arguments.case or list(CASES)
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, DUMP, ignore_errors=True)
        if arguments.compile:
            if find("ptxas") is None:
                raise SystemExit("--compile needs ptxas: pip install nvidia-cuda-nvcc-cu12")
            report_compiled(names, TARGETS[arguments.compile])
        elif jax.default_backend() == "gpu":
            report_times(names)
        else:
            raise SystemExit("there is no GPU here: give --compile h100")


if __name__ == "__main__":
    main()
