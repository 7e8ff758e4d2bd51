"""Parameter trees: initial values, shapes, logical axes, learning-rate scales."""

import dataclasses
import functools
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jgpt.config import ConfigError, ModelConfig
from jgpt.layers.initialization import Initializer, Parameter
from jgpt.models.layout import is_scanned, layout, resolve_scan, restack
from jgpt.models.transformer import Tokens, Transformer
from jgpt.trees import map_with_path, path_string
from jgpt.typing import Array, PyTree


@functools.lru_cache(maxsize=64)
def _boxes(config: ModelConfig) -> PyTree:
    """A `Parameter` box in place of each parameter of `init`; shapes and dtypes for values.

    Deep models are traced in the scanned form, which meets every kind of layer only a few times.
    The result is shared between callers: map over it, never change it.
    """
    if config.vocab_size < 1:
        raise ConfigError("model.vocab_size is 0; set it to the tokenizer's number of pieces")
    form = "on" if _scan(config) or layout(config).periods > 3 else "off"
    traced = dataclasses.replace(config, scan_layers=form, remat="none")
    row = jnp.zeros((1, 1), jnp.int32)
    rows = [Tokens(row, row)] * (2 if config.encoder_layers else 1)
    boxes = jax.eval_shape(lambda: Transformer(traced).init(jax.random.key(0), *rows)["params"])
    return boxes if _scan(config) else _unrolled(boxes, config)


def _scan(config: ModelConfig) -> bool:
    return resolve_scan(config, jax.default_backend()).scan_layers == "on"


def _unrolled(boxes: PyTree, config: ModelConfig) -> PyTree:
    if config.encoder_layers:
        boxes = {**boxes, "encoder": _unrolled(boxes["encoder"], config.encoder)}
    where = layout(config)
    if not is_scanned(boxes):
        return boxes

    def of_one_layer(_: str, box: Parameter) -> Parameter:
        value = jax.ShapeDtypeStruct(box.value.shape[1:], box.value.dtype)
        return box.replace(value=value, names=box.names[1:])

    layers = {
        f"layers_{where.layer(p, j)}": _map(of_one_layer, boxes["layers"][f"block_{j}"])
        for p in range(where.periods)
        for j in range(where.period)
    }
    return {name: tree for name, tree in boxes.items() if name != "layers"} | layers


def _map(function: Callable[[str, Parameter], Any], boxes: PyTree) -> PyTree:
    """`function(path, box)` at every parameter."""
    return jax.tree_util.tree_map_with_path(
        lambda path, box: function(path_string(path), box),
        boxes,
        is_leaf=lambda x: isinstance(x, Parameter),
    )


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def _draw(
    initializer: Initializer, key: Array, name: Array, shape: tuple[int, ...], dtype: Any
) -> Array:
    return initializer(jax.random.fold_in(key, name), shape, dtype)


def init(config: ModelConfig, key: Array) -> PyTree:
    """Initial parameters (see `jgpt.layers.initialization`) in `config.param_dtype`.

    The random numbers of a parameter follow from the key and its unrolled path alone: the mesh, the
    scan and the other parameters do not matter. The tree is scanned or unrolled as
    `config.scan_layers` says, 'auto' for the default backend.

    Raises:
        ConfigError: the vocabulary size is not set.
    """

    def draw(path: str, box: Parameter) -> Array:
        name = np.uint32(zlib.crc32(path.encode()))
        return _draw(box.initializer, key, name, box.value.shape, box.value.dtype)

    unrolled = dataclasses.replace(config, scan_layers="off")
    return restack(_map(draw, _boxes(unrolled)), config, _scan(config))


def abstract_params(config: ModelConfig) -> PyTree:
    """`jax.ShapeDtypeStruct`s in place of the parameters of `init`; nothing is computed."""
    return _map(lambda _, box: box.value, _boxes(config))


def logical_axes(config: ModelConfig) -> PyTree:
    """A tuple of logical axis names in place of each parameter of `init`."""
    return _map(lambda _, box: box.names, _boxes(config))


def learning_rate_scales(config: ModelConfig, params: PyTree) -> PyTree:
    """What the learning rate of each parameter is multiplied by.

    With muP and an Adam-like optimizer (Yang et al. 2022, table 8): `mup_base_width / hidden_size`
    for matrices between hidden layers, 1 for embeddings, positions, head, norms and biases. Without
    muP all are 1.
    """
    ratio = config.mup_base_width / config.hidden_size if config.mup_base_width else 1.0

    def scale(path: str, _: Array) -> float:
        hidden = path.removeprefix("encoder/").startswith("layers")
        return ratio if hidden and path.endswith("/kernel") else 1.0

    return map_with_path(scale, params)
