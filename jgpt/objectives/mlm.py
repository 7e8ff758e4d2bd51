"""Masked language modelling: hide some tokens, predict them from both sides."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from jgpt.config import Config
from jgpt.objectives import pretrain
from jgpt.objectives.objective import Objective
from jgpt.typing import Array, Batch

MASKED, REPLACED = 0.8, 0.1
"""Shares of the chosen tokens; the rest is left as it is, and predicted all the same."""


def make(config: Config) -> Objective:
    """Cross-entropy of the chosen tokens (Devlin et al. 2019, section 3.1), through `mask_tokens`.

    The mask token is `objective.mask_id`, or the last row of the vocabulary.
    """
    vocabulary, settings = config.model.vocab_size, config.objective
    corrupt = functools.partial(
        mask_tokens,
        density=settings.noise_density,
        mask_id=settings.mask_id if settings.mask_id >= 0 else vocabulary - 1,
        vocab_size=vocabulary - settings.added_ids,
    )
    return dataclasses.replace(pretrain.make(config), corrupt=corrupt)


def mask_tokens(
    batch: Batch, key: Array, *, density: float, mask_id: int, vocab_size: int
) -> Batch:
    """A batch of text as one of masked text with the hidden tokens as targets.

    Every token is chosen with probability `density`, but for padding and the first token of a
    document (which begins it, and is known). Of the chosen ones 80 % become `mask_id`, 10 % a token
    drawn evenly from the vocabulary, and 10 % stay.

    Args:
        batch: `inputs`, `segment_ids`, `positions` [B, S] are read.
        key: decides everything that is drawn.
        density: share of tokens chosen.
        mask_id: id that hides a token.
        vocab_size: ids from 0 to this are drawn.

    Returns:
        `inputs` with hidden tokens, `targets` (the text), `loss_weights` (1 on the chosen),
        `characters` (0: what a hidden token is worth in characters is not known), and the rest.
    """
    text = batch["inputs"]
    choose, kind, draw = jax.random.split(key, 3)
    hideable = (batch["segment_ids"] > 0) & (batch["positions"] > 0)
    chosen = hideable & (jax.random.uniform(choose, text.shape) < density)
    share = jax.random.uniform(kind, text.shape)
    drawn = jax.random.randint(draw, text.shape, 0, vocab_size, text.dtype)
    hidden = jnp.where(share < MASKED, mask_id, jnp.where(share < MASKED + REPLACED, drawn, text))
    return {
        **batch,
        "inputs": jnp.where(chosen, hidden, text),
        "targets": text,
        "loss_weights": chosen.astype(jnp.float32),
        "characters": jnp.zeros_like(text),
    }
