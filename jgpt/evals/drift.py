"""How far a fine-tuned model has moved from the one it began as, on text that that one knew.

`KL(p_theta0 || p_theta)` at every token of held-out text, exact over the vocabulary, and the loss
of both models there.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jgpt.evals.chunks import by_chunks, logits_of
from jgpt.typing import Array, Batch, PyTree


def make_sums(
    before: Callable[..., Any], after: Callable[..., Any], softcap: float = 0.0
) -> Callable[..., dict[str, Array]]:
    """`sums(variables before, variables after, batch) -> sums`, pure; jit it.

    Float32 sums over the targets of `loss_weights` above 0: `kl`, `nll_before` and `nll_after` in
    nats, `weight` (their number), `characters`; and `kl_max`, the largest of one token. Of the two
    models' logits [tokens, V] a few tokens' are in memory at one time (`evals.chunks`).

    Args:
        before, after: `models.apply` with its config bound, with adapters where there are some.
        softcap: `model.final_softcap`.
    """

    def sums(first: PyTree, second: PyTree, batch: Batch) -> dict[str, Array]:
        (hidden_0, *head_0), _ = before(first, batch, output="projection")
        (hidden, *head), _ = after(second, batch, output="projection")

        def compare(hidden_0: Array, hidden: Array, targets: Array) -> tuple[Array, ...]:
            logps_0 = jax.nn.log_softmax(logits_of((hidden_0, *head_0), softcap))
            logps = jax.nn.log_softmax(logits_of((hidden, *head), softcap))
            kl = jnp.sum(jnp.exp(logps_0) * (logps_0 - logps), -1)
            own = [jnp.take_along_axis(x, targets[..., None], -1)[..., 0] for x in (logps_0, logps)]
            return kl, -own[0], -own[1]

        kl, nll_before, nll_after = by_chunks(compare, hidden_0, hidden, batch["targets"])
        counted = batch["loss_weights"] > 0

        def total(x: Array) -> Array:
            return jnp.sum(jnp.where(counted, x, 0), dtype=jnp.float32)

        return {
            "kl": total(kl),
            "kl_max": jnp.max(jnp.where(counted, kl, 0)),
            "nll_before": total(nll_before),
            "nll_after": total(nll_after),
            "weight": total(jnp.ones_like(kl)),
            "characters": total(batch["characters"]),
        }

    return sums


def without_virtual_tokens(batch: Batch) -> Batch:
    """The batch as a model sees it that knows no virtual tokens: they are padding, and do not count
    in the positions of their documents."""
    virtual, segments = batch["inputs"] < 0, batch["segment_ids"]
    rows = jnp.arange(len(segments))[:, None]
    before = jnp.zeros((len(segments), segments.shape[1] + 1), jnp.int32)
    before = before.at[rows, segments].add(virtual.astype(jnp.int32))
    return {
        **batch,
        "inputs": jnp.where(virtual, 0, batch["inputs"]),
        "segment_ids": jnp.where(virtual, 0, segments),
        "positions": jnp.where(virtual, 0, batch["positions"] - before[rows, segments]),
    }


def make(
    compare: Callable[[PyTree, Any], dict[str, jax.Array]],
    batches: Iterable[Any],
    *,
    emits_unk: bool,
) -> Callable[[PyTree], Iterator[tuple[str, float]]]:
    """An evaluation over `batches` of held-out text.

    Args:
        compare: (variables, batch) -> the sums of `make_sums`.
        batches: what `compare` takes, with every target once.
        emits_unk: see `perplexity.make`.
    """

    def run(state: PyTree) -> Iterator[tuple[str, float]]:
        found = jax.device_get([compare(state, batch) for batch in batches])
        total = {name: math.fsum(float(np.asarray(s[name])) for s in found) for name in found[0]}
        yield "drift_tokens", total["weight"]
        yield "drift_kl", total["kl"] / total["weight"]
        yield "drift_kl_max", max(float(s["kl_max"]) for s in found)
        for when in ("before", "after"):
            nll = total[f"nll_{when}"]
            loss = nll / total["weight"]
            yield f"drift_loss_{when}", loss
            yield f"drift_perplexity_{when}", math.exp(loss) if loss < 700 else math.inf
            if not emits_unk and total["characters"]:
                bits = nll / math.log(2) / total["characters"]
                yield f"drift_bits_per_character_{when}", bits

    return run
