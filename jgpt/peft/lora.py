"""LoRA: a low-rank update beside every frozen matrix (Hu et al. 2021, section 4.1).

    y = W x + s B (A dropout(x)),    s = alpha / r, or alpha / sqrt(r) (rsLoRA, Kalajdzievski 2023)

A [in, r] begins uniform in +-1/sqrt(in) and B [r, out] at 0, so that training starts from the model
itself. `W + s B A` is never built while training: that would cost what training W costs.

Of an embedding, A [V, r] begins at 0 and B [r, D] normal; a token's row of A is looked up. The
constant `scaling` [r] holds s, and 0 in columns that a layer does not use: layers of a stack may
have different ranks.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp

from jgpt.config import PeftConfig
from jgpt.layers.initialization import Constant, Normal
from jgpt.peft import starts
from jgpt.peft.initial import Columns, kaiming_uniform
from jgpt.peft.method import Call, Leaf, Leaves, Method, Target, add
from jgpt.typing import Array

QUERY_AND_VALUE = (r"attention/(query|value)$",)


def leaves(target: Target) -> dict[str, Leaf]:
    """`lora_a`, `lora_b`, `scaling`, and with `peft.bias` `lora_bias` [out]."""
    (fan_in, out), (in_axis, out_axis) = target.site.matrix, target.site.matrix_axes
    width = target.width
    first, second = kaiming_uniform(fan_in), Constant(0.0)
    if target.settings.init == "gaussian":
        first = Normal(1 / max(target.rank, 1))
    if target.site.kind == "embedding":
        first, second = Constant(0.0), Normal(1.0)
    result = {
        "lora_a": Leaf((fan_in, width), (in_axis, None), first),
        "lora_b": Leaf((width, out), (None, out_axis), second),
        "scaling": Leaf((width,), (None,), Columns(target.rank, target.scale), trained=False),
    }
    if target.settings.bias and target.site.kind == "linear":
        result["lora_bias"] = Leaf((out,), (out_axis,), Constant(0.0))
    return result


def delta(call: Call, x: Array) -> Array:
    """s (B A x + bias) of a linear map's x [..., in] or of an embedding's ids [...]."""
    a, b, s = (call.leaves[name] for name in ("lora_a", "lora_b", "scaling"))
    if call.kind == "embedding":
        h = call.rows(a, x)
    else:
        h = call.product(call.dropped(x), a)
    y = call.product(h * call.lookup(s).astype(h.dtype), b)
    if "lora_bias" in call.leaves:
        y = y + call.lookup(call.leaves["lora_bias"] * s[..., :1]).astype(y.dtype)
    return y


def call(call: Call, x: Array, *rest: Any) -> Array:
    return add(call.base(x, *rest), delta(call, x))


def update(leaves: Leaves) -> Array:
    """s B A, the matrix [in, out]."""
    return (leaves["lora_a"] * leaves["scaling"]).astype(jnp.float32) @ leaves["lora_b"].astype(
        jnp.float32
    )


def merge(kind: str, weight: Array, leaves: Leaves, settings: PeftConfig) -> Array:
    return weight + update(leaves)


def unmerge(kind: str, weight: Array, leaves: Leaves, settings: PeftConfig) -> Array:
    return weight - update(leaves)


def merge_bias(bias: Array, leaves: Leaves, settings: PeftConfig) -> Array:
    return bias + leaves["lora_bias"] * leaves["scaling"][:1] if "lora_bias" in leaves else bias


def rates(name: str, settings: PeftConfig) -> float:
    """B learns `rate_ratio` times as fast as A (LoRA+: `jgpt.peft.lora_plus`)."""
    return settings.rate_ratio or 1.0 if name in ("lora_b", "lora_bias") else 1.0


LORA = Method(
    kinds=("linear", "experts", "embedding"),
    targets=QUERY_AND_VALUE,
    leaves=leaves,
    call=call,
    merge=merge,
    unmerge=unmerge,
    merge_bias=merge_bias,
    start=starts.choose,
    inits=("default", "gaussian", *starts.SPLITS),
    masked=True,
    rates=rates,
)

RSLORA = dataclasses.replace(LORA, defaults={"scaling": "sqrt_rank"})
PISSA, OLORA, LOFTQ = (
    dataclasses.replace(LORA, defaults={"init": name}, identity=name != "loftq")
    for name in ("pissa", "olora", "loftq")
)
