"""Models as plain functions on trees: `init`, `apply`, and figures about them."""

from jgpt.layers.cache import Cache, init_cache
from jgpt.models.embeddings import embed
from jgpt.models.forward import apply
from jgpt.models.layout import num_moe_layers, resolve_scan, restack
from jgpt.models.parameters import abstract_params, init, learning_rate_scales, logical_axes
from jgpt.models.sizes import count_params, flops_per_token
from jgpt.models.source import read_source
from jgpt.models.transformer import Aux

__all__ = [
    "Aux",
    "Cache",
    "abstract_params",
    "apply",
    "count_params",
    "embed",
    "flops_per_token",
    "init",
    "init_cache",
    "learning_rate_scales",
    "logical_axes",
    "num_moe_layers",
    "read_source",
    "resolve_scan",
    "restack",
]
