"""One forward pass: parameters and a batch in, the wanted output and `Aux` out."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jgpt.config import ConfigError, ModelConfig
from jgpt.kernels.cross_entropy import cross_entropy, token_logps
from jgpt.kernels.matmul import matmul
from jgpt.layers.cache import Cache
from jgpt.models import order
from jgpt.models.layout import is_scanned, restack
from jgpt.models.transformer import Aux, Tokens, Transformer
from jgpt.typing import Array, Batch

OUTPUTS = (
    "logits", "hidden", "projection", "token_logps", "cross_entropy", "pooled", "labels",
)  # fmt: skip

RNGS = {"jitter": 0x6A697474, "adapters": 0x61646170}
"""What modules draw for in training, and what keeps their keys apart."""


def apply(
    config: ModelConfig,
    variables: Mapping[str, Any],
    batch: Batch,
    *,
    output: str = "logits",
    key: Array | None = None,
    cache: Cache | None = None,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    past_tokens: int = 0,
) -> tuple[Any, Aux]:
    """Runs the model.

    Args:
        variables: `params`, scanned or unrolled (the tree says which); `selection_bias`
            [moe layers, E] where `config.moe.selection_bias` is set; further collections, laid out
            like `params`, are handed to the modules.
        batch: `inputs` [B, S] int32; optional `segment_ids` (0 is padding; all one document by
            default), `positions` (0, 1, ...; with a cache, on from its length), `prefix_lengths`
            [B] for attention='prefix', `token_types` (0). With a cache a row is one document,
            padded on the right. An encoder-decoder reads its source from `encoder_inputs` [B, T]
            and the optional `encoder_segment_ids` and `encoder_positions`; a document attends to
            the source of the same id. Once a cache has seen the source, it is not needed again.
        output: `logits` [B,S,V] float32; `hidden` [B,S,D], after the final norm; `projection`:
            (hidden [B,S,D], kernel [D,V], bias [V] or None), whose product, before `final_softcap`,
            is the logits, for who makes them in parts; `token_logps` [B,S] float32 of
            `batch["targets"]`; `cross_entropy`: a `CrossEntropy` of the targets weighted by
            `batch["loss_weights"]`; `pooled` [B,D] and `labels` [B,labels] or
            [B,S,labels] float32, as `config.pooling`, `pooler`, `num_labels`, `label_level` say.
        key: given in training, where it drives dropout and router jitter.
        cache: from `init_cache` or an earlier call; the updated one is in `Aux`. Decoding runs
            unrolled: hand over unrolled parameters (`restack`) to save a copy per call.
        z_loss: weight of logsumexp(logits)**2 in `CrossEntropy.total`.
        label_smoothing: of the targets there (see `kernels.cross_entropy`).
        past_tokens: keys that adapters put before every document. Its tokens are embedded and
            rotated as if they came after so many others; `positions` of batch and cache start at 0.

    Raises:
        ConfigError: an unknown output, one that the config has no head for, a missing
            `prefix_lengths` or `encoder_inputs`, rows longer than a learned position table.
    """
    _check(config, batch, output, cache, past_tokens)
    params = variables["params"]
    if cache is not None:
        params = restack(params, config, scan=False)
    config = dataclasses.replace(config, scan_layers="on" if is_scanned(params) else "off")
    devices = 0
    if cache is None:
        devices = order.wanted(config, batch, output, training=key is not None)
    if devices:
        batch = order.zigzag({**batch, "positions": _positions(batch, None)}, devices)
    collections = {
        name: restack(tree, config, scan=is_scanned(params))
        for name, tree in variables.items()
        if name not in ("params", "selection_bias")
    }
    hidden, (kernel, bias), aux = Transformer(config).apply(
        {"params": params, **collections},
        Tokens(
            batch["inputs"],
            _positions(batch, cache),
            batch.get("segment_ids"),
            batch.get("token_types"),
            zigzag=devices,
            past=past_tokens,
        ),
        _source(batch, past_tokens) if config.encoder_layers else None,
        batch.get("prefix_lengths"),
        cache,
        variables.get("selection_bias") if config.moe.selection_bias else None,
        key,
        output,
        rngs={} if key is None else {n: jax.random.fold_in(key, seed) for n, seed in RNGS.items()},
    )
    if output in ("hidden", "pooled", "labels"):
        return hidden, aux
    if config.mup_base_width:
        hidden = hidden * (config.mup_base_width / config.hidden_size)
    if output == "projection":
        return (hidden, kernel, bias), aux
    softcap = config.final_softcap

    if output == "token_logps":
        logps = token_logps(
            hidden,
            kernel,
            batch["targets"],
            bias=bias,
            softcap=softcap,
            backend=config.loss_backend,
        )
        return order.rows_own(logps, devices) if devices else logps, aux
    if output == "cross_entropy":
        sums = cross_entropy(
            hidden,
            kernel,
            batch["targets"],
            batch["loss_weights"],
            bias=bias,
            z_loss=z_loss,
            label_smoothing=label_smoothing,
            softcap=softcap,
            backend=config.loss_backend,
        )
        return sums, aux
    logits = matmul(hidden, kernel, out_dtype=jnp.float32)
    if bias is not None:
        logits = logits + bias
    if softcap:
        logits = softcap * jnp.tanh(logits / softcap)
    return logits, aux


def _check(config: ModelConfig, batch: Batch, output: str, cache: Cache | None, past: int) -> None:
    if output not in OUTPUTS:
        raise ConfigError(f"output is {output!r}; choose one of {', '.join(OUTPUTS)}")
    if config.attention == "prefix" and cache is None and "prefix_lengths" not in batch:
        raise ConfigError("model.attention='prefix' needs batch['prefix_lengths'] [B]")
    if config.attention == "bidirectional" and cache is not None:
        raise ConfigError("model.attention='bidirectional' has no cache")
    if output == "pooled" and config.pooling == "none":
        raise ConfigError("output 'pooled' needs model.pooling='cls' or 'mean'")
    if output == "labels" and not config.num_labels:
        raise ConfigError("output 'labels' needs model.num_labels above 0")
    known = cache is not None and cache.layers[0].source is not None
    if config.encoder_layers and not known and "encoder_inputs" not in batch:
        raise ConfigError("an encoder-decoder needs its source: batch['encoder_inputs'] [B, T]")
    length = past + batch["inputs"].shape[1]
    if config.position == "learned" and length > config.max_length:
        raise ConfigError(
            f"rows of {length} tokens (a learned prefix of {past} included) are longer than the "
            f"learned position table; raise model.max_length ({config.max_length})"
        )


def _source(batch: Batch, past: int) -> Tokens | None:
    if "encoder_inputs" not in batch:
        return None
    ids = batch["encoder_inputs"]
    positions = batch.get("encoder_positions")
    if positions is None:
        positions = jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.int32), ids.shape)
    return Tokens(ids, positions, batch.get("encoder_segment_ids"), past=past)


def _positions(batch: Batch, cache: Cache | None) -> Array:
    if "positions" in batch:
        return batch["positions"]
    size, length = batch["inputs"].shape
    start = jnp.zeros((size,), jnp.int32) if cache is None else cache.length
    return start[:, None] + jnp.arange(length, dtype=jnp.int32)
