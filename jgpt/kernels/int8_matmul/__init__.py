"""Product with a frozen weight in int8, one scale per output (Dettmers et al. 2022, section 2).

Codes and scales are those of bitsandbytes' `int8_vectorwise_quant`; activations are not quantised.
A weight is [out, in], the transpose of a Flax kernel.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jgpt.kernels.matmul import input_gradient, product
from jgpt.kernels.weight_mesh import UNCUT, over_mesh
from jgpt.typing import Array

LARGEST = 127


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Int8:
    """A frozen weight [out, in]: `code * scale / 127`."""

    codes: Array
    """[out, in] int8, -127 to 127"""
    scales: Array
    """[out, 1] float32: the row's largest magnitude"""

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape


def quantize(weight: Array) -> Int8:
    """A float weight [out, in] in int8; half way between two codes the even one.

    Raises:
        ValueError: another rank.
    """
    if weight.ndim != 2:
        raise ValueError(f"int8 takes a weight [out, in], not {weight.shape}; leave it as it is")
    weight = weight.astype(jnp.float32)
    scales = abs(weight).max(1, keepdims=True)
    codes = jnp.round(weight * (LARGEST / jnp.where(scales == 0, 1, scales)))
    return Int8(codes.astype(jnp.int8), scales)


def dequantize(packed: Int8) -> Array:
    """The weight [out, in] in float32."""
    return packed.codes * _factors(packed)


def _factors(packed: Int8) -> Array:
    return packed.scales * (1 / LARGEST)


class Backend(NamedTuple):
    forward: Callable[[Array, Int8], Array]
    """x [T, in] -> [T, out] in float32 or wider."""
    backward: Callable[[Array, Int8], Array]
    """dy [T, out] -> [T, in] in float32 or wider."""


def _scaled_forward(x: Array, packed: Int8) -> Array:
    """The codes are exact in bfloat16, so they are multiplied as they are and outputs scaled."""
    return input_gradient(x, packed.codes.astype(x.dtype)) * _factors(packed)[:, 0]


def _scaled_backward(dy: Array, packed: Int8) -> Array:
    scaled = (dy * _factors(packed)[:, 0]).astype(dy.dtype)
    return product(scaled, packed.codes.astype(dy.dtype))


BACKENDS = {
    "scaled": Backend(_scaled_forward, _scaled_backward),
    "reference": Backend(
        lambda x, packed: input_gradient(x, dequantize(packed).astype(x.dtype)),
        lambda dy, packed: product(dy, dequantize(packed).astype(dy.dtype)),
    ),
}
"""Both run on every device; `auto` is the first."""


def int8_matmul(
    x: Array, packed: Int8, *, backend: str = "auto", cut: PartitionSpec = UNCUT
) -> Array:
    """`x @ dequantize(packed).T`, summed in float32: [..., in] to [..., out] in x's dtype.

    Differentiable in x alone, in reverse mode: the weight is frozen.

    Args:
        x: [..., in]; its dtype is that of the multiplications.
        packed: a weight [out, in] from `quantize`.
        backend: `auto` or a name from BACKENDS.
        cut: how the weight [out, in] lies over the mesh that is set (`weight_mesh`).

    Raises:
        ValueError: shapes that do not fit, also the mesh, or an unknown backend.
    """
    if x.ndim < 1 or x.shape[-1] != packed.shape[1]:
        raise ValueError(f"x {x.shape} does not fit an int8 weight [out, in] of {packed.shape}")
    name = next(iter(BACKENDS)) if backend == "auto" else backend
    if name not in BACKENDS:
        raise ValueError(
            f"int8 backend {backend!r} is unknown; choose auto or one of {', '.join(BACKENDS)}"
        )
    return _int8_matmul(name, cut, x, packed)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _int8_matmul(name: str, cut: PartitionSpec, x: Array, packed: Int8) -> Array:
    return over_mesh(BACKENDS[name].forward, x, packed, cut, contracted=1).astype(x.dtype)


def _forward(name: str, cut: PartitionSpec, x: Array, packed: Int8):
    return _int8_matmul(name, cut, x, packed), packed


def _backward(name: str, cut: PartitionSpec, packed: Int8, dy: Array):
    dx = over_mesh(BACKENDS[name].backward, dy, packed, cut, contracted=0)
    return dx.astype(dy.dtype), None


_int8_matmul.defvjp(_forward, _backward)
