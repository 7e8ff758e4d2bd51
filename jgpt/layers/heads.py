"""What is read from hidden states besides next tokens: pooled vectors, labels, masked tokens."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from jgpt.config import ConfigError, ModelConfig
from jgpt.layers.initialization import hidden_std
from jgpt.layers.linear import Linear
from jgpt.layers.norm import Norm
from jgpt.typing import Array


def pool(
    pooling: str, hidden: Float[Array, "B S D"], token_mask: Bool[Array, "B S"] | None
) -> Float[Array, "B D"]:
    """One vector per row, a row being one document.

    Args:
        pooling: `cls`, the first token's; `mean` over all that are not padding, summed in float32;
            `last`, the last one's that is not padding (padding stands on the right).
        hidden: hidden states.
        token_mask: False at padding; None when there is none.

    Raises:
        ConfigError: another pooling.
    """
    if pooling == "cls":
        return hidden[:, 0]
    if pooling not in ("mean", "last"):
        raise ConfigError(
            f"model.pooling is {pooling!r}, which gives no vector; set it to 'cls', 'mean' or "
            "'last'"
        )
    if token_mask is None:
        token_mask = jnp.ones(hidden.shape[:2], bool)
    if pooling == "last":
        last = jnp.maximum(jnp.sum(token_mask, axis=1) - 1, 0)
        return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
    weights = token_mask.astype(jnp.float32)[..., None]
    total = jnp.sum(hidden.astype(jnp.float32) * weights, axis=1)
    return (total / jnp.maximum(jnp.sum(weights, axis=1), 1.0)).astype(hidden.dtype)


def normalize(x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """`x` at length 1, in float32; a zero vector stays one."""
    x = x.astype(jnp.float32)
    length = jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True))
    return x / jnp.maximum(length, 1e-12)


class Transform(nn.Module):
    """`norm(act(dense(x)))`: before a masked-language-model head, and what poolers are made of.

    Parameters: `dense` [D, D], with a bias where `ffn_bias` says so, and `norm` if used.

    Attributes:
        activation: applied to the dense map's output.
        use_norm: whether a norm follows.
    """

    config: ModelConfig
    activation: Callable[[Array], Array]
    use_norm: bool

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        c = self.config
        dense = Linear(
            c.hidden_size,
            ("embed", "pooled"),
            c.ffn_bias,
            hidden_std(c),
            c.dtype,
            c.param_dtype,
            name="dense",
        )
        x = self.activation(dense(x))
        return Norm(c, name="norm")(x) if self.use_norm else x


def gelu(config: ModelConfig) -> Callable[[Array], Array]:
    """The form of GELU that `config.gelu_approximate` chooses."""
    return lambda x: jax.nn.gelu(x, approximate=config.gelu_approximate)


def head_transform(config: ModelConfig, name: str = "head_transform") -> Transform:
    """Between hidden states and the vocabulary (Devlin et al. 2019, their released code)."""
    return Transform(config, gelu(config), use_norm=True, name=name)


def pooler(config: ModelConfig, name: str = "pooler") -> Transform:
    """The map that `config.pooler` names, over what was pooled."""
    activation = jnp.tanh if config.pooler == "tanh" else gelu(config)
    return Transform(config, activation, use_norm=config.pooler == "gelu_norm", name=name)


def classifier(config: ModelConfig, name: str = "classifier") -> Linear:
    """To `num_labels` outputs, float32: the logits of classes, or numbers to regress."""
    return Linear(
        config.num_labels,
        ("embed", "labels"),
        True,
        config.init_std,
        "float32",
        config.param_dtype,
        name=name,
    )
