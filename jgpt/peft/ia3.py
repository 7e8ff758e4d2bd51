"""IA3: keys, values and hidden units of feed-forward layers are rescaled (Liu et al. 2022, T-Few).

    k = l_k * (W_k x + b_k)      v = l_v * (W_v x + b_v)      y = W_down (l_ff * h) + b_down

Each l is a vector of one number per unit, 1 at the start: training begins from the model itself,
and nothing else is trained (section 3.3; a learning rate of 3e-3 there). Every row of a batch can
have its own l at the cost of one product, which is what the method was made for.

Where the map writes (keys, values, anything else that `peft.targets` names) its output is scaled,
bias included: `output_scale` [out]. Of a feed-forward layer's `down` it is the input, h after the
activation and, in a gated layer, after the product with the gate: `input_scale` [in]. T-Few's code
scales the output of the up projection of a gated layer, which is the same. Of experts, each has its
own.

By default all keys, values and `down` maps are adapted, in cross attention too; of latent
attention, where keys and values come from one map, its `key_value_up`. Hugging Face's peft does so
for Llama and Mistral, but scales queries in place of keys in Gemma and Qwen; for that, set
`peft.targets` to `('attention/(query|value)$', 'down$')`.
"""

import re

from jgpt.config import PeftConfig
from jgpt.layers.initialization import Constant
from jgpt.peft.method import Call, Leaf, Leaves, Method, Target
from jgpt.typing import Array

KEYS_VALUES_AND_HIDDEN = (r"(attention/(key|value|key_value_up)|(ffn|moe)/(.*/)?down)$",)
INPUT_IS_SCALED = re.compile(r"/down$")


def leaves(target: Target) -> dict[str, Leaf]:
    """`input_scale` [in] of a feed-forward layer's `down`, else `output_scale` [out]."""
    (fan_in, out), (in_axis, out_axis) = target.site.matrix, target.site.matrix_axes
    if INPUT_IS_SCALED.search(target.site.path):
        return {"input_scale": Leaf((fan_in,), (in_axis,), Constant(1.0))}
    return {"output_scale": Leaf((out,), (out_axis,), Constant(1.0))}


def scaled(x: Array, factor: Array) -> Array:
    return (x * factor).astype(x.dtype)


def call(call: Call, x: Array, *rest: Array | None) -> Array:
    """Of a linear map, or of experts (`rest` are their group sizes)."""
    if "input_scale" in call.leaves:
        return call.base(scaled(x, call.lookup(call.leaves["input_scale"])), *rest)
    return scaled(call.base(x, *rest), call.lookup(call.leaves["output_scale"]))


def factor(leaves: Leaves) -> Array:
    """What a kernel [in, out] is multiplied by: [in, 1] or [out]."""
    return leaves["input_scale"][:, None] if "input_scale" in leaves else leaves["output_scale"]


def merge(kind: str, weight: Array, leaves: Leaves, settings: PeftConfig) -> Array:
    return weight * factor(leaves)


def unmerge(kind: str, weight: Array, leaves: Leaves, settings: PeftConfig) -> Array:
    """A unit that was scaled by 0 cannot be had back, and becomes not a number."""
    return weight / factor(leaves)


def merge_bias(bias: Array, leaves: Leaves, settings: PeftConfig) -> Array:
    return bias * leaves["output_scale"] if "output_scale" in leaves else bias


def unmerge_bias(bias: Array, leaves: Leaves, settings: PeftConfig) -> Array:
    return bias / leaves["output_scale"] if "output_scale" in leaves else bias


IA3 = Method(
    kinds=("linear", "experts"),
    targets=KEYS_VALUES_AND_HIDDEN,
    leaves=leaves,
    call=call,
    merge=merge,
    unmerge=unmerge,
    merge_bias=merge_bias,
    unmerge_bias=unmerge_bias,
)
