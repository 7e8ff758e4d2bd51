"""A whole model as one Flax module: tokens to hidden states, and what is read from those."""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from jgpt.config import ModelConfig
from jgpt.layers import heads
from jgpt.layers.attention import Context
from jgpt.layers.cache import Cache, KVCache
from jgpt.layers.cross_attention import Source
from jgpt.layers.embedding import Embed, Head, TokenTypes, scale_embeddings
from jgpt.layers.norm import Norm
from jgpt.layers.positions import LearnedPositions, sinusoids
from jgpt.layers.residual import dropout
from jgpt.models.block import STREAM_AXES
from jgpt.models.stack import Stack, layer_key, stack_stats
from jgpt.typing import Array, RouterStats, static


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Aux:
    """What a forward pass gives besides its output."""

    router: RouterStats | None
    """Stacked over the mixture-of-experts layers; None in a dense model."""
    cache: Cache | None
    """The updated cache, where one was given."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Tokens:
    """Rows of token ids with what is known of each token."""

    ids: Int[Array, "B S"]
    positions: Int[Array, "B S"]
    segment_ids: Int[Array, "B S"] | None = None
    """0 is padding; None when every token counts and belongs to one document."""
    types: Int[Array, "B S"] | None = None
    """Rows of the table of token types; None for type 0."""
    zigzag: int = static(default=0)
    """Devices for whose ring the tokens of each row are in zigzag order; 0 for their own order."""
    past: int = static(default=0)
    """Learned keys before every document, from which its tokens' places are counted."""

    @property
    def places(self) -> Int[Array, "B S"]:
        """What position embeddings and rotations are made from."""
        return self.positions + self.past if self.past else self.positions


class Encoder(Stack):
    """The encoder of an encoder-decoder, after the embedding that both share."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], tokens: Tokens, key: Array | None = None
    ) -> Float[Array, "B T D"]:
        """Hidden states after the encoder's own final norm."""
        context = self.context(tokens.positions, tokens.segment_ids, places=tokens.places)
        x, _, _ = self.layers(x, context, None, None, key)
        return final_norm(self.config, x)


class Transformer(Stack):
    """A decoder, an encoder (`attention='bidirectional'`), or a decoder with an encoder before it.

    `config.scan_layers` must be resolved to on or off (`layout.resolve_scan`).
    """

    @nn.compact
    def __call__(
        self,
        tokens: Tokens,
        source: Tokens | None = None,
        prefix_lengths: Int[Array, "B"] | None = None,
        cache: Cache | None = None,
        selection_bias: Float[Array, "L E"] | None = None,
        key: Array | None = None,
        output: str = "logits",
    ) -> tuple[Array, tuple[Array, Array | None], Aux]:
        """What `output` is made of, the head's (kernel [D,V], bias [V] or None), and `Aux`.

        Args:
            source: of an encoder-decoder; not needed where the cache has its keys.
            selection_bias: a row per mixture-of-experts layer.
            key: given in training; drives dropout.
            output: `hidden` [B,S,D] after the final norm; `pooled` [B,D]; `labels` [B,labels] or
                [B,S,labels] float32; anything else: what the head multiplies, [B,S,D].
        """
        c = self.config
        embed = Embed(c, name="embedding")
        encoded = self._encode(embed, source, cache, key)
        x = self._embed(embed, tokens, key)
        context = self.context(
            tokens.positions,
            tokens.segment_ids,
            prefix_lengths,
            cache,
            encoded,
            tokens.zigzag,
            tokens.places,
        )
        x, layer_caches, stats = self.layers(x, context, cache, selection_bias, key)
        x = nn.with_logical_constraint(final_norm(c, x), STREAM_AXES)
        head = Head(c, name="head")(embed.table)
        aux = Aux(stack_stats(stats), _next_cache(cache, layer_caches, context, encoded))
        return self._read(x, context.token_mask, output), head, aux

    def _encode(
        self, embed: Embed, source: Tokens | None, cache: Cache | None, key: Array | None
    ) -> Source | None:
        c = self.config
        if not c.encoder_layers:
            return None
        if source is None:
            return Source(None, cache.source_segment_ids)
        key = None if key is None else jax.random.fold_in(key, 0x656E63)
        x = dropout(scale_embeddings(c, embed(source.ids)), c.embedding_dropout, layer_key(key, -1))
        return Source(Encoder(c.encoder, name="encoder")(x, source, key), source.segment_ids)

    def _embed(self, embed: Embed, tokens: Tokens, key: Array | None) -> Array:
        c = self.config
        x = scale_embeddings(c, embed(tokens.ids))
        if c.position == "learned":
            x = x + LearnedPositions(c, name="position")(tokens.places)
        elif c.position == "sinusoidal":
            x = x + sinusoids(tokens.places, c.hidden_size).astype(x.dtype)
        if c.token_types:
            types = jnp.zeros_like(tokens.ids) if tokens.types is None else tokens.types
            x = x + TokenTypes(c, name="token_type")(types)
        if c.embedding_norm:
            x = Norm(c, name="embedding_norm")(x)
        return dropout(x, c.embedding_dropout, layer_key(key, -1))

    def _read(self, hidden: Array, token_mask: Array | None, output: str) -> Array:
        """What `output` asks for; while parameters are made, every reader that the config has."""
        c = self.config

        def logits() -> Array:
            return heads.head_transform(c)(hidden) if c.head_transform else hidden

        def pooled() -> Array:
            x = heads.pool(c.pooling, hidden, token_mask)
            return x if c.pooler == "none" else heads.pooler(c)(x)

        if self.is_initializing():
            x = hidden if c.pooling == "none" else pooled()
            if c.num_labels:
                heads.classifier(c)(x)
            return logits()
        if output == "hidden":
            return hidden
        if output == "pooled":
            return pooled()
        if output == "labels":
            return heads.classifier(c)(pooled() if c.label_level == "sequence" else hidden)
        return logits()


def final_norm(config: ModelConfig, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
    """The norm after the last layer; with post placement the layer ends in one."""
    return x if config.norm_placement == "post" else Norm(config, name="final_norm")(x)


def _next_cache(
    cache: Cache | None,
    layers: list[KVCache | None],
    context: Context,
    source: Source | None,
) -> Cache | None:
    if cache is None:
        return None
    mask: Bool[Array, "B S"] | None = context.token_mask
    new = context.positions.shape[1] if mask is None else jnp.sum(mask, axis=1, dtype=jnp.int32)
    return Cache(
        tuple(layers),
        cache.length + new,
        fresh=False,
        source_segment_ids=None if source is None else source.segment_ids,
    )
