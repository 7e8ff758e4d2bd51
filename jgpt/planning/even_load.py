"""What grouped products multiply while experts' loads are even: less than their buffers hold.

Rows that travel to experts land in buffers with room for uneven loads (`moe.exchange_factor`).
Kernels declare all rows of their buffers, since how many hold a token is known only as the program
runs, and then skip the rest.
"""

import re
from collections.abc import Mapping

from jax.sharding import Mesh

from jgpt import sharding
from jgpt.config import Config
from jgpt.layers.expert_parallel import make_exchange

GROUPED = re.compile(r"grouped_")
"""Kernels of products of sorted rows."""


def room_over_even_load(config: Config, mesh: Mesh) -> float:
    """Rows of an exchange's buffers over those that arrive when all experts get equally many.

    1 where nothing travels, and where tokens over an expert's capacity are dropped: those products
    multiply all that they hold.
    """
    model = config.model
    way = make_exchange(model, mesh.abstract_mesh)
    if way is None or "moe" not in model.ffn_pattern or model.moe.dispatch != "dropless":
        return 1.0
    parts = sharding.batch_parts(mesh) * mesh.shape["context"] * config.train.microbatches
    tokens = config.data.batch_size * config.data.sequence_length // parts
    room, _ = way.room(tokens, model.moe.top_k, model.moe.num_experts // way.size)
    buffers = way.size if way.form == "padded" else 1
    return buffers * room / (tokens * model.moe.top_k)


def spare_flops(flops_by_kernel: Mapping[str, float], room: float) -> float:
    """Of what these kernels declare: of rows that hold no token while loads are even.

    Args:
        flops_by_kernel: kernel's name -> FLOPs.
        room: from `room_over_even_load`.
    """
    grouped = sum(f for kernel, f in flops_by_kernel.items() if GROUPED.search(kernel))
    return grouped * (1 - 1 / room)
