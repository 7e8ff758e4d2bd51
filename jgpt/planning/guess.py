"""A rough forecast of a plan without compiling, by which the search chooses what to compile.

Nothing here is shown as a result: it only orders candidates.
"""

import dataclasses
import math
from collections.abc import Mapping

from jgpt import models, sharding
from jgpt.config import Config, ModelConfig
from jgpt.planning.chips import DATA_CENTRE_BANDWIDTH
from jgpt.planning.estimate import between_slices_bytes
from jgpt.planning.topologies import Topology
from jgpt.trees import leaves_by_path

STATE_BYTES = {"adamw": 12, "muon": 12, "lion": 8, "adafactor": 5}
"""Per parameter: the float32 weight and the moments of the optimizer."""
RECOMPUTED = {"none": 0.0, "dots": 0.05, "full": 1 / 3}
"""Share of the model's FLOPs that is computed again."""
WEIGHT_BYTES = 2
"""of a gathered weight: bfloat16"""


@dataclasses.dataclass(frozen=True)
class Guess:
    """Per chip."""

    memory: float
    """bytes"""
    seconds: float


def divides(config: Config, sizes: Mapping[str, int]) -> bool:
    """Whether every parameter, the rows and the heads can be cut over a mesh of these sizes."""
    rows = math.prod(sizes[axis] for axis in sharding.RULES["batch"]) * config.train.microbatches
    if config.data.batch_size % rows or config.data.sequence_length % sizes["context"]:
        return False
    if config.model.num_heads % sizes["tensor"] or config.model.kv_heads % sizes["tensor"]:
        return False
    return all(
        size % _parts(name, sizes) == 0
        for shape, names in _leaves(config.model)
        for size, name in zip(shape, names, strict=True)
    )


def guess(config: Config, topology: Topology, sizes: Mapping[str, int]) -> Guess:
    """Forecast for `config` (its remat and microbatches) on a mesh of these sizes."""
    model, chip = config.model, topology.chip
    held = gathered = 0.0
    for shape, names in _leaves(model):
        elements = math.prod(shape)
        cut = {axis for name in names if name for axis in sharding.RULES[name]}
        held += elements / math.prod(sizes[axis] for axis in cut)
        gathered += elements / math.prod(sizes[axis] for axis in cut - {"fsdp"})
    chips = topology.chips
    tokens = config.data.batch_size * config.data.sequence_length / chips * sizes["tensor"]
    resident = tokens / config.train.microbatches
    memory = held * (STATE_BYTES[config.optimizer.name] + 6)
    memory += resident * saved_per_token(model, sizes["tensor"])
    memory += 4 * gathered / model.num_layers * WEIGHT_BYTES + 2e9
    flops = models.flops_per_token(model, config.data.sequence_length) * tokens / sizes["tensor"]
    compute = flops * (1 + RECOMPUTED[model.remat]) / chip.peak_flops
    return Guess(memory, max(compute, _wire_seconds(config, topology, sizes, held, gathered)))


def saved_per_token(model: ModelConfig, tensor: int) -> float:
    """Bytes of activations that the forward pass keeps for one token, over all layers."""
    width = model.hidden_size
    if model.remat != "full":
        attention = 2 * model.num_heads * model.size_of_head
        attention += 2 * model.kv_heads * model.size_of_head
        kinds = [model.layer_kind(i)[1] for i in range(model.num_layers)]
        moe = 2 * model.moe.top_k * (model.expert_size + model.hidden_size)
        feed_forward = sum(moe if kind == "moe" else 2 * model.intermediate_size for kind in kinds)
        width += (attention + feed_forward / model.num_layers) / tensor + model.hidden_size
        if model.remat == "none":
            width *= 1.6
    return 2 * model.num_layers * width


def _wire_seconds(
    config: Config, topology: Topology, sizes: Mapping[str, int], held: float, gathered: float
) -> float:
    model, parts = config.model, config.train.microbatches
    tokens = config.data.batch_size * config.data.sequence_length / topology.chips
    tokens *= sizes["tensor"]
    moved = dict.fromkeys(sizes, 0.0)
    if sizes["fsdp"] > 1:
        # Gathered forward and, again, backward; gradients are scattered in float32.
        passes = WEIGHT_BYTES * (1 if model.remat == "none" else 2) + 4
        moved["fsdp"] = gathered * passes * parts
    if sizes["data"] > topology.slices:
        moved["data"] = 8 * held
    if sizes["expert"] > 1:
        layers = models.num_moe_layers(model)
        moved["expert"] = 6 * layers * tokens * model.moe.top_k * model.hidden_size * 2
    if sizes["tensor"] > 1:
        moved["tensor"] = 12 * model.num_layers * tokens * model.hidden_size * 2
    seconds = sum(
        amount * (1 - 1 / sizes[axis]) / topology.ring_bandwidth(sizes[axis])
        for axis, amount in moved.items()
        if sizes[axis] > 1
    )
    return seconds + between_slices_bytes(topology.slices, 4 * held) / DATA_CENTRE_BANDWIDTH


def _leaves(model: ModelConfig) -> list[tuple[tuple[int, ...], tuple[str | None, ...]]]:
    """Shape and logical axes of every parameter."""
    params = leaves_by_path(models.abstract_params(model))
    axes = models.logical_axes(model)
    named = {path: _at(axes, path) for path in params}
    return [(leaf.shape, named[path]) for path, leaf in params.items()]


def _at(tree: Mapping, path: str) -> tuple[str | None, ...]:
    for name in path.split("/"):
        tree = tree[name]
    return tree


def _parts(name: str | None, sizes: Mapping[str, int]) -> int:
    return math.prod(sizes[axis] for axis in sharding.RULES[name]) if name else 1
