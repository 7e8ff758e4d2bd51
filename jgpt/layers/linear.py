"""Dense maps: two-dimensional kernels, whatever the input's rank."""

import flax.linen as nn
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Float

from jgpt.kernels.matmul import matmul
from jgpt.layers.initialization import normal, zeros
from jgpt.layers.packed import packed_matmul, packed_parameter
from jgpt.typing import Array

PRODUCT = "product"
"""Name of every product of a dense map, by which `remat='dots'` knows what to keep. (A policy that
looks for `dot_general` finds none: it does not see into functions with gradients of their own.)"""


class Linear(nn.Module):
    """`x @ kernel + bias`; one of the sites that adapters attach to.

    Parameters: `kernel` [in, features], the transpose of torch's; `bias` [features] if used. A
    frozen kernel may be a packed one (`layers.packed`).

    Attributes:
        features: size of the output.
        axes: logical names of the kernel's two axes; the bias has the second.
        init_std: standard deviation of the kernel's normal initial values; the bias starts at 0.
        dtype: of the product's operands and the result; it is summed in float32.
        param_dtype: of the parameters.
    """

    features: int
    axes: tuple[str, str]
    use_bias: bool = False
    init_std: float = 0.02
    dtype: str = "float32"
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "... i"]) -> Float[Array, "... o"]:
        y = checkpoint_name(self._product(x.astype(self.dtype)), PRODUCT)
        if self.use_bias:
            bias = self.param("bias", zeros(self.axes[1]), (self.features,), self.param_dtype)
            y = y + jnp.asarray(bias, self.dtype)
        return y

    def _product(self, x: Float[Array, "... i"]) -> Float[Array, "... o"]:
        packed = packed_parameter(self, "kernel")
        if packed is not None:
            return packed_matmul(x, packed, self.axes)
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", normal(self.init_std, *self.axes), shape, self.param_dtype)
        return matmul(x, kernel)
