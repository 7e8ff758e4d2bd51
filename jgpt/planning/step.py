"""A plan: one config on one topology, compiled, counted and estimated."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jgpt import models, sharding
from jgpt.config import Config, ConfigError, to_dict
from jgpt.planning import cache
from jgpt.planning.estimate import Estimate, between_slices_bytes, estimate
from jgpt.planning.even_load import spare_flops
from jgpt.planning.topologies import Topology

ROOT = Path(__file__).resolve().parent.parent.parent
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    # The compiler looks for a TPU's host otherwise, and refuses to be loaded twice.
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}


class PlanError(RuntimeError):
    """No plan can be made; the message says why and what to do."""


@dataclass(frozen=True)
class Plan:
    """What a training step needs and does, per chip. None: could not be found (`reasons`)."""

    config: Config
    topology: Topology
    mesh: dict[str, int]
    """sizes of the axes over all slices"""
    model: dict[str, float]
    """parameters, active_parameters, flops_per_token"""
    fits: bool
    memory: dict[str, float | None]
    """bytes: `total` and its parts"""
    host_bytes: float | None
    """in the host's memory for one chip: optimizer state that is offloaded"""
    hbm_bytes: int
    """of the chip; what the compiler leaves to a program where it said so"""
    model_flops: float
    matmul_flops: float | None
    pallas_flops: float | None
    """as declared"""
    spare_flops: float | None
    """of these, products of rows that hold no token while experts' loads are even"""
    pallas_calls: dict[str, int] | None
    collectives: dict[str, int] | None
    """executions by kind"""
    wire_bytes: dict[str, float] | None
    """sent, by kind; between slices as `between-slices`"""
    moved_bytes: float | None
    """HBM bytes read and written, estimated from the program's text"""
    estimate: Estimate | None
    reasons: dict[str, str]
    compile_seconds: float

    @property
    def mfu(self) -> float | None:
        """Model FLOPs of a step over what the chip could do in the estimated time."""
        if self.estimate is None:
            return None
        return self.model_flops / (self.estimate.at_best * self.topology.chip.peak_flops)


def decided(config: Config) -> Config:
    """The config as a TPU run would have it, with the vocabulary that the tokenizer is to get."""
    model = models.resolve_scan(config.model, "tpu")
    if model.vocab_size == 0:
        rows = config.tokenizer.vocab_size + config.objective.added_ids
        model = dataclasses.replace(model, vocab_size=rows)
    return dataclasses.replace(config, model=model)


def one_slice(config: Config, topology: Topology) -> Config:
    """The part of the run that one slice computes: slices are data parallel to each other.

    Raises:
        ConfigError: mesh or batch cannot be cut over the slices.
    """
    sizes = sharding.mesh_sizes(config.mesh, topology.slices * topology.devices_per_slice)
    if sizes["data"] % topology.slices:
        raise ConfigError(
            f"mesh.data is {sizes['data']}, which {topology.slices} slices do not divide; slices "
            "are data parallel, so make it a multiple"
        )
    if config.data.batch_size % topology.slices:
        raise ConfigError(
            f"data.batch_size ({config.data.batch_size}) is no multiple of {topology.slices} slices"
        )
    sizes["data"] //= topology.slices
    return dataclasses.replace(
        config,
        mesh=dataclasses.replace(config.mesh, **sizes),
        data=dataclasses.replace(config.data, batch_size=config.data.batch_size // topology.slices),
    )


def make_plan(
    config: Config, topology: Topology, *, timeout: float | None = None, fresh: bool = False
) -> Plan:
    """Compiles the training step of `config` for `topology`, or takes an earlier result.

    Args:
        config: of the run.
        topology: where it is to run.
        timeout: seconds that the compiler may take.
        fresh: whether to compile even if there is an earlier result.

    Raises:
        ConfigError: the config cannot run on that many chips.
        PlanError: no compiler, or it cannot compile the program.
    """
    config = decided(config)
    part = one_slice(config, topology)
    case = {
        "config": to_dict(part),
        "topology": topology.compiler_name,
        "options": topology.compiler_options,
    }
    name = cache.key(case)  # of the sources as they are now, not after minutes of compiling
    found = None if fresh else cache.load(name)
    if found is None:
        found = _compiled(case, timeout)
        cache.save(name, found)
    return _plan(config, topology, found)


def _compiled(case: dict[str, Any], timeout: float | None) -> dict[str, Any]:
    if importlib.util.find_spec("libtpu") is None:
        raise PlanError(
            "the TPU compiler is not installed; no TPU is needed for it: pip install 'jgpt[tpu]'"
        )
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "jgpt.planning.programs"],
            input=json.dumps(case),
            env={**os.environ, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join(paths)},
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        raise PlanError(f"the compiler took longer than --timeout={timeout:g} seconds") from None
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        raise PlanError(f"the compiler ended with status {done.returncode}: {_last(done.stderr)}")
    found = json.loads(lines[-1])
    if "config_error" in found:
        raise ConfigError(found["config_error"])
    if "error" in found:
        raise PlanError(f"the compiler refuses the program: {found['error']}")
    return found


