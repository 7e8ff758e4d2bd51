"""How layers are laid out in the parameter tree: one by one, or stacked by periods for a scan.

Unrolled, layer i is `layers_{i}`. Scanned, the layers after the first that differ are cut into
periods of the layer pattern; the j-th layer of every period is stacked along a new first axis under
`layers/block_{j}`, and what is left over at either end stays `layers_{i}`. The weights are the
same; `restack` turns one form into the other. An encoder-decoder's encoder is laid out likewise
under `encoder/`.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jgpt.config import ModelConfig
from jgpt.typing import PyTree


@dataclass(frozen=True)
class Layout:
    """Which layers are scanned: `periods` times `period` of them from `first` on."""

    first: int
    period: int
    periods: int

    @property
    def stop(self) -> int:
        """The first layer after the scanned ones."""
        return self.first + self.period * self.periods

    def layer(self, period: int, block: int) -> int:
        """Index of the layer at `block` of `period`."""
        return self.first + period * self.period + block


def layout(config: ModelConfig) -> Layout:
    """What a scan of this model runs over, whether or not it is switched on."""
    first = max(config.num_leading_dense, 0 if config.first_attention_norm else 1)
    return Layout(first, config.period, (config.num_layers - first) // config.period)


def resolve_scan(config: ModelConfig, platform: str) -> ModelConfig:
    """The config with `scan_layers` 'on' or 'off'; 'auto' is off on `cpu` and on elsewhere."""
    if config.scan_layers != "auto":
        return config
    scan = "off" if platform == "cpu" else "on"
    return dataclasses.replace(config, scan_layers=scan)


def is_scanned(params: PyTree) -> bool:
    """Whether a parameter tree is in the scanned form."""
    return "layers" in params


def moe_layers(config: ModelConfig) -> tuple[int, ...]:
    """Indices of the mixture-of-experts layers."""
    return tuple(i for i in range(config.num_layers) if config.layer_kind(i)[1] == "moe")


def num_moe_layers(config: ModelConfig) -> int:
    """Rows of the selection bias and of the stacked `RouterStats`."""
    return len(moe_layers(config))


def restack(
    params: PyTree,
    config: ModelConfig,
    scan: bool,
    stack: Callable[..., Any] = lambda *leaves: jnp.stack(leaves),
) -> PyTree:
    """The same weights in the scanned or the unrolled form; a tree already in it is returned as is.

    Works on any tree laid out like the parameters (gradients, moments of an optimizer), or like a
    part of them that is the same in all layers of a stack (adapters).

    Args:
        stack: makes one leaf of those of several layers.
    """
    if config.encoder_layers and "encoder" in params:
        params = params | {"encoder": restack(params["encoder"], config.encoder, scan, stack)}
    where = layout(config)
    if scan == is_scanned(params) or not where.periods:
        return params
    if scan:
        return _stack(params, where, stack)
    return _unstack(params, where)


def _stack(params: PyTree, where: Layout, stack: Callable[..., Any]) -> PyTree:
    blocks = {
        f"block_{j}": [params.get(f"layers_{where.layer(p, j)}", {}) for p in range(where.periods)]
        for j in range(where.period)
    }
    stacked = {name: jax.tree.map(stack, *layers) for name, layers in blocks.items() if layers[0]}
    scanned = {f"layers_{i}" for i in range(where.first, where.stop)}
    rest = {name: tree for name, tree in params.items() if name not in scanned}
    return rest | {"layers": stacked} if stacked else rest


def _unstack(params: PyTree, where: Layout) -> PyTree:
    layers = {
        f"layers_{where.layer(p, j)}": jax.tree.map(
            lambda leaf, p=p: leaf[p], params["layers"][f"block_{j}"]
        )
        for p in range(where.periods)
        for j in range(where.period)
        if f"block_{j}" in params["layers"]
    }
    return {name: tree for name, tree in params.items() if name != "layers"} | layers
