"""One vector per text, to compare texts with."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float

from jgpt.config import ModelConfig
from jgpt.layers import heads
from jgpt.models.forward import apply
from jgpt.typing import Array, Batch


def embed(
    config: ModelConfig,
    variables: Mapping[str, Any],
    batch: Batch,
    *,
    pooling: str = "",
    normalize: bool = True,
) -> Float[Array, "B D"]:
    """Sentence embeddings; a row is one text, padded on the right (`segment_ids` 0).

    Args:
        batch: as `apply` takes it.
        pooling: `cls`, `mean` or `last` of the last hidden states, without a pooler (Reimers and
            Gurevych 2019); "" for what the config says, its pooler included.
        normalize: to length 1, so that a dot product is a cosine.

    Raises:
        ConfigError: neither the config nor the argument names a pooling.
    """
    if pooling:
        hidden, _ = apply(config, variables, batch, output="hidden")
        segment_ids = batch.get("segment_ids")
        pooled = heads.pool(pooling, hidden, None if segment_ids is None else segment_ids != 0)
    else:
        pooled, _ = apply(config, variables, batch, output="pooled")
    return heads.normalize(pooled) if normalize else pooled
