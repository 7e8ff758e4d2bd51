"""A model beside the same model in `transformers`: how far apart their logits are."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jgpt import models
from jgpt.config import ModelConfig
from jgpt.interop.description import InteropError
from jgpt.interop.folder import open_folder
from jgpt.interop.weights import load
from jgpt.typing import PyTree


@dataclass(frozen=True)
class Comparison:
    """Of the logits [B, S, V] of both, in float32."""

    largest_difference: float
    largest_logit: float
    same_best_token: float
    """share of positions"""

    @property
    def relative(self) -> float:
        """The largest difference over the largest logit."""
        return self.largest_difference / self.largest_logit


def on_one_device(path: Path) -> tuple[ModelConfig, dict[str, PyTree]]:
    """A folder's model in float32 on the first device, layers unrolled."""
    folder = open_folder(path)
    plain = {"dtype": "float32", "param_dtype": "float32", "scan_layers": "off"}
    model = replace(folder.model, **plain)
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    places = jax.tree.map(lambda _: here, models.abstract_params(model))
    return model, load(folder, model, places, here)


def random_tokens(model: ModelConfig, rows: int = 2, length: int = 32) -> np.ndarray:
    """[rows, length] int32; no longer than the model takes."""
    length = min(length, model.max_length)
    return np.random.default_rng(0).integers(0, model.vocab_size, (rows, length), np.int32)


def compare(
    path: Path, model: ModelConfig, variables: Mapping[str, Any], tokens: np.ndarray
) -> Comparison:
    """Our logits beside those of `transformers` from the folder at `path`.

    Raises:
        InteropError: transformers is not installed, or the model has an encoder and a decoder.
    """
    if model.encoder_layers:
        raise InteropError("verify compares models of one stack; this one has two")
    theirs = _their_logits(path, tokens)
    ours, _ = models.apply(model, variables, {"inputs": tokens})
    ours = np.asarray(ours)
    return Comparison(
        largest_difference=float(np.abs(ours - theirs).max()),
        largest_logit=float(np.abs(theirs).max()),
        same_best_token=float(np.mean(ours.argmax(-1) == theirs.argmax(-1))),
    )


def _their_logits(path: Path, tokens: np.ndarray) -> np.ndarray:
    try:
        import torch
        import transformers
    except ImportError as error:
        raise InteropError("verify compares with transformers: pip install jgpt[parity]") from error
    folder = open_folder(path)
    name = (folder.config.get("architectures") or [folder.family.architecture])[0]
    model = getattr(transformers, name).from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        out = model.eval()(torch.tensor(tokens, dtype=torch.long))
    if "logits" not in out or out.logits.shape[-1] != folder.model.vocab_size:
        raise InteropError(f"verify compares logits over the vocabulary, which {name} has not")
    return out.logits.numpy()