def _last(text: str) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    wanted = [line for line in lines if "Error" in line or "Check failed" in line]
    return (wanted or lines or ["it said nothing"])[-1][:300]


def _plan(config: Config, topology: Topology, found: dict[str, Any]) -> Plan:
    per_chip = topology.chip.devices_per_chip
    tokens = config.data.batch_size * config.data.sequence_length
    mesh = {**found["mesh"], "data": found["mesh"]["data"] * topology.slices}
    common = {
        "config": config,
        "topology": topology,
        "mesh": mesh,
        "model": found["model"],
        "model_flops": found["model"]["flops_per_token"] * tokens / topology.chips,
        "compile_seconds": found["seconds"],
    }
    if "out_of_memory" in found:
        return _too_large(common, found["out_of_memory"], per_chip)
    memory, reasons = _memory(found, per_chip)
    counts = found["counts"]
    gradients = found["state_bytes"]["parameters"] * per_chip
    wire = {kind: sent * per_chip for kind, sent in counts["wire_bytes"].items()}
    if topology.slices > 1:
        wire["between-slices"] = between_slices_bytes(topology.slices, gradients)
    if counts["undeclared_calls"]:
        reasons["pallas_flops_per_chip"] = (
            f"{counts['undeclared_calls']} Pallas calls declare no cost and are not counted"
        )
    if counts["data_loops"]:
        reasons["data_dependent_loops"] = (
            f"{counts['data_loops']} loops run as often as the data asks (not at all while "
            "experts' loads are even); they are not counted"
        )
    if counts["unknown_loops"]:
        reasons["matmul_flops_per_chip"] = (
            f"{counts['unknown_loops']} loops have no readable trip count and are counted once"
        )
    spare = spare_flops(counts["pallas_flops_by_kernel"], found["room_over_even_load"])
    flops = counts["matmul_flops"] + counts["pallas_flops"] - spare
    return Plan(
        **common,
        fits=True,
        memory=memory,
        host_bytes=found["host_bytes"] * per_chip,
        hbm_bytes=topology.chip.hbm_bytes,
        matmul_flops=counts["matmul_flops"] * per_chip,
        pallas_flops=counts["pallas_flops"] * per_chip,
        spare_flops=spare * per_chip,
        pallas_calls=counts["pallas_calls"],
        collectives=counts["collectives"],
        wire_bytes=wire,
        moved_bytes=counts["hbm_bytes"] * per_chip,
        estimate=estimate(
            topology,
            flops * per_chip,
            counts["hbm_bytes"] * per_chip,
            {int(n): sent * per_chip for n, sent in counts["wire_bytes_by_group"].items()},
            gradients,
        ),
        reasons=reasons,
    )


def _memory(found: dict[str, Any], per_chip: int) -> tuple[dict[str, float | None], dict[str, str]]:
    """Bytes by part; `temporaries` is what the compiler's own figure leaves over."""
    saved, reasons = found["activation_bytes"], {}
    if saved is None:
        reasons["memory_bytes_per_chip.activations"] = (
            "layers are not scanned, so that activations are among the temporaries"
        )
    temporaries = found["temporary_bytes"] - (saved or 0) + found["unaliased_output_bytes"]
    parts = {
        **found["state_bytes"],
        "activations": saved,
        "temporaries": temporaries,
    }
    parts = {name: size and size * per_chip for name, size in parts.items()}
    total = found["argument_bytes"] + found["temporary_bytes"] + found["unaliased_output_bytes"]
    return {"total": total * per_chip, **parts}, reasons


def _too_large(common: dict[str, Any], sizes: dict[str, int], per_chip: int) -> Plan:
    reason = "the program does not fit, so that the compiler gives no program to read"
    names = (
        "matmul_flops_per_chip", "pallas_calls", "wire_bytes_per_chip", "estimated_step_seconds",
        "bound_by", "estimated_mfu", "host_bytes_per_chip",
    )  # fmt: skip
    parts = ("parameters", "optimizer", "activations", "temporaries")
    return Plan(
        **common,
        fits=False,
        memory={"total": sizes["needed"] * per_chip, **dict.fromkeys(parts)},
        host_bytes=None,
        hbm_bytes=sizes["available"] * per_chip,
        matmul_flops=None,
        pallas_flops=None,
        spare_flops=None,
        pallas_calls=None,
        collectives=None,
        wire_bytes=None,
        moved_bytes=None,
        estimate=None,
        reasons={
            "memory_bytes_per_chip": "total as the compiler's message names it; no parts",
            **dict.fromkeys(names, reason),
        },
    )
