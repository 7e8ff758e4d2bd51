"""One block: attention, then a dense or mixture-of-experts feed-forward layer."""

import dataclasses

import flax.linen as nn
import jax
from jaxtyping import Float

from jgpt.config import ModelConfig
from jgpt.layers.attention import Attention, Context
from jgpt.layers.cache import KVCache
from jgpt.layers.cross_attention import CrossAttention
from jgpt.layers.disentangled import DisentangledAttention
from jgpt.layers.ffn import FFN
from jgpt.layers.latent_attention import LatentAttention
from jgpt.layers.moe import MoE
from jgpt.layers.norm import Norm
from jgpt.layers.residual import Residual, dropout
from jgpt.typing import Array, RouterStats

STREAM_AXES = ("batch", "length", "activation_embed")


class Block(nn.Module):
    """A layer of a decoder or encoder; the decoder's of an encoder-decoder have three sublayers.

    `norm_placement`: pre `x + f(norm(x))` (Radford et al. 2019), post `norm(x + f(x))` (Vaswani et
    al. 2017), sandwich `x + norm(f(norm(x)))` (Gemma 2). With `parallel_block` both sublayers read
    x, each through its own norm, and both outputs are added to it (GPT-NeoX).

    Attributes:
        attention_kind: `global` or `local`.
        ffn_kind: `dense` or `moe`.
        attention_norm: whether pre placement normalises the attention's input.
    """

    config: ModelConfig
    attention_kind: str
    ffn_kind: str
    attention_norm: bool = True

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B S D"],
        context: Context,
        cache: KVCache | None = None,
        selection_bias: Float[Array, "E"] | None = None,
        key: Array | None = None,
    ) -> tuple[Float[Array, "B S D"], KVCache | None, RouterStats | None]:
        """The stream after the block, the updated cache, and the router's figures of a moe layer.

        Args:
            key: given in training; drives dropout.
        """
        keys = (None, None, None) if key is None else jax.random.split(key, 3)
        cross_keys = (None, None) if key is None else jax.random.split(jax.random.fold_in(key, 3))

        def attend(x: Array) -> tuple[Array, KVCache | None]:
            kind = DisentangledAttention if context.relative is not None else Attention
            kind = LatentAttention if self.config.latent.kv_rank else kind
            attention = kind(self.config, self.attention_kind, name="attention")
            return attention(x, context, cache, keys[0])

        def attend_to_source(x: Array, cache: KVCache | None) -> tuple[Array, KVCache | None]:
            attention = CrossAttention(self.config, name="cross_attention")
            if cache is not None and cache.source is not None:
                source = cache.source
            else:
                source = attention.keys_and_values(context.source)
            h = attention(x, source, context.cross_mask, cross_keys[0])
            return h, None if cache is None else dataclasses.replace(cache, source=source)

        def feed_forward(x: Array) -> tuple[Array, RouterStats | None]:
            if self.ffn_kind == "dense":
                return FFN(self.config, name="ffn")(x), None
            return MoE(self.config, name="moe")(
                x,
                token_mask=context.token_mask,
                selection_bias=selection_bias,
                deterministic=key is None,
            )

        x = nn.with_logical_constraint(x, STREAM_AXES)
        h, cache = attend(self._before("attention", x))
        after_attention = self._after("attention", x, h, keys[1])
        if self.config.encoder_layers:
            h, cache = attend_to_source(self._before("cross_attention", after_attention), cache)
            after_attention = self._after("cross_attention", after_attention, h, cross_keys[1])
        ffn_input = x if self.config.parallel_block else after_attention
        h, stats = feed_forward(self._before("ffn", ffn_input))
        return self._after("ffn", after_attention, h, keys[2]), cache, stats

    def _before(self, sublayer: str, x: Array) -> Array:
        if self.config.norm_placement == "post":
            return x
        if sublayer == "attention" and not self.attention_norm:
            return x
        return Norm(self.config, name=f"{sublayer}_norm")(x)

    def _after(self, sublayer: str, x: Array, h: Array, key: Array | None) -> Array:
        placement = self.config.norm_placement
        if placement == "sandwich":
            h = Norm(self.config, name=f"{sublayer}_post_norm")(h)
        h = dropout(h, self.config.residual_dropout, key)
        add = Residual(name=f"{sublayer}_residual")
        if placement != "post":
            return add(x, h)
        norm = Norm(self.config, name=f"{sublayer}_post_norm")
        return norm(add(x, h, norm))
