"""Frozen weights in few bits (QLoRA: Dettmers et al. 2023).

The matrices of layers that are not trained lie in NF4 or int8 in the place of their parameter, and
are multiplied by as they are (`layers.packed`); everything else of the model stays whole: the
embedding, the head, norms, routers. A matrix whose inputs do not fill blocks of 64 stays whole too,
with a line in the log: one odd width of a public model is no reason to refuse it. Where none fits
the run is refused.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jgpt.config import ConfigError, ModelConfig, PeftConfig
from jgpt.kernels.nf4_matmul.format import BLOCK
from jgpt.kernels.quantized import quantize
from jgpt.layers.packed import is_packed, packed_axes, unpacked
from jgpt.models.layout import layout
from jgpt.peft.sites import find_sites
from jgpt.peft.targets import IN_A_LAYER
from jgpt.trees import path_string
from jgpt.typing import Array, PyTree

log = logging.getLogger(__name__)

Convert = Callable[[str, Array], Any]
"""(path of a parameter, scanned or not, its array) -> what lies in its place."""
is_quantized = is_packed


def restored(weight: Any) -> Array:
    """Kernels [..., in, out] as numbers in float32, whatever they are kept in."""
    return unpacked(weight) if is_packed(weight) else weight.astype(jnp.float32)


def quantized(settings: PeftConfig, model: ModelConfig, params: PyTree) -> PyTree:
    """`params` with the matrices of its layers as `settings.quantize` says.

    Raises:
        ConfigError: no matrix fits.
    """
    convert = converter(settings, model)
    if convert is None:
        return params
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf if is_packed(leaf) else convert(path_string(path), leaf),
        params,
        is_leaf=is_packed,
    )


def converter(settings: PeftConfig, model: ModelConfig) -> Convert | None:
    """What packs a parameter on its way in, so that no two copies of a model need to be there.

    None where nothing is quantised. Parameters that stay whole are returned as they are. Layers
    that are stacked are packed one after the other.

    Raises:
        ConfigError: no matrix fits.
    """
    if settings.quantize == "none":
        return None
    kind = settings.quantize
    if kind == "nf4" and not settings.double_quantize:
        kind = "nf4_plain"
    fitting, odd = _matrices(model, BLOCK if settings.quantize == "nf4" else 1)
    if not fitting:
        raise ConfigError(
            f"peft.quantize={settings.quantize!r}: no matrix of this model has inputs in multiples "
            f"of {BLOCK}; set it to 'int8' or 'none'"
        )
    if odd:
        _note(settings.quantize, odd)

    def one(kernel: Array) -> Any:
        return quantize(kernel.T, kind)

    @jax.jit
    def pack(kernels: Array) -> Any:
        return one(kernels) if kernels.ndim == 2 else jax.vmap(one)(kernels)

    def convert(path: str, leaf: Array) -> Any:
        if path not in fitting:
            return leaf
        return lax.map(pack, leaf) if "layers/" in path else pack(leaf)

    return convert


@functools.cache
def _note(kind: str, paths: tuple[str, ...]) -> None:
    log.warning(
        "peft.quantize=%r leaves %d matrices whole, whose inputs are no multiple of %d: %s",
        kind,
        len(paths),
        BLOCK,
        ", ".join(paths[:3]),
    )


def quantized_axes(tree: PyTree, axes: PyTree) -> PyTree:
    """Logical names for every array of `tree`, in which some parameters are packed.

    Args:
        tree: parameters, or shapes in their place.
        axes: a tuple of names for every parameter.
    """
    return jax.tree.map(
        lambda leaf, names: packed_axes(leaf, names) if is_packed(leaf) else names,
        tree,
        axes,
        is_leaf=is_packed,
    )


@functools.lru_cache(maxsize=8)
def _matrices(model: ModelConfig, block: int) -> tuple[frozenset[str], tuple[str, ...]]:
    """(paths of the kernels in layers, scanned and not, whose inputs fill blocks; the others)."""
    fitting, odd = set(), []
    for site in find_sites(model):
        place = IN_A_LAYER.match(site.path)
        if site.kind not in ("linear", "experts") or not place:
            continue
        if site.matrix[0] % block:
            odd.append(site.weight)
            continue
        fitting.add(site.weight)
        stack, index = place[1] or "", int(place[2])
        where = layout(model.encoder if stack else model)
        if where.periods and where.first <= index < where.stop:
            number = (index - where.first) % where.period
            fitting.add(f"{stack}layers/block_{number}/{place[3]}/kernel")
    return frozenset(fitting), tuple(odd)
