"""The gated product of a feed-forward layer, put together from a backend's grouped products.

    gate = x @ w_gate[g],  up = x @ w_up[g],  h = activation(gate) * up

(Shazeer 2020, "GLU Variants Improve Transformer"). The plain twin of every fused form, and what a
backend without one runs. Between the passes [N,F] `gate` and `up` are kept in x's dtype, as an
unfused layer keeps them: to compute them again would cost half of the backward pass's products.
Where memory is short, rematerialisation of the layer drops them.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jgpt.typing import Array

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


def gated(gate: Array, up: Array, activation: str) -> Array:
    """`activation(gate) * up` in float32 or wider."""
    gate, up = _wide(gate), _wide(up)
    return ACTIVATIONS[activation](gate) * up


def gated_gradients(gate: Array, up: Array, dh: Array, activation: str) -> tuple[Array, Array]:
    """Gradients of `gated` for gate and up, in float32 or wider."""
    gate, up, dh = _wide(gate), _wide(up), _wide(dh)
    value, pull = jax.vjp(ACTIVATIONS[activation], gate)
    (dgate,) = pull(dh * up)
    return dgate, dh * value


def _wide(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def forward(
    matmul: Callable[..., Array],
    x: Array,
    w_gate: Array,
    w_up: Array,
    sizes: Array,
    activation: str,
) -> tuple[Array, Array, Array]:
    """h, gate and up, each [N,F] in x's dtype."""
    gate, up = matmul(x, w_gate, sizes), matmul(x, w_up, sizes)
    return gated(gate, up, activation).astype(x.dtype), gate, up


def backward(
    input_gradient: Callable[..., Array],
    weight_gradient: Callable[..., Array],
    x: Array,
    w_gate: Array,
    w_up: Array,
    sizes: Array,
    gate: Array,
    up: Array,
    dh: Array,
    activation: str,
) -> tuple[Array, Array, Array]:
    """dx [N,D] in x's dtype, and both weights' gradients in theirs."""
    dgate, dup = (d.astype(x.dtype) for d in gated_gradients(gate, up, dh, activation))
    dx = input_gradient(dgate, w_gate, sizes) + input_gradient(dup, w_up, sizes)
    dw_gate = weight_gradient(x, dgate, sizes, w_gate.dtype)
    return dx, dw_gate, weight_gradient(x, dup, sizes, w_up.dtype)
