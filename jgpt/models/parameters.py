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
from jgpt.models.layout import layout, resolve_scan, restack
from jgpt.models.transformer import Transformer
from jgpt.trees import map_with_path, path_string
from jgpt.typing import Array, PyTree


def _declarations(config: ModelConfig) -> PyTree:
    """The unrolled tree of `Parameter` boxes, with shapes and dtypes in place of values."""
    if config.vocab_size < 1:
        raise ConfigError("model.vocab_size is 0; set it to the tokenizer's number of pieces")
    config = dataclasses.replace(config, scan_layers="off", remat="none")
    row = jnp.zeros((1, 1), jnp.int32)
    return jax.eval_shape(lambda: Transformer(config).init(jax.random.key(0), row, row)["params"])


def _map(function: Callable[[str, Parameter], Any], declarations: PyTree) -> PyTree:
    """`function(path, box)` at every parameter."""
    return jax.tree_util.tree_map_with_path(
        lambda path, box: function(path_string(path), box),
        declarations,
        is_leaf=lambda x: isinstance(x, Parameter),
    )


def _scan(config: ModelConfig) -> bool:
    return resolve_scan(config, jax.default_backend()).scan_layers == "on"


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

    return restack(_map(draw, _declarations(config)), config, _scan(config))


def abstract_params(config: ModelConfig) -> PyTree:
    """`jax.ShapeDtypeStruct`s in place of the parameters of `init`; nothing is computed."""
    shapes = _map(lambda _, box: box.value, _declarations(config))
    return jax.eval_shape(lambda tree: restack(tree, config, _scan(config)), shapes)


def logical_axes(config: ModelConfig) -> PyTree:
    """A tuple of logical axis names in place of each parameter of `init`."""
    axes = _map(lambda _, box: box.names, _declarations(config))
    where = layout(config)
    if not _scan(config) or not where.periods:
        return axes
    stacked = {
        f"block_{j}": jax.tree.map(
            lambda names: ("layers", *names),
            axes[f"layers_{where.layer(0, j)}"],
            is_leaf=lambda x: isinstance(x, tuple),
        )
        for j in range(where.period)
    }
    scanned = {f"layers_{i}" for i in range(where.first, where.stop)}
    return {k: v for k, v in axes.items() if k not in scanned} | {"layers": stacked}


def learning_rate_scales(config: ModelConfig, params: PyTree) -> PyTree:
    """What the learning rate of each parameter is multiplied by.

    With muP and an Adam-like optimizer (Yang et al. 2022, table 8): `mup_base_width / hidden_size`
    for matrices between hidden layers, 1 for embeddings, positions, head, norms and biases. Without
    muP all are 1.
    """
    ratio = config.mup_base_width / config.hidden_size if config.mup_base_width else 1.0

    def scale(path: str, _: Array) -> float:
        return ratio if path.startswith("layers") and path.endswith("/kernel") else 1.0

    return map_with_path(scale, params)
