"""Attention of a decoder to what its encoder made of the source."""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float, Int

from jgpt.config import ModelConfig
from jgpt.layers.attention import attention_scale, head_projection, output_projection
from jgpt.layers.key_value import KeysAndValues, KeyValue, attend
from jgpt.typing import Array, Mask


class Source(NamedTuple):
    """What a decoder attends to."""

    hidden: Float[Array, "B T D"] | None
    """The encoder's output; None where every layer has keys and values of it already."""
    segment_ids: Int[Array, "B T"] | None
    """0 is padding; None when every token counts and belongs to one document."""


def cross_mask(
    positions: Int[Array, "B S"], segment_ids: Int[Array, "B S"] | None, source: Source
) -> Mask:
    """A token sees the source tokens of its own document; without segment ids all is document 1.

    Args:
        positions: of the decoder's tokens; only the shape is read.
        segment_ids: of the decoder's tokens.
        source: what they attend to.
    """
    if source.segment_ids is None:
        # Padding asks too, and is read by nobody.
        return Mask(causal=False)
    if segment_ids is None:
        segment_ids = jnp.ones_like(positions)
    return Mask(causal=False, q_segment_ids=segment_ids, kv_segment_ids=source.segment_ids)


class CrossAttention(nn.Module):
    """Queries from the target, keys and values from the source (Vaswani et al. 2017, 3.2.3).

    No positions and no bias on the scores, as in T5. Parameters as of self-attention: `query`,
    `key`, `value`, `output`.
    """

    config: ModelConfig

    def setup(self):
        c = self.config
        self.query = head_projection(c, c.num_heads, "heads")
        self.key = head_projection(c, c.kv_heads, "kv_heads")
        self.value = head_projection(c, c.kv_heads, "kv_heads")
        self.key_value = KeyValue()
        self.output = output_projection(c)

    def keys_and_values(self, source: Float[Array, "B T D"]) -> KeysAndValues:
        """[B,T,K,d] each, of the encoder's output, with the prefix that is learned before it."""
        c = self.config
        shape = (*source.shape[:-1], c.kv_heads, c.size_of_head)
        return self.key_value(self.key(source).reshape(shape), self.value(source).reshape(shape))

    def __call__(
        self,
        x: Float[Array, "B S D"],
        keys_and_values: KeysAndValues,
        mask: Mask,
        dropout_key: Array | None = None,
    ) -> Float[Array, "B S D"]:
        c = self.config
        q = self.query(x).reshape(*x.shape[:-1], c.num_heads, c.size_of_head)
        k, v, prefix = keys_and_values
        y = attend(
            q,
            KeysAndValues(k.astype(q.dtype), v.astype(q.dtype), prefix),
            mask,
            scale=attention_scale(c),
            dropout=0.0 if dropout_key is None else c.attention_dropout,
            dropout_key=dropout_key,
            backend=c.attention_backend,
        )
        return self.output(y.reshape(*x.shape[:-1], -1))
