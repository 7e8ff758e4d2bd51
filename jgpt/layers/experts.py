"""A linear map per expert."""

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float, Int

from jgpt.kernels.grouped_matmul import grouped_matmul
from jgpt.layers.initialization import normal
from jgpt.typing import Array


class ExpertLinear(nn.Module):
    """`x @ kernel[e]` for the rows of each expert e; one of the sites that adapters attach to.

    Parameter: `kernel` [E, in, features].

    Attributes:
        num_experts: E.
        features: size of the output.
        axes: logical names of the kernel's last two axes; the first is "experts".
        init_std: standard deviation of the kernel's normal initial values.
        dtype: of the product's operands and the result; it is summed in float32.
        param_dtype: of the parameters.
    """

    num_experts: int
    features: int
    axes: tuple[str, str]
    init_std: float = 0.02
    dtype: str = "float32"
    param_dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x: Float[Array, "*rows i"], group_sizes: Int[Array, "E"] | None = None
    ) -> Float[Array, "*rows o"]:
        """Applies each expert to its rows.

        Args:
            x: [N, in] sorted by expert, with `group_sizes`; or [E, C, in] without.
            group_sizes: rows of each expert; rows past their sum give 0.
        """
        shape = (self.num_experts, x.shape[-1], self.features)
        init = normal(self.init_std, "experts", *self.axes)
        kernel = self.param("kernel", init, shape, self.param_dtype)
        x = x.astype(self.dtype)
        if group_sizes is not None:
            return grouped_matmul(x, kernel, group_sizes)
        contraction = (((2,), (1,)), ((0,), (0,)))
        y = lax.dot_general(
            x, kernel.astype(x.dtype), contraction, preferred_element_type=jnp.float32
        )
        return y.astype(x.dtype)
