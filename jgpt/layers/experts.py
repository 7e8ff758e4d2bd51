"""A linear map per expert."""

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
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
        x = x.astype(self.dtype)
        if group_sizes is not None:
            return grouped_matmul(x, self.kernel, group_sizes, backend=self.backend)
        contraction = (((2,), (1,)), ((0,), (0,)))
        y = lax.dot_general(
            x, self.kernel.astype(x.dtype), contraction, preferred_element_type=jnp.float32
        )
        return y.astype(x.dtype)


def gated_experts(
    gate: ExpertLinear, up: ExpertLinear, x: Float[Array, "N i"], group_sizes: Int[Array, "E"]
) -> Float[Array, "N o"]:
    """`silu(gate(x)) * up(x)` in one kernel, where the backend has one."""
    x = x.astype(gate.dtype)
    return grouped_gated(x, gate.kernel, up.kernel, group_sizes, backend=gate.backend)
