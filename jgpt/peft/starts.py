"""Ways to begin (`peft.init`) that move a part of each weight into its adapter.

PiSSA, OLoRA and LoftQ return another base. Adapters trained upon that are no use to somebody who
has the original weights: `on_original` turns them into plain LoRA of twice the rank, which is.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax.numpy as jnp

from jgpt.config import PeftConfig
from jgpt.peft import loftq, olora, pissa
from jgpt.peft.method import Leaves, Start, Target
from jgpt.typing import Array

SPLITS = ("pissa", "olora", "loftq")


def choose(settings: PeftConfig) -> Start | None:
    """`Method.start` of `peft.init`; None where the base stays as it is."""
    if settings.init not in SPLITS:
        return None
    double = settings.quantize == "nf4" and settings.double_quantize
    splits: dict[str, Callable[[Array, int, float], tuple[Array, Array, Array]]] = {
        "pissa": pissa.split,
        "olora": olora.split,
        "loftq": functools.partial(
            loftq.split, iterations=settings.loftq_iterations, double=double
        ),
    }
    return functools.partial(_start, splits[settings.init])


def _start(
    split: Callable, target: Target, kernel: Array, leaves: dict[str, Array]
) -> tuple[Array, dict[str, Array]]:
    """The columns in use are set; those of a layer that has fewer than its stack stay masked."""
    base, a, b = split(kernel, target.rank, target.scale)
    count = a.shape[1]
    return base, {
        **leaves,
        "lora_a": leaves["lora_a"].at[:, :count].set(a),
        "lora_b": leaves["lora_b"].at[:count].set(b),
    }


def on_original(trained: Leaves, started: Leaves, rank: int) -> dict[str, Array]:
    """`s (B A - B0 A0)` of one matrix as plain LoRA leaves of rank 2r, to be added to the original.

    The base is `W - s B0 A0`, so that `base + s B A = W + s (B A - B0 A0)`.

    Args:
        trained: `lora_a` [in, width], `lora_b` [width, out] and `scaling` [width] as trained.
        started: the same as they began, from `init` on the original weights.
        rank: r, the columns in use.

    Returns:
        `lora_a` [in, 2r] with s in it, `lora_b` [2r, out], `scaling` [2r] of ones.
    """
    s = trained["scaling"][:rank]
    return {
        "lora_a": jnp.concatenate(
            [trained["lora_a"][:, :rank] * s, started["lora_a"][:, :rank] * -s], axis=1
        ),
        "lora_b": jnp.concatenate([trained["lora_b"][:rank], started["lora_b"][:rank]]),
        "scaling": jnp.ones(2 * rank),
    }


def doubled(settings: PeftConfig, default_rank: int) -> PeftConfig:
    """Settings of the adapters that `on_original` returns."""
    ranks = []
    for entry in settings.rank_pattern:
        pattern, _, rank = entry.rpartition("=")
        ranks.append(f"{pattern}={2 * int(float(rank))}")
    return dataclasses.replace(
        settings,
        method="lora",
        init="default",
        rank=2 * (settings.rank or default_rank),
        rank_pattern=tuple(ranks),
        alpha=0.0,
        alpha_pattern=(),
        scaling="rank",
    )
