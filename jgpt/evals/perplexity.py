"""Loss on held-out text, per token and per character."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from jgpt.typing import PyTree


def make(
    predict: Callable[[PyTree, Any], dict[str, jax.Array]],
    batches: Iterable[Any],
    *,
    emits_unk: bool,
) -> Callable[[PyTree], Iterator[tuple[str, float]]]:
    """An evaluation over `batches`, which are read again at every run.

    Args:
        predict: (variables, batch) -> sums `nll` (nats), `correct`, `weight`, `characters`.
        batches: what `predict` takes, with every target once.
        emits_unk: the tokenizer can lose characters; bits per character are then left out, since
            what was lost is not paid for.
    """

    def run(state: PyTree) -> Iterator[tuple[str, float]]:
        # All are dispatched before the first is fetched: the devices never wait for the host.
        sums = jax.device_get([predict(state, batch) for batch in batches])
        total = {name: math.fsum(float(np.asarray(s[name])) for s in sums) for name in sums[0]}
        loss = total["nll"] / total["weight"]
        yield "validation_loss", loss
        yield "validation_perplexity", math.exp(loss) if loss < 700 else math.inf
        yield "validation_accuracy", total["correct"] / total["weight"]
        if not emits_unk and total["characters"]:
            yield (
                "validation_bits_per_character",
                total["nll"] / math.log(2) / total["characters"],
            )

    return run
