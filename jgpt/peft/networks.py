"""Small linear maps inside adapters: their leaves, and their use."""

from jgpt.layers.initialization import Initializer
from jgpt.peft.initial import kaiming_uniform
from jgpt.peft.method import Call, Leaf, Leaves, add
from jgpt.typing import Array


def linear_leaves(
    name: str,
    fan_in: int,
    out: int,
    axes: tuple[str | None, str | None] = (None, None),
    kernel: Initializer | None = None,
    bias: Initializer | None = None,
) -> dict[str, Leaf]:
    """`name` [in, out] and `name_bias` [out]; both begin as in torch, +-1/sqrt(in), unless said."""
    return {
        name: Leaf((fan_in, out), axes, kernel or kaiming_uniform(fan_in)),
        f"{name}_bias": Leaf((out,), axes[1:], bias or kaiming_uniform(fan_in)),
    }


def linear(call: Call, leaves: Leaves, name: str, x: Array) -> Array:
    """x [..., in] to [..., out], in x's dtype."""
    return add(call.product(x, leaves[name]), call.lookup(leaves[f"{name}_bias"]))
