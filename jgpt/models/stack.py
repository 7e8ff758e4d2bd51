"""Layers one after the other, one by one or scanned: what encoders and decoders are made of."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jgpt.config import ModelConfig
from jgpt.kernels.attention.pallas_tpu import ATTENDED
from jgpt.layers.attention import Context, Relative
from jgpt.layers.cache import Cache, KVCache
from jgpt.layers.cross_attention import Source, cross_mask
from jgpt.layers.disentangled import RelativeEmbedding, distance_buckets
from jgpt.layers.dispatch import TRAVELLED
from jgpt.layers.linear import PRODUCT
from jgpt.layers.norm import Norm
from jgpt.layers.positions import RelativeTable, alibi_slopes, layer_rotary
from jgpt.models.block import Block
from jgpt.models.layout import layout, moe_layers
from jgpt.typing import AlibiBias, Array, Bias, Mask, RelativeBias, RouterStats


class Stack(nn.Module):
    """The layers of `config`; subclasses call these methods inside their compact `__call__`.

    `config.scan_layers` must be resolved to on or off (`layout.resolve_scan`).
    """

    config: ModelConfig

    def context(
        self,
        positions: Array,
        segment_ids: Array | None,
        prefix_lengths: Array | None = None,
        cache: Cache | None = None,
        source: Source | None = None,
        zigzag: int = 0,
        places: Array | None = None,
    ) -> Context:
        """What the layers share.

        Args:
            source: for the decoder of an encoder-decoder.
            places: what is rotated by, where that is not the positions.
        """
        c = self.config
        kinds = sorted(set(c.attention_pattern))
        rotary = {}
        if c.position == "rope":
            places = positions if places is None else places
            rotary = {kind: layer_rotary(c, kind, places) for kind in kinds}
        return Context(
            masks={
                kind: layer_mask(c, kind, segment_ids, prefix_lengths, zigzag) for kind in kinds
            },
            rotary=rotary,
            bias=self._bias(),
            positions=positions,
            token_mask=None if segment_ids is None else segment_ids != 0,
            fresh=cache is not None and cache.fresh,
            source=None if source is None else source.hidden,
            relative=self._relative(positions),
            cross_mask=None if source is None else cross_mask(positions, segment_ids, source),
        )

    def _bias(self) -> Bias | None:
        c = self.config
        if c.position == "alibi":
            return AlibiBias(jnp.asarray(alibi_slopes(c.num_heads)))
        if c.position == "relative":
            table = RelativeTable(c, name="relative_bias")()
            return RelativeBias(table, c.attention != "causal", c.relative_max_distance)
        return None

    def _relative(self, positions: Array) -> Relative | None:
        c = self.config
        if c.position != "disentangled":
            return None
        embeddings = Norm(c, name="relative_norm")(
            RelativeEmbedding(c, name="relative_embedding")()
        )
        return Relative(embeddings, distance_buckets(c, positions))

    def layers(
        self,
        x: Array,
        context: Context,
        cache: Cache | None,
        selection_bias: Array | None,
        key: Array | None,
    ) -> tuple[Array, list[KVCache | None], list[RouterStats]]:
        """The stream after all layers; caches and router figures in layer order."""
        c = self.config
        where = layout(c)
        scan = c.scan_layers == "on" and cache is None and where.periods > 0
        rows = {layer: row for row, layer in enumerate(moe_layers(c))}
        caches: list[KVCache | None] = []
        stats: list[RouterStats] = []
        index = 0
        while index < c.num_layers:
            if scan and index == where.first:
                x, scanned = self._scan(x, context, selection_bias, key)
                stats.extend(scanned)
                index = where.stop
                continue
            bias = None
            if selection_bias is not None and index in rows:
                bias = selection_bias[rows[index]]
            block = rematerialised(Block, c)(
                c,
                *c.layer_kind(index),
                attention_norm=index > 0 or c.first_attention_norm,
                name=f"layers_{index}",
            )
            layer_cache = None if cache is None else cache.layers[index]
            x, layer_cache, router = block(x, context, layer_cache, bias, layer_key(key, index))
            caches.append(layer_cache)
            if router is not None:
                stats.append(router)
            index += 1
        return x, caches, stats

    def _scan(
        self, x: Array, context: Context, selection_bias: Array | None, key: Array | None
    ) -> tuple[Array, list[RouterStats]]:
        """All whole periods; router figures in layer order."""
        c = self.config
        where = layout(c)
        rows = {layer: row for row, layer in enumerate(moe_layers(c))}
        grid = [[where.layer(p, j) for j in range(where.period)] for p in range(where.periods)]
        moe = [j for j in range(where.period) if grid[0][j] in rows]
        biases = None
        if selection_bias is not None and moe:
            chosen = [[rows[layers[j]] for j in moe] for layers in grid]
            biases = selection_bias[np.asarray(chosen)]
        keys = None
        if key is not None:
            keys = jax.vmap(jax.vmap(lambda i: layer_key(key, i)))(np.asarray(grid))
        scanned = nn.scan(
            Period,
            variable_axes={True: 0},
            split_rngs={True: True},
            in_axes=(nn.broadcast, 0, 0),
            length=where.periods,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        kinds = tuple(c.layer_kind(layer) for layer in grid[0])
        x, stacked = scanned(c, kinds, name="layers")(x, context, biases, keys)
        per_layer = [
            jax.tree.map(lambda leaf, p=p: leaf[p], stacked[m])
            for p in range(where.periods)
            for m in range(len(moe))
        ]
        return x, per_layer


class Period(nn.Module):
    """One period of the layer pattern, the body of a scan."""

    config: ModelConfig
    kinds: tuple[tuple[str, str], ...]

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B S D"],
        context: Context,
        selection_bias: Float[Array, "m E"] | None,
        keys: Array | None,
    ) -> tuple[Float[Array, "B S D"], list[RouterStats]]:
        """The stream, and the router figures of the period's mixture-of-experts layers."""
        stats: list[RouterStats] = []
        for j, kinds in enumerate(self.kinds):
            block = rematerialised(Block, self.config, in_scan=True)
            bias = None
            if kinds[1] == "moe" and selection_bias is not None:
                bias = selection_bias[len(stats)]
            key = None if keys is None else keys[j]
            x, _, router = block(self.config, *kinds, name=f"block_{j}")(
                x, context, None, bias, key
            )
            if router is not None:
                stats.append(router)
        return x, stats


