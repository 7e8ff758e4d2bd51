"""The places of a model that adapters attach to, found by walking through it once.

Layers expose five kinds of small module as sites, and adapters know nothing else of the model:

| kind | module | what an adapter sees |
| --- | --- | --- |
| `linear` | `layers.linear.Linear` | x [..., in] and y [..., out] |
| `experts` | `layers.experts.ExpertLinear` | the rows of each expert, and a kernel per expert |
| `embedding` | `layers.embedding.Embed` | token ids, and their rows |
| `key_value` | `layers.key_value.KeyValue` | keys and values as attention sees them |
| `residual` | `layers.residual.Residual` | the stream r, and the sublayer's output h |

A site is known by the path of its module in the unrolled model (`layers_3/attention/query`),
whether or not the layers are scanned.
"""

import dataclasses
import functools
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from jgpt.config import ModelConfig
from jgpt.layers.embedding import Embed
from jgpt.layers.experts import ExpertLinear
from jgpt.layers.key_value import KeyValue
from jgpt.layers.linear import Linear
from jgpt.layers.residual import Residual
from jgpt.models.layout import layout
from jgpt.models.parameters import abstract_params, logical_axes
from jgpt.models.transformer import Tokens, Transformer
from jgpt.trees import leaves_by_path
from jgpt.typing import Array

KINDS: dict[type[nn.Module], str] = {
    Linear: "linear",
    ExpertLinear: "experts",
    Embed: "embedding",
    KeyValue: "key_value",
    Residual: "residual",
}
"""Class of a site's module -> its kind."""

WRAPPED = {"experts": "weights"}
"""Kind of site -> the method that adapters wrap, `__call__` elsewhere: a layer of experts is a
function of its weights, wherever they are."""

WEIGHTS = {"linear": "kernel", "experts": "kernel", "embedding": "table"}
"""Kind of site -> the parameter that a merge changes."""


@dataclass(frozen=True)
class Site:
    """One place."""

    path: str
    """of the module in the unrolled model"""
    kind: str
    shape: tuple[int, ...]
    """linear (in, out); experts (E, in, out); embedding (V, D); key_value (K, width of a key, width
    of a value); residual (D,)"""
    axes: tuple[str | None, ...]
    """logical names of those, as `sharding.RULES` has them"""

    @property
    def matrix(self) -> tuple[int, int]:
        """(in, out) of a linear map or of one expert; (V, D) of an embedding."""
        return self.shape[-2:]

    @property
    def matrix_axes(self) -> tuple[str | None, str | None]:
        return self.axes[-2:]

    @property
    def weight(self) -> str:
        """Path of the parameter that a merge changes."""
        return f"{self.path}/{WEIGHTS[self.kind]}"


@functools.lru_cache(maxsize=16)
def find_sites(config: ModelConfig) -> tuple[Site, ...]:
    """All sites, in the order in which a forward pass comes by. Nothing is computed."""
    unrolled = dataclasses.replace(config, scan_layers="off")
    shapes = leaves_by_path(abstract_params(unrolled))
    axes = leaves_by_path(
        jax.tree.map(_Names, logical_axes(unrolled), is_leaf=lambda x: isinstance(x, tuple))
    )
    sites = []
    for path, (kind, shape) in _walk(config).items():
        for place in _unrolled(path, config):
            if kind in WEIGHTS:
                weight = f"{place}/{WEIGHTS[kind]}"
                sites.append(Site(place, kind, shapes[weight].shape, axes[weight].names))
            else:
                sites.append(Site(place, kind, shape, (None,) * len(shape)))
    return tuple(sites)


@dataclass(frozen=True)
class _Names:
    names: tuple[str | None, ...]


def _walk(config: ModelConfig) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Path in the scanned model -> kind and, of sites without a weight, shape."""
    traced = dataclasses.replace(config, scan_layers="on", remat="none")
    found: dict[str, tuple[str, tuple[int, ...]]] = {}

    def note(next_function, args, kwargs, context):
        kind = KINDS.get(type(context.module))
        if kind and context.method_name == WRAPPED.get(kind, "__call__"):
            found["/".join(context.module.path)] = kind, _activation_shape(kind, args)
        return next_function(*args, **kwargs)

    row = jnp.zeros((1, 1), jnp.int32)
    rows = [Tokens(row, row)] * (2 if config.encoder_layers else 1)
    with nn.intercept_methods(note):
        jax.eval_shape(lambda: Transformer(traced).init(jax.random.key(0), *rows))
    return found


def _activation_shape(kind: str, args: tuple[Array, ...]) -> tuple[int, ...]:
    if kind == "key_value":
        k, v = args
        return (k.shape[2], k.shape[3], v.shape[3])
    return args[0].shape[-1:] if kind == "residual" else ()


def _unrolled(path: str, config: ModelConfig) -> list[str]:
    """The paths in the unrolled model of what is at `path` in the scanned one."""
    prefix = ""
    if path.startswith("encoder/"):
        prefix, path, config = "encoder/", path.removeprefix("encoder/"), config.encoder
    if not path.startswith("layers/"):
        return [prefix + path]
    _, block, rest = path.split("/", 2)
    where = layout(config)
    index = int(block.removeprefix("block_"))
    return [f"{prefix}layers_{where.layer(p, index)}/{rest}" for p in range(where.periods)]
