"""What is in adapters, as lines to read."""

import math
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from jgpt.config import ConfigError, PeftConfig
from jgpt.interop.adapter_sources import Source
from jgpt.interop.peft_format_write import leaves_by_site
from jgpt.peft import compose, count_trained
from jgpt.peft.adapters import SHARED

SHOWN = ("targets", "rank", "alpha", "scaling", "init", "quantize", "dropout", "train_also")
"""Of `peft`, where they are not at their defaults."""


def lines(found: Source) -> Iterator[str]:
    """Method, settings, sizes; then of every site its rank, its numbers and how much it changes."""
    settings, plain = found.peft.settings, PeftConfig()
    sites = leaves_by_site(found.peft, found.adapters)
    trained = count_trained(found.peft)
    yield f"{settings.method} on {len(sites.keys() - {SHARED})} modules"
    for name in (
        "targets",
        "rank",
        "alpha",
        "scaling",
        "init",
        "quantize",
        "dropout",
        "train_also",
    ):
        value = getattr(settings, name)
        if value != getattr(plain, name):
            yield f"  peft.{name} = {value!r}"
    own = sum(math.prod(np.shape(leaf)) for leaf in found.own.values())
    size = np.dtype(jnp.dtype(settings.dtype)).itemsize
    yield f"{trained:,} trained numbers, {trained * size / 1e6:,.2f} MB in {settings.dtype}"
    if own:
        yield f"{own:,} numbers of the model's own were trained too: {', '.join(found.own)}"
    changes, what = _changes(found)
    yield f"{'module':<40} {'rank':>5} {'numbers':>10} {what:>10}"
    for path, leaves in sites.items():
        rank = str(np.max(_ranks(leaves))) if "scaling" in leaves else ""
        names = found.peft.leaves[path]
        numbers = sum(leaf.size for name, leaf in leaves.items() if names[name].trained)
        change = f"{changes[path]:.4g}" if path in changes else ""
        yield f"{path:<40} {rank:>5} {numbers:>10,} {change:>10}".rstrip()


def _ranks(leaves: dict[str, np.ndarray]) -> np.ndarray:
    """Columns in use: of AdaLoRA those whose lambda is not 0; of each expert."""
    return (leaves["scaling"] * leaves.get("lora_e", 1.0) != 0).sum(-1)


def _changes(found: Source) -> tuple[dict[str, float], str]:
    """(site -> how much it changes the model, what that is)."""
    try:
        factors = compose.factors(found.peft, found.adapters)
    except ConfigError:  # no products: the size of what is learned
        sites = leaves_by_site(found.peft, found.adapters)
        norms = {p: math.sqrt(sum((x**2).sum() for x in own.values())) for p, own in sites.items()}
        return norms, "|leaves|"
    return {path: float(_norm(factor)) for path, factor in factors.items()}, "|dW|"


def _norm(factor: compose.Factor) -> float:
    """||a b||, of the trace of (a^T a)(b b^T): the product is not built."""
    a, b = (np.asarray(x, np.float64) for x in factor)
    grams = (np.swapaxes(a, -1, -2) @ a) * np.swapaxes(b @ np.swapaxes(b, -1, -2), -1, -2)
    return math.sqrt(max(grams.sum(), 0.0))
