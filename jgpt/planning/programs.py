"""The training step compiled ahead of time, and what its text and its memory say.

Run as `python -m jgpt.planning.programs` it reads one case as JSON and ends with one JSON line: the
TPU compiler takes its settings from the environment, and a crash of it must not end the planner.
`jgpt.planning.step` starts it.
"""

import dataclasses
import json
import math
import re
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from jgpt import models, sharding
from jgpt.config import Config, ConfigError, from_config_dict
from jgpt.objectives import make_objective
from jgpt.planning.activations import saved_bytes
from jgpt.planning.counts import count
from jgpt.planning.even_load import room_over_even_load
from jgpt.planning.hlo import parse
from jgpt.training.assembly import make_steps, placed
from jgpt.training.flops import flops_per_token
from jgpt.training.offload import HOST
from jgpt.training.state import TrainState
from jgpt.typing import Batch, PyTree

BATCH = {
    "inputs": "int32",
    "targets": "int32",
    "loss_weights": "float32",
    "positions": "int32",
    "segment_ids": "int32",
    "characters": "int32",
}
"""Arrays [B, S] of a batch of text, as the data pipeline makes them."""

SIZE = r"([\d.]+)([KMGT]?)i?B?"
OUT_OF_MEMORY = [
    re.compile(rf"total memory required[^(]*\({SIZE}\) exceeds available HBM \({SIZE}\)"),
    re.compile(rf"Used {SIZE} of {SIZE} hbm"),
]
"""How the compiler says that a program needs more HBM than there is, by version."""


def abstract_batch(config: Config, mesh: jax.sharding.Mesh) -> Batch:
    """Shapes and places of what a training step learns from."""
    place = sharding.batch_sharding(mesh)
    shape = (config.data.batch_size, config.data.sequence_length)
    batch = {name: jax.ShapeDtypeStruct(shape, jnp.dtype(kind)) for name, kind in BATCH.items()}
    corrupt = make_objective(config).corrupt
    if corrupt is not None:
        batch = jax.eval_shape(corrupt, batch, jax.random.key(0))
    return {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)
        for name, leaf in batch.items()
    }


def compile_step(config: Config, mesh: jax.sharding.Mesh) -> tuple[Any, TrainState, Batch]:
    """The compiled training step of a run on `mesh`, its abstract state and its abstract batch.

    Args:
        config: with the vocabulary size and the layer scan decided.
        mesh: of devices that are there, or of a described topology.

    Raises:
        ConfigError: the config cannot be cut over the mesh.
        jax.errors.JaxRuntimeError: the compiler's reason, such as too little memory.
    """
    rows = sharding.batch_parts(mesh) * config.train.microbatches
    if config.data.batch_size % rows:
        raise ConfigError(
            f"data.batch_size ({config.data.batch_size}) cannot be cut into {rows} parts "
            "(mesh.data x mesh.fsdp x mesh.expert x train.microbatches); choose a multiple"
        )
    _, state, step, _ = make_steps(config, mesh)
    with placed(mesh):
        batch = abstract_batch(config, mesh)
        return step.lower(state, batch).compile(), state, batch


def bytes_per_device(tree: PyTree, *, on_host: bool = False) -> int:
    """Of abstract arrays that have shardings: what one device holds, or its host holds for it."""
    return sum(
        leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape))
        for leaf in jax.tree.leaves(tree)
        if (leaf.sharding.memory_kind == HOST) == on_host
    )


def state_bytes(state: TrainState, batch: Batch) -> dict[str, int]:
    """What one device holds while the step waits to run, by part."""
    rest = dataclasses.replace(state, params={}, opt_state={}, ema={}, frozen={})
    return {
        "parameters": bytes_per_device(state.params),
        "frozen_parameters": bytes_per_device(state.frozen),
        "optimizer": bytes_per_device(state.opt_state),
        "moving_average": bytes_per_device(state.ema),
        "batch": bytes_per_device(batch) + bytes_per_device(rest),
    }


def out_of_memory(message: str) -> dict[str, int] | None:
    """Bytes that a program needs and that there are, of the compiler's message; None: another."""
    for pattern in OUT_OF_MEMORY:
        if found := pattern.search(message):
            needed, unit, available, its_unit = found.groups()
            return {"needed": _bytes(needed, unit), "available": _bytes(available, its_unit)}
    return None


def _bytes(number: str, unit: str) -> int:
    return int(float(number) * 1024 ** " KMGT".index(unit or " "))


def describe(config: Config, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Everything that a plan needs to know of the step, per device, as plain data."""
    total, active = models.count_params(config.model)
    found: dict[str, Any] = {
        "model": {
            "parameters": total,
            "active_parameters": active,
            "flops_per_token": flops_per_token(config),
        },
        "mesh": dict(mesh.shape),
        "room_over_even_load": room_over_even_load(config, mesh),
    }
    start = time.monotonic()
    try:
        compiled, state, batch = compile_step(config, mesh)
    except jax.errors.JaxRuntimeError as error:
        if (sizes := out_of_memory(str(error))) is None:
            raise
        return found | {"out_of_memory": sizes, "seconds": time.monotonic() - start}
    memory, program = compiled.memory_analysis(), parse(compiled.as_text())
    return found | {
        "seconds": time.monotonic() - start,
        "state_bytes": state_bytes(state, batch),
        "host_bytes": bytes_per_device((state, batch), on_host=True),
        "activation_bytes": saved_bytes(program),
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "unaliased_output_bytes": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "program_bytes": memory.generated_code_size_in_bytes,
        "counts": count(program).as_dict(),
    }


def main() -> int:
    case = json.load(sys.stdin)
    try:
        config = from_config_dict(case["config"])
        topology = topologies.get_topology_desc(
            platform="tpu", topology_name=case["topology"], **_options(case["options"])
        )
        found = describe(config, sharding.make_mesh(config.mesh, topology.devices))
    except ConfigError as error:
        found = {"config_error": str(error)}
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        # The first line of the compiler's messages may be a code alone.
        found = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:400]}
    print(json.dumps(found))
    return 0


def _options(options: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no tuples, and the compiler takes no lists."""
    return {name: tuple(v) if isinstance(v, list) else v for name, v in options.items()}


if __name__ == "__main__":
    sys.exit(main())
