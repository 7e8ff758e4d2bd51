"""Frozen weights in few bits (QLoRA: Dettmers et al. 2023).

The matrices of layers that are not trained are kept in NF4 or int8 in the place of their parameter,
and multiplied by as they are; everything else of the model stays whole.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jgpt.config import ModelConfig, PeftConfig
from jgpt.kernels.nf4_matmul import Nf4, dequantize, quantize
from jgpt.peft.sites import find_sites
from jgpt.peft.targets import IN_A_LAYER
from jgpt.trees import map_with_path
from jgpt.typing import Array, PyTree


def is_quantized(weight: Any) -> bool:
    return isinstance(weight, Nf4)


def restored(weight: Any) -> Array:
    """A kernel [in, out] as numbers, whatever it is kept in."""
    return dequantize(weight).T if is_quantized(weight) else weight.astype(jnp.float32)


def quantized(settings: PeftConfig, model: ModelConfig, params: PyTree) -> PyTree:
    """`params` with the matrices of its layers as `settings.quantize` says."""
    if settings.quantize == "none":
        return params
    one = functools.partial(_nf4, settings.double_quantize)

    def quantise(path: str, leaf: Array) -> Any:
        if not is_matrix_of_a_layer(path, model):
            return leaf
        many = one
        for _ in range(leaf.ndim - 2):
            many = jax.vmap(many)
        return many(leaf)

    return map_with_path(quantise, params)


def _nf4(double: bool, kernel: Array) -> Nf4:
    return quantize(kernel.T, double=double)


def is_matrix_of_a_layer(path: str, model: ModelConfig) -> bool:
    """Whether the parameter at `path` (scanned or not) is the kernel of a site in a layer."""
    return path in _matrices(model)


@functools.lru_cache(maxsize=8)
def _matrices(model: ModelConfig) -> frozenset[str]:
    sites = [s for s in find_sites(model) if s.kind in ("linear", "experts")]
    return frozenset(s.weight for s in sites if IN_A_LAYER.match(s.path))
