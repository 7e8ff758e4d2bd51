"""Virtual tokens in peft's format: one table `prompt_embeddings`, whatever made it.

Networks that make keys, values or prompts are computed and left behind, as peft does.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jgpt.config import ModelConfig, PeftConfig, PromptConfig
from jgpt.interop.description import InteropError
from jgpt.kernels.matmul import matmul
from jgpt.peft import Peft, p_tuning, prefix
from jgpt.peft.method import Call, Leaves
from jgpt.typing import Array

TENSOR = "prompt_embeddings"
PREFIX, PROMPT, P_TUNING = "PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING"
KINDS = (PREFIX, PROMPT, P_TUNING)
KEY_VALUE = "layers_{}/attention/key_value"


def _call(peft: Peft, leaves: Leaves, shared: Leaves, kind: str) -> Call:
    """A use of the method outside of a model: one adapter, no dropout."""
    return Call(
        leaves=leaves,
        settings=peft.settings,
        base=lambda *args: args,
        product=matmul,
        lookup=lambda vector: vector,
        rows=lambda table, ids: jnp.take(table, ids, axis=0),
        kind=kind,
        shared=shared,
    )


def write(
    peft: Peft, sites: Mapping[str, Leaves], shared: Leaves
) -> tuple[np.ndarray, dict[str, Any]]:
    """(`prompt_embeddings`, fields of `adapter_config.json`).

    Raises:
        InteropError: models that peft gives no such tokens.
    """
    model, method = peft.model, peft.settings.method
    if model.encoder_layers:
        raise InteropError(f"{method} of models with an encoder is not written in peft's format")
    length = peft.settings.prompt.length
    if method in ("prompt_tuning", "p_tuning"):
        table = _prompt(peft, sites["embedding"]) * embedding_scale(model)
        return table, {"peft_type": PROMPT, **_fields(model, length, model.hidden_size)}
    layers = [
        _keys_and_values(peft, sites[KEY_VALUE.format(i)], shared) for i in range(model.num_layers)
    ]
    width = layers[0].shape[-1] // 2
    fields = {"peft_type": PREFIX, "prefix_projection": False, "encoder_hidden_size": width}
    return np.concatenate(layers, axis=-1), {**fields, **_fields(model, length, width)}


def _fields(model: ModelConfig, length: int, width: int) -> dict[str, Any]:
    return {
        "num_virtual_tokens": length,
        "token_dim": width,
        "num_attention_heads": model.kv_heads,
        "num_layers": model.num_layers,
        "num_transformer_submodules": 1,
    }


def _prompt(peft: Peft, leaves: Leaves) -> np.ndarray:
    """[P, D]"""
    if peft.settings.method == "prompt_tuning":
        return np.asarray(leaves["prompt"], np.float32)
    return np.asarray(p_tuning.encoded(_call(peft, leaves, {}, "embedding"))[0], np.float32)


def _keys_and_values(peft: Peft, leaves: Leaves, shared: Leaves) -> np.ndarray:
    """[P, 2 K d]: the layer's keys, then its values."""
    call = _call(peft, leaves, shared, "key_value")
    make = prefix.direct if peft.settings.method == "p_tuning_v2" else prefix.reparameterised
    return np.asarray(make(call)[0], np.float32)


def embedding_scale(model: ModelConfig) -> float:
    """What our embedding multiplies rows of a prompt by, and peft does not (Gemma)."""
    return float(model.hidden_size**0.5) if model.embedding_scale else 1.0


def read(
    table: np.ndarray, config: Mapping[str, Any], model: ModelConfig
) -> tuple[PeftConfig, dict[str, dict[str, Array]]]:
    """(settings, leaves by site): `p_tuning_v2` or `prompt_tuning`, whatever made the table.

    Raises:
        InteropError: a table of another model.
    """
    length = len(table)
    method = "p_tuning_v2" if config["peft_type"] == PREFIX else "prompt_tuning"
    settings = PeftConfig(method=method, prompt=PromptConfig(length=length))
    if method == "prompt_tuning":
        _check(table.shape[1], model.hidden_size)
        return settings, {"embedding": {"prompt": table / embedding_scale(model)}}
    width = 2 * model.kv_heads * model.size_of_head
    _check(table.shape[1], width * model.num_layers)
    layers = np.split(table, model.num_layers, axis=1)
    return settings, {KEY_VALUE.format(i): {"prefix": part} for i, part in enumerate(layers)}


def _check(there: int, here: int) -> None:
    if there != here:
        raise InteropError(
            f"prompt_embeddings has rows of {there} numbers, and this model takes {here}: they "
            "belong to another"
        )
