"""The order of a row's tokens on devices that share it: zigzag, where attention is causal.

Devices of the ring (`jgpt.kernels.attention.ring`) that hold a row's first tokens would be done
long before those with its last. So a batch is put in another order once, before the embedding:
everything but attention treats tokens one by one, and attention knows which order it is in. Sums
over tokens do not depend on it; figures per token are put back.
"""

from collections.abc import Mapping

import flax.linen as nn
import numpy as np

from jgpt.config import ModelConfig
from jgpt.kernels.attention.ring import zigzag_devices
from jgpt.kernels.attention.ring_schedule import zigzag_order
from jgpt.typing import Array, Batch

OUTPUTS = ("cross_entropy", "token_logps")
"""What can be put back at no cost, or need not be; others keep the rows' own order."""


def wanted(config: ModelConfig, batch: Batch, output: str, *, training: bool) -> int:
    """Devices for whose ring this forward pass should have its tokens in zigzag order; 0 for none.

    None where the ring cannot run or is not causal, and where groups of tokens that share experts'
    capacity would become other groups.

    Args:
        training: whether anything is dropped.
    """
    rows, length = batch["inputs"].shape
    devices = zigzag_devices(rows, length)
    no_ring = config.attention_backend not in ("auto", "ring")
    no_ring |= training and config.attention_dropout > 0
    unequal = config.attention != "bidirectional" and not config.encoder_layers
    if not devices or no_ring or not unequal or output not in OUTPUTS:
        return 0
    if "moe" in config.ffn_pattern and config.moe.dispatch == "capacity":
        group = config.moe.group_size or length
        return 0 if length // (2 * devices) % group else devices
    return devices


def zigzag(batch: Batch, devices: int) -> Mapping[str, Array]:
    """The batch with all arrays [B, S] in zigzag order for so many devices."""
    shape = batch["inputs"].shape
    order = zigzag_order(shape[1], devices)
    return {name: _along_length(x, order) if x.shape == shape else x for name, x in batch.items()}


def rows_own(x: Array, devices: int) -> Array:
    """[B, S] in zigzag order back in the rows' own."""
    return _along_length(x, np.argsort(zigzag_order(x.shape[1], devices)))


def _along_length(x: Array, order: np.ndarray) -> Array:
    return nn.with_logical_constraint(x[:, order], ("batch", "length"))
