"""Bottleneck adapters: a small network of two layers beside a sublayer, after it or along it.

With r the residual stream, h what a sublayer adds to it, and

    A(x) = s (W_up act(W_down dropout(x) + b_down) + b_up),    W_down [D, m], W_up [m, D], m << D

the stream after the sublayer is

| `peft.method` | after | stream | act, m, s |
| --- | --- | --- | --- |
| `houlsby` | every sublayer | `r + h + A(h)` | GELU, D / 16, 1 |
| `pfeiffer` | the feed-forward layer | `r + h + A(r + h)` | ReLU, D / 16, 1 |
| `parallel` | the feed-forward layer | `r + h + A(r)` | ReLU, D / 2, 4 |

Houlsby et al. 2019, "Parameter-Efficient Transfer Learning for NLP"; Pfeiffer et al. 2021,
"AdapterFusion" (section 5.2 of which finds one adapter enough); He et al. 2022, "Towards a Unified
View" (the parallel adapter with factor 4). All W and b are trained.

Where paper and common code differ:

- With post-norm (`model.norm_placement='post'`) the `adapters` library has Pfeiffer's adapter read
  the normalised sum, `norm(r + h + A(norm(r + h)))`, by the layer's own norm; so it is here.
  Houlsby's is the same in all placements.
- Houlsby et al. train the norms and the task's head too: `peft.train_also` names them. Their W
  begin truncated normal with standard deviation 1e-3, close to the identity, their m is 64; the
  `adapters` library has SiLU for GELU.
- `init='zero_up'` (here the default; the `adapters` library's for parallel ones): W_down uniform in
  +-1/sqrt(D), W_up 0, biases 0, so that training starts from the model itself. `init='bert'` is the
  library's default for the others: both W normal with standard deviation 0.02, and **no identity**
  at the start.
- In a block whose sublayers both read the same stream (`model.parallel_block`), r at the
  feed-forward layer is the stream that attention has been added to.

Nothing of this can be merged: between W_up and the model's matrices stands an activation or the
residual stream.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax

from jgpt.config import BottleneckConfig
from jgpt.layers.initialization import Constant, Normal
from jgpt.peft.initial import kaiming_uniform
from jgpt.peft.method import Call, Leaf, Method, Target, add
from jgpt.peft.networks import linear, linear_leaves
from jgpt.typing import Array

Norm = Callable[[Array], Array]
EVERY_SUBLAYER = (r"_residual$",)
FEED_FORWARD = (r"/ffn_residual$",)
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "silu": jax.nn.silu,
}


@dataclass(frozen=True)
class Kind:
    """What tells the three apart."""

    reads: Callable[[Array, Array, Norm | None], Array]
    """(r, h, the norm after the sum or None) -> what A is applied to"""
    activation: str
    reduction: int
    scale: float


HOULSBY_KIND = Kind(lambda r, h, norm: h, "gelu", 16, 1.0)
PFEIFFER_KIND = Kind(lambda r, h, norm: norm(r + h) if norm else r + h, "relu", 16, 1.0)
PARALLEL_KIND = Kind(lambda r, h, norm: r, "relu", 2, 4.0)


def size(settings: BottleneckConfig, width: int, kind: Kind) -> int:
    """m for a stream of `width`."""
    return settings.size or max(width // (settings.reduction or kind.reduction), 1)


def leaves(kind: Kind, target: Target) -> dict[str, Leaf]:
    """`down` [D, m], `down_bias` [m], `up` [m, D], `up_bias` [D]."""
    settings, (width,) = target.settings.bottleneck, target.site.shape
    m = size(settings, width, kind)
    down, up = kaiming_uniform(width), Constant(0.0)
    if settings.init == "bert":
        down = up = Normal(0.02)
    zeros = Constant(0.0)
    return {
        **linear_leaves("down", width, m, ("embed", None), down, zeros),
        **linear_leaves("up", m, width, (None, "embed"), up, zeros),
    }


def adapter(kind: Kind, call: Call, x: Array) -> Array:
    """A(x) for x [..., D], in its dtype."""
    settings = call.settings.bottleneck
    act = ACTIVATIONS[settings.activation or kind.activation]
    h = linear(call, call.leaves, "down", call.dropped(x))
    return linear(call, call.leaves, "up", act(h)) * (settings.scale or kind.scale)


def call(kind: Kind, call: Call, r: Array, h: Array, norm: Norm | None = None) -> Array:
    return add(call.base(r, h), adapter(kind, call, kind.reads(r, h, norm)))


def method(kind: Kind, targets: tuple[str, ...]) -> Method:
    return Method(
        kinds=("residual",),
        targets=targets,
        leaves=functools.partial(leaves, kind),
        call=functools.partial(call, kind),
    )


HOULSBY = method(HOULSBY_KIND, EVERY_SUBLAYER)
PFEIFFER = method(PFEIFFER_KIND, FEED_FORWARD)
PARALLEL = method(PARALLEL_KIND, FEED_FORWARD)
