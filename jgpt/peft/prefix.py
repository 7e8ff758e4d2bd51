"""Prefix tuning and P-Tuning v2: learned keys and values before every document, in every layer.

    attention(q, [P_K; K], [P_V; V]),    P_K, P_V [P, K, d] of each layer, K heads of width d

Every query sees all of the prefix, whatever else the mask hides. Its keys are used as they are,
without rotation; the document's own tokens count their positions from P, as if they came after so
many others (`Method.past_tokens`). How attention meets a prefix is `jgpt.layers.key_value`'s
matter.

- `prefix_tuning` (Li and Liang 2021, "Prefix-Tuning", section 4.3): a network makes keys and
  values, since training them directly is unstable: `[P_K; P_V] = W_up tanh(W_down E + b_down) +
  b_up`. E [P, K d] and W_down are shared by all layers, W_up is each layer's own (together the
  paper's one matrix of 2 L K d columns). P is 5 to 10 there, the width of the network 512.
- `p_tuning_v2` (Liu et al. 2022, "P-Tuning v2"): keys and values are trained themselves, with
  dropout on them (`peft.prompt.dropout`; 0.1 in the authors' code, with P up to 128 and a rate of
  5e-3).

E, and the keys and values trained themselves, begin N(0, 1) as torch's embeddings do, linear maps
as torch's. **Neither is the identity at the start, nor would zeros be:** keys of zeros still take
their share of the softmax.

Where paper and common code differ: of an encoder-decoder peft leaves out the encoder, which the
paper gives a prefix too (section 4.1), and so does this file. No window hides the prefix here.
Biases of distance (ALiBi, T5) see it right before the document.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax.numpy as jnp

from jgpt.layers.key_value import KeysAndValues, Prefix
from jgpt.peft.method import Call, Leaf, Method, Target, no_leaves
from jgpt.peft.networks import linear, linear_leaves
from jgpt.peft.sites import Site
from jgpt.peft.virtual import initial, length, table
from jgpt.typing import Array

ALL_ATTENTION = (r"attention/key_value$",)


def widths(site: Site) -> tuple[int, int]:
    """Columns of all heads' keys, and of their values."""
    heads, of_key, of_value = site.shape
    return heads * of_key, heads * of_value


def call(make: Callable[[Call], Array], call: Call, k: Array, v: Array) -> KeysAndValues:
    """The site's result with the prefix that `make` gives as [1 or B, P, K d + K u].

    Args:
        k: [B, T, K, d].
        v: [B, T, K, u].
    """
    keys, values = jnp.split(make(call), [k.shape[2] * k.shape[3]], axis=-1)

    def heads(x: Array, like: Array) -> Array:
        shape = (like.shape[0], x.shape[1], *like.shape[2:])
        return jnp.broadcast_to(x.reshape(-1, *shape[1:]), shape).astype(like.dtype)

    return call.base(k, v)._replace(prefix=Prefix(heads(keys, k), heads(values, v)))


# --- keys and values that are trained themselves --------------------------------------------------


def direct_leaves(target: Target) -> dict[str, Leaf]:
    """`prefix` [P, K d + K u]."""
    p = length(target.settings)
    return {"prefix": Leaf((p, sum(widths(target.site))), (None, None), initial(target.settings))}


def direct(call: Call) -> Array:
    return call.dropped(table(call, call.leaves["prefix"]), call.settings.prompt.dropout)


# --- keys and values that a network makes ---------------------------------------------------------


def network_width(target: Target) -> int:
    return target.settings.prompt.hidden or target.model.hidden_size


def shared_leaves(targets: tuple[Target, ...]) -> dict[str, Leaf]:
    """`prefix` [P, K d], E above, and `down` with its bias."""
    target = targets[0]
    width, _ = widths(target.site)
    embedding = Leaf((length(target.settings), width), (None, None), initial(target.settings))
    return {"prefix": embedding, **linear_leaves("down", width, network_width(target))}


def up_leaves(target: Target) -> dict[str, Leaf]:
    """`up` [h, K d + K u] and its bias."""
    return linear_leaves("up", network_width(target), sum(widths(target.site)))


def reparameterised(call: Call) -> Array:
    h = jnp.tanh(linear(call, call.shared, "down", table(call, call.shared["prefix"])))
    return linear(call, call.leaves, "up", h)


PREFIX = Method(
    kinds=("key_value",),
    targets=ALL_ATTENTION,
    leaves=up_leaves,
    shared=shared_leaves,
    call=functools.partial(call, reparameterised),
    identity=False,
    past_tokens=length,
)
P_TUNING_V2 = dataclasses.replace(
    PREFIX, leaves=direct_leaves, shared=no_leaves, call=functools.partial(call, direct)
)
