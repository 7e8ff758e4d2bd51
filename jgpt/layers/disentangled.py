"""DeBERTa's attention: contents and distances meet as vectors of their own (He et al. 2021).

It holds the scores [B, H, S, S] whole, as `kernels.attention.reference` does: what is added to a
score depends on the query and on the key, and no blockwise kernel has a bias of that kind.
"""

import math

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float, Int

from jgpt.config import ConfigError, ModelConfig
from jgpt.kernels.attention.mask import row_indices, visible
from jgpt.kernels.attention.reference import masked_softmax
from jgpt.layers.attention import Context, head_projection, output_projection
from jgpt.layers.cache import KVCache
from jgpt.layers.initialization import normal
from jgpt.layers.key_value import KeyValue
from jgpt.layers.residual import dropout
from jgpt.typing import Array


def log_bucket(distance: Int[Array, "..."], num_buckets: int, max_distance: int) -> Array:
    """Signed bucket of a distance, int32 in [-num_buckets, num_buckets] (DeBERTa-v2's code).

    Distances up to half of `num_buckets` have one bucket each, the others grow logarithmically up
    to `max_distance`.
    """
    exact = num_buckets // 2
    size = jnp.maximum(abs(distance), exact)
    # float32 and this order of operations are part of the definition: bucket borders depend on it.
    ratio = jnp.log(size.astype(jnp.float32) / exact)
    ratio = ratio / jnp.log(jnp.float32((max_distance - 1) / exact)) * (exact - 1)
    large = jnp.sign(distance) * (jnp.ceil(ratio).astype(jnp.int32) + exact)
    return jnp.where(abs(distance) <= exact, distance, large)


def distance_buckets(config: ModelConfig, positions: Int[Array, "B S"]) -> Int[Array, "B S S"]:
    """Row of the relative embeddings for every (query, key): the bucket of query minus key."""
    span = config.relative_buckets
    distance = positions[:, :, None] - positions[:, None, :]
    bucket = log_bucket(distance, span, config.relative_max_distance)
    return jnp.clip(bucket + span, 0, 2 * span - 1)


class RelativeEmbedding(nn.Module):
    """`table` [2 buckets, D]: a vector per bucket of distance, shared by all layers."""

    config: ModelConfig

    @nn.compact
    def __call__(self) -> Float[Array, "buckets D"]:
        c = self.config
        shape = (2 * c.relative_buckets, c.hidden_size)
        init = normal(c.init_std, "buckets", "embed")
        return self.param("table", init, shape, c.param_dtype)


class DisentangledAttention(nn.Module):
    """Content to content, content to position and position to content, summed.

    `(q_i . k_j + q_i . kr_b + k_j . qr_b) / sqrt(3 d)` with b the bucket of i - j, and kr, qr the
    relative embeddings through the same key and query maps (section 3.2; `share_att_key` in the
    released v2 models). Parameters as of `Attention`.

    Attributes:
        kind: `global` or `local`.
    """

    config: ModelConfig
    kind: str

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B S D"],
        context: Context,
        cache: KVCache | None = None,
        dropout_key: Array | None = None,
    ) -> tuple[Float[Array, "B S D"], None]:
        """The layer's output; there is no cache, since every token sees all others."""
        c = self.config
        shape = (c.num_heads, c.size_of_head)
        maps = {
            name: head_projection(c, c.num_heads, "heads", name=name)
            for name in ("query", "key", "value")
        }

        def heads(name: str, x: Array) -> Array:
            return maps[name](x).reshape(*x.shape[:-1], *shape)

        k, v, prefix = KeyValue(name="key_value")(heads("key", x), heads("value", x))
        if prefix is not None:
            raise ConfigError(
                "a learned prefix has no distance to the tokens, which "
                "model.position='disentangled' is made of; choose another peft.method"
            )
        scores = disentangled_scores(
            heads("query", x),
            k,
            heads("query", context.relative.embeddings),
            heads("key", context.relative.embeddings),
            context.relative.buckets,
        )
        mask = context.masks[self.kind]
        at = row_indices(mask, x.shape[1], x.shape[1])
        allowed = visible(mask, at, mask.q_segment_ids, mask.kv_segment_ids)
        probabilities = masked_softmax(scores, None if allowed is None else allowed[:, None])
        probabilities = dropout(probabilities, c.attention_dropout, dropout_key)
        y = jnp.einsum("bhst,bthd->bshd", probabilities, v.astype(jnp.float32)).astype(x.dtype)
        return output_projection(c, name="output")(y.reshape(*x.shape[:-1], -1)), None


def disentangled_scores(
    q: Float[Array, "B S H d"],
    k: Float[Array, "B S H d"],
    relative_q: Float[Array, "buckets H d"],
    relative_k: Float[Array, "buckets H d"],
    buckets: Int[Array, "B S S"],
) -> Float[Array, "B H S S"]:
    """Scaled scores before the mask, float32; `buckets` is [query, key], B may be 1."""
    q, k, relative_q, relative_k = (x.astype(jnp.float32) for x in (q, k, relative_q, relative_k))
    content = jnp.einsum("bshd,bthd->bhst", q, k)
    to_position = jnp.einsum("bshd,rhd->bhsr", q, relative_k)
    to_position = jnp.take_along_axis(to_position, buckets[:, None], axis=3)
    from_position = jnp.einsum("bthd,rhd->bhtr", k, relative_q)
    by_key = buckets.swapaxes(1, 2)[:, None]
    from_position = jnp.take_along_axis(from_position, by_key, axis=3).swapaxes(2, 3)
    return (content + to_position + from_position) / math.sqrt(3 * q.shape[-1])
