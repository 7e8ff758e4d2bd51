"""A linear map per expert, and the gated network made of three of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Float, Int

from jgpt.kernels.grouped_matmul import grouped_gated, grouped_matmul
from jgpt.layers.initialization import normal
from jgpt.typing import Array


class ExpertLinear(nn.Module):
    """`x @ kernel[e]` for the rows of each expert e; one of the sites that adapters attach to.

    Parameter: `kernel` [E, in_features, features]. Where `kernel` is read and the module is not
    called (`gated_experts`), an adapter that wraps the call is not seen: `moe.fused` decides.

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

    def setup(self) -> None:
        shape = (self.num_experts, self.in_features, self.features)
        init = normal(self.init_std, "experts", *self.axes)
        self.kernel = self.param("kernel", init, shape, self.param_dtype)

    def __call__(
        self, x: Float[Array, "*rows i"], group_sizes: Int[Array, "E"] | None = None
    ) -> Float[Array, "*rows o"]:
        """Applies each expert to its rows.

        Args:
            x: [N, in] sorted by expert, with `group_sizes`; or [E, C, in] without.
            group_sizes: rows of each expert; rows past their sum give 0.
        """
        return expert_linear(x.astype(self.dtype), self.kernel, group_sizes, self.backend)


def expert_linear(
    x: Float[Array, "*rows i"],
    kernel: Float[Array, "E i o"],
    group_sizes: Int[Array, "E"] | None = None,
    backend: str = "auto",
) -> Float[Array, "*rows o"]:
    """`ExpertLinear` as a function of its kernel."""
    if group_sizes is not None:
        return grouped_matmul(x, kernel, group_sizes, backend=backend)
    contraction = (((2,), (1,)), ((0,), (0,)))
    y = lax.dot_general(x, kernel.astype(x.dtype), contraction, preferred_element_type=jnp.float32)
    return y.astype(x.dtype)


def gated_experts(
    gate: ExpertLinear, up: ExpertLinear, x: Float[Array, "N i"], group_sizes: Int[Array, "E"]
) -> Float[Array, "N o"]:
    """`silu(gate(x)) * up(x)` in one kernel, where the backend has one."""
    x = x.astype(gate.dtype)
    return grouped_gated(x, gate.kernel, up.kernel, group_sizes, backend=gate.backend)


class Kernels(NamedTuple):
    """The weights of gated experts."""

    gate: Float[Array, "E D F"]
    up: Float[Array, "E D F"]
    down: Float[Array, "E F D"]


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
    """`down(silu(gate(x)) * up(x))` of each row's expert; with `fused` half of it in one kernel.

    Args:
        scales: factor of each result, applied before `down`: its gradient needs no result then.
    """
    x = x.astype(dtype)
    if fused and group_sizes is not None:
        h = grouped_gated(x, kernels.gate, kernels.up, group_sizes, backend=backend)
    else:
        gate = expert_linear(x, kernels.gate, group_sizes, backend)
        h = jax.nn.silu(gate) * expert_linear(x, kernels.up, group_sizes, backend)
    if scales is not None:
        h = checkpoint_name((h * scales).astype(h.dtype), SCALED)
    return expert_linear(h, kernels.down, group_sizes, backend)
