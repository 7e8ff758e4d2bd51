"""A linear map per expert, and the gated network made of three of them."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Float, Int

from jgpt.kernels.grouped_matmul import grouped_gated, grouped_matmul
from jgpt.kernels.quantized import Packed
from jgpt.layers.initialization import normal
from jgpt.layers.packed import is_packed, packed_parameter, unpacked
from jgpt.typing import Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Adapted:
    """A kernel per expert, and what an adapter makes of the map: the weights of an adapted layer.

    A pytree, so that it travels over a mesh and through gradients as kernels do.
    """

    kernel: Array | Packed
    leaves: dict[str, Array]
    """the adapter's"""
    axes: tuple[tuple[str, tuple[str | None, ...]], ...] = field(metadata={"static": True})
    """name of a leaf -> logical names of its axes"""
    call: Callable[..., Array] = field(metadata={"static": True})
    """(this, rows, group sizes or None, backend) -> rows, as `expert_linear`"""


class ExpertLinear(nn.Module):
    """`x @ kernel[e]` for the rows of each expert e; one of the sites that adapters attach to.

    They wrap `weights`, which is what a layer of experts is a function of, on one device and over
    a mesh.

    Parameter: `kernel` [E, in_features, features]; a frozen one may be packed (`layers.packed`).

    Attributes:
        num_experts: E.
        in_features: size of the input.
        features: size of the output.
        axes: logical names of the kernel's last two axes; the first is "experts".
        init_std: standard deviation of the kernel's normal initial values.
        dtype: of the product's operands and the result; it is summed in float32.
        param_dtype: of the parameters.
        backend: of the grouped product.
    """

    num_experts: int
    in_features: int
    features: int
    axes: tuple[str, str]
    init_std: float = 0.02
    dtype: str = "float32"
    param_dtype: str = "float32"
    backend: str = "auto"

    @nn.compact
    def weights(self) -> Array | Packed | Adapted:
        """What `expert_linear` takes: the kernel, or `Adapted`."""
        packed = packed_parameter(self, "kernel")
        if packed is not None:
            return packed
        shape = (self.num_experts, self.in_features, self.features)
        init = normal(self.init_std, "experts", *self.axes)
        return self.param("kernel", init, shape, self.param_dtype)


Weights = Array | Packed | Adapted
"""Of a linear map per expert: kernels [E, in, out], packed ones, or those with an adapter."""


def expert_linear(
    x: Float[Array, "*rows i"],
    weights: Weights,
    group_sizes: Int[Array, "E"] | None = None,
    backend: str = "auto",
) -> Float[Array, "*rows o"]:
    """Applies each expert to its rows; the sums are in float32, the result in x's dtype.

    Args:
        x: [N, in] sorted by expert, with `group_sizes`; or [E, C, in] without.
        weights: of all experts.
        group_sizes: rows of each expert; rows past their sum give 0.
        backend: of the grouped product.
    """
    if isinstance(weights, Adapted):
        return weights.call(weights, x, group_sizes, backend)
    kernel = whole(weights, x.dtype)
    if group_sizes is not None:
        return grouped_matmul(x, kernel, group_sizes, backend=backend)
    contraction = (((2,), (1,)), ((0,), (0,)))
    y = lax.dot_general(x, kernel.astype(x.dtype), contraction, preferred_element_type=jnp.float32)
    return y.astype(x.dtype)


def whole(weights: Weights, dtype: Any) -> Weights:
    """The weights with packed kernels as numbers of `dtype`: one layer's at a time."""
    if isinstance(weights, Adapted):
        return dataclasses.replace(weights, kernel=whole(weights.kernel, dtype))
    return unpacked(weights).astype(dtype) if is_packed(weights) else weights


class Kernels(NamedTuple):
    """The weights of gated experts."""

    gate: Weights
    """of [E, D, F]"""
    up: Weights
    down: Weights
    """of [E, F, D]"""


class Experts(NamedTuple):
    """A feed-forward layer of experts, and the weights that it is a function of."""

    apply: Callable[..., Array]
    """weights, rows, group sizes or None -> rows, as `ExpertLinear` takes them; `over_mesh`'s take
    a factor per row as well."""
    kernels: Any

    def __call__(self, x: Array, *arguments: Array | None) -> Array:
        return self.apply(self.kernels, x, *arguments)


SCALED = "scaled_hidden"
"""Name of hidden rows times their factor, which need not be kept where they themselves are."""


def swiglu_experts(
    fused: bool,
    backend: str,
    dtype: str,
    kernels: Kernels,
    x: Float[Array, "*rows D"],
    group_sizes: Int[Array, "E"] | None = None,
    scales: Float[Array, "*rows 1"] | None = None,
) -> Float[Array, "*rows D"]:
    """`down(silu(gate(x)) * up(x))` of each row's expert; with `fused` half of it in one kernel,
    which knows nothing of adapters: adapted maps are computed one by one.

    Args:
        scales: factor of each result, applied before `down`: its gradient needs no result then.
    """
    x = x.astype(dtype)
    first = kernels.gate, kernels.up
    if fused and group_sizes is not None and not any(isinstance(w, Adapted) for w in first):
        gate, up = (whole(weights, x.dtype) for weights in first)
        h = grouped_gated(x, gate, up, group_sizes, backend=backend)
    else:
        gate, up = (expert_linear(x, weights, group_sizes, backend) for weights in first)
        h = jax.nn.silu(gate) * up
    if scales is not None:
        h = checkpoint_name((h * scales).astype(h.dtype), SCALED)
    return expert_linear(h, kernels.down, group_sizes, backend)
