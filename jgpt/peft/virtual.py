"""What methods with virtual tokens share: their number, their table, and how it begins."""

import jax.numpy as jnp

from jgpt.config import ConfigError, PeftConfig
from jgpt.layers.initialization import Initializer, Normal
from jgpt.peft.initial import Uniform
from jgpt.peft.method import Call
from jgpt.typing import Array


def length(settings: PeftConfig) -> int:
    """P, virtual tokens."""
    return settings.prompt.length


def initial(settings: PeftConfig) -> Initializer:
    """Of a table with a row per virtual token.

    Raises:
        ConfigError: `peft.prompt.init` asks for rows of the model's embedding.
    """
    kinds = {"normal": Normal(1.0), "uniform": Uniform(0.5)}
    if settings.prompt.init not in kinds:
        raise ConfigError(
            f"peft.prompt.init={settings.prompt.init!r} is for peft.method='prompt_tuning'; for "
            f"{settings.method!r}, set it to 'normal' or 'uniform'"
        )
    return kinds[settings.prompt.init]


def table(call: Call, leaf: Array) -> Array:
    """[1, P, n] of a leaf [P, n], or [B, P, n] where each row of the batch has its own."""
    return call.rows(leaf, jnp.arange(length(call.settings))[None])