def rematerialised(block: type[nn.Module], config: ModelConfig, *, in_scan: bool = False):
    """The block class as `config.remat` wants it recomputed in the backward pass."""
    if config.remat == "none":
        return block
    policies = {
        "full": None,
        "dots": jax.checkpoint_policies.save_only_these_names(PRODUCT, ATTENDED, TRAVELLED),
    }
    return nn.remat(block, policy=policies[config.remat], prevent_cse=not in_scan)


def layer_key(key: Array | None, index: int | Array) -> Array | None:
    """The key of layer `index`'s dropout (-1: the embedding's), the same scanned or unrolled."""
    return None if key is None else jax.random.fold_in(key, index + 1)


def layer_mask(
    config: ModelConfig,
    kind: str,
    segment_ids: Array | None,
    prefix_lengths: Array | None,
    zigzag: int = 0,
) -> Mask:
    """What a query of a `global` or `local` layer may see."""
    sparse = config.block_sparse
    blocks = kind == "global" and sparse.block_size > 0
    return Mask(
        causal=config.attention != "bidirectional",
        window=config.window if kind == "local" else 0,
        block_size=sparse.block_size if blocks else 0,
        num_local_blocks=sparse.num_local_blocks if blocks else 0,
        num_global_blocks=sparse.num_global_blocks if blocks else 0,
        stride=sparse.stride if blocks else 0,
        zigzag=zigzag,
        prefix_lengths=prefix_lengths,
        q_segment_ids=segment_ids,
        kv_segment_ids=segment_ids,
    )


def stack_stats(stats: list[RouterStats]) -> RouterStats | None:
    """Router figures of all layers with a leading [L]; None where there are none."""
    if not stats:
        return None
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *stats)
