"""Keys and values as attention sees them, and a learned prefix before them.

A prefix (Li and Liang 2021, "Prefix-Tuning") is keys and values of no token, which every query sees
whatever the mask says of the text. It is never put in front of the text's own: attention to each of
the two is computed by itself, and the results are weighed by what their softmaxes divide by. Masks,
packed rows, caches and kernels are then those of the text alone.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from jgpt.kernels.attention import attention, attention_with_logsumexp, reference
from jgpt.typing import Array, Bias, Mask


class Prefix(NamedTuple):
    """Keys, which have no position and are never rotated, and values."""

    k: Float[Array, "B P K d"]
    v: Float[Array, "B P K u"]


class KeysAndValues(NamedTuple):
    """What queries attend to."""

    k: Float[Array, "B T K d"]
    v: Float[Array, "B T K u"]
    prefix: Prefix | None = None


class KeyValue(nn.Module):
    """Keys and values as attention sees them; one of the sites that adapters attach to.

    An adapter may change both and may put a prefix before them.
    """

    @nn.compact
    def __call__(self, k: Float[Array, "B T K d"], v: Float[Array, "B T K u"]) -> KeysAndValues:
        return KeysAndValues(k, v)


def attend(
    q: Float[Array, "B S H d"],
    kv: KeysAndValues,
    mask: Mask,
    *,
    positions: Int[Array, "B S"] | None = None,
    dropout: float = 0.0,
    dropout_key: Array | None = None,
    backend: str = "auto",
    scale: float | Array,
    softcap: float = 0.0,
    bias: Bias | None = None,
    sinks: Array | None = None,
) -> Float[Array, "B S H u"]:
    """`kernels.attention.attention` to a text and the prefix before it.

    Args:
        positions: of the queries, read where there is a `bias`.

    Raises:
        ValueError: as there; with a prefix, also a named backend that gives no log-sum-exp.
    """
    scores = {"scale": scale, "softcap": softcap, "bias": bias, "sinks": sinks}
    drop = {"dropout": dropout, "dropout_key": dropout_key}
    if kv.prefix is None:
        return attention(q, kv.k, kv.v, mask, backend=backend, **drop, **scores)
    out, logsumexp = attention_with_logsumexp(q, kv.k, kv.v, mask, backend=backend, **scores)
    if dropout and dropout_key is not None:
        # Dropped probabilities are divided by the same sum, which only the undropped ones tell.
        out = attention(q, kv.k, kv.v, mask, backend=backend, **drop, **scores)
    del scores["sinks"]
    return with_prefix(out, logsumexp, q, kv.prefix, positions=positions, **drop, **scores)


def with_prefix(
    out: Float[Array, "B S H u"],
    logsumexp: Float[Array, "B S H"],
    q: Float[Array, "B S H d"],
    prefix: Prefix,
    *,
    positions: Int[Array, "B S"] | None = None,
    dropout: float = 0.0,
    dropout_key: Array | None = None,
    scale: float | Array,
    softcap: float = 0.0,
    bias: Bias | None = None,
) -> Float[Array, "B S H u"]:
    """Attention to a text (`out`, `logsumexp`, sinks included) and to the prefix together.

    With l and l' what the softmaxes over the text and over the prefix divide by (as logarithms),
    the whole is `(e^l out + e^l' out') / (e^l + e^l')`, in which the prefix counts sigmoid(l' - l).

    Args:
        positions: of the queries in their texts, which a `bias` needs: the prefix lies right before
            position 0.
    """
    length = prefix.k.shape[1]
    mask = Mask(causal=False)
    if bias is not None:
        before = jnp.arange(length, dtype=jnp.int32)[None]
        mask = Mask(causal=False, q_positions=positions + length, kv_positions=before)
    if dropout_key is not None:
        dropout_key = jax.random.fold_in(dropout_key, 0x707265)
    added, its = reference.attention_with_logsumexp(
        q,
        prefix.k.astype(q.dtype),
        prefix.v.astype(q.dtype),
        mask,
        scale=scale,
        softcap=softcap,
        bias=bias,
        dropout=dropout,
        dropout_key=dropout_key,
    )
    share = jax.nn.sigmoid(its - logsumexp)[..., None]
    return (out + share * (added.astype(share.dtype) - out)).astype(out.dtype)
