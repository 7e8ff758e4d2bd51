"""Model FLOPs of a run, which trains all of its model or a part of it."""

import math
from collections.abc import Sequence

import jax

from jgpt import models
from jgpt.config import Config, ModelConfig
from jgpt.peft import Peft
from jgpt.training.trainable import make_trainable
from jgpt.trees import leaves_by_path
from jgpt.typing import PyTree

TABLE = "embedding/table"
"""Of the embedding; the head's matrix too where they are tied."""


def flops_per_token(config: Config) -> float:
    """Model FLOPs of training on one token: those of `models.flops_per_token`, of what is trained.

    A frozen matrix needs no gradient of itself: 4 times its weights instead of 6. Adapters add 6
    times theirs, being multiplied with every token in both passes; those of an expert with the
    share of tokens that it gets. What a method computes besides (norms of a product, a base put
    together anew) is no part of the model. Layers below the first trained one, which need no
    gradient of their input either, count as if they did.
    """
    whole = models.flops_per_token(config.model, config.data.sequence_length)
    trainable = make_trainable(config)
    if trainable.everything:
        return whole
    parameters = models.abstract_params(config.model)
    trained, _ = jax.eval_shape(trainable.cut, parameters)
    frozen = _multiplied(config.model, parameters) - _multiplied(config.model, trained)
    added = 0.0 if trainable.peft is None else _adapters(config.model, trainable.peft)
    return whole - 2.0 * frozen + 6.0 * added


def _multiplied(model: ModelConfig, parameters: PyTree) -> float:
    """Weights among these parameters that a token is multiplied with, all of them or a part."""
    axes = jax.tree.leaves(models.logical_axes(model), is_leaf=lambda x: isinstance(x, tuple))
    names = dict(zip(leaves_by_path(models.abstract_params(model)), axes, strict=True))
    return sum(
        math.prod(leaf.shape) * _share(model, names[path])
        for path, leaf in leaves_by_path(parameters).items()
        if path.endswith("/kernel") or (model.tied_embeddings and path == TABLE)
    )


def _adapters(model: ModelConfig, peft: Peft) -> float:
    """Trained weights of adapters that a token meets."""
    return sum(
        math.prod(leaf.shape) * _share(model, leaf.axes)
        for leaves in peft.leaves.values()
        for leaf in leaves.values()
        if leaf.trained
    )


def _share(model: ModelConfig, axes: Sequence[str | None]) -> float:
    """Of the tokens, that an array with these logical axes is multiplied with."""
    return model.moe.top_k / model.moe.num_experts if "experts" in axes else 1.0
