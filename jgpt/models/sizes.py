"""Counts that follow from a config: parameters and floating point operations."""

import math

from jgpt import trees
from jgpt.config import ModelConfig
from jgpt.models.layout import num_moe_layers
from jgpt.models.parameters import abstract_params


def _idle_expert_weights(config: ModelConfig) -> int:
    """Expert weights that a token does not use, over all layers."""
    idle = config.moe.num_experts - config.moe.top_k
    per_expert = 3 * config.hidden_size * config.expert_size
    return num_moe_layers(config) * idle * per_expert


def count_params(config: ModelConfig) -> tuple[int, int]:
    """(all parameters, those that one token uses: all but the experts it is not sent to)."""
    total = trees.count(abstract_params(config))
    return total, total - _idle_expert_weights(config)


def flops_per_token(config: ModelConfig, sequence_length: int) -> float:
    """Model FLOPs of training on one token: forward and backward, without recomputation.

    6 times the weights of the matrices it is multiplied with (the head's included, tied or not,
    the embedding's not), plus 12 * H * d times the keys that a query sees on average, per layer (d:
    the mean of a head's key and value width):
    S, half of it where attention is causal, in local layers at most the window; in an
    encoder-decoder a token is one of the target and one of the source, each side S long. Divided by
    the device's peak this is MFU; PaLM's convention (Chowdhery et al. 2022, appendix B) does not
    halve.
    """
    matrices = sum(
        math.prod(leaf.shape)
        for path, leaf in trees.leaves_by_path(abstract_params(config)).items()
        if path.endswith("/kernel")
    )
    if config.tied_embeddings:
        matrices += config.vocab_size * config.hidden_size
    matrices -= _idle_expert_weights(config)
    keys = 0.0
    if config.encoder_layers:
        keys = float((config.encoder_layers + config.num_layers) * sequence_length)
    for index in range(config.num_layers):
        seen = sequence_length / (1 if config.attention == "bidirectional" else 2)
        if config.layer_kind(index)[0] == "local":
            seen = min(seen, config.window)
        keys += seen
    width = (config.size_of_head + config.size_of_value) / 2
    return 6.0 * matrices + 12.0 * config.num_heads * width * keys
