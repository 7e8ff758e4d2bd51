"""Memory of attention and of the loss, gradients included, as the length of the text grows.

    python experiments/benchmarks/memory.py [--lengths 8192 16384 32768]

Temporary memory that the compiled program asks for (CPU; nothing is run), of one row of text and
one head of width 64, and of a head of 32,000 tokens and width 64: ours beside the form that
materialises all scores. `floor` is null. Prints a table, and one JSON line last.
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import jax
import jax.numpy as jnp

from experiments.benchmarks import harness
from jgpt.kernels import attention, cross_entropy
from jgpt.typing import Mask

WIDTH, VOCABULARY = 64, 32000
MIB = 2**20


def attention_bytes(backend: str, length: int) -> int:
    """Of causal attention and its gradients."""
    array = jax.ShapeDtypeStruct((1, length, 1, WIDTH), jnp.bfloat16)

    def total(q, k, v):
        out = attention.attention(q, k, v, Mask(), scale=WIDTH**-0.5, backend=backend)
        return out.astype(jnp.float32).sum()

    return _temporary(jax.grad(total, (0, 1, 2)), array, array, array)


def loss_bytes(backend: str, length: int, vocabulary: int = VOCABULARY) -> int:
    """Of the loss and its gradients."""

    def total(hidden, head, targets):
        weights = jnp.ones(targets.shape)
        sums = cross_entropy.cross_entropy(hidden, head, targets, weights, backend=backend)
        return sums.total

    return _temporary(
        jax.grad(total, (0, 1)),
        jax.ShapeDtypeStruct((1, length, WIDTH), jnp.bfloat16),
        jax.ShapeDtypeStruct((WIDTH, vocabulary), jnp.bfloat16),
        jax.ShapeDtypeStruct((1, length), jnp.int32),
    )


def _temporary(function, *arrays) -> int:
    compiled = jax.jit(function).lower(*arrays).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[8192, 16384, 32768])
    options = parser.parse_args()
    rows, lines = [], []
    for name, measure in (("attention", attention_bytes), ("loss", loss_bytes)):
        for length in options.lengths:
            ours, whole = (measure(b, length) / MIB for b in ("blockwise", "reference"))
            peers = {"materialised": whole}
            case = f"{name}, {length}"
            rows.append(
                harness.row(case, "temporary memory", "MiB", ours, peers, higher_is_better=False)
            )
            lines.append([case, ours, whole, whole / ours])
    harness.show("Temporary memory, MiB", ["case", "ours", "materialised", "times"], lines)
    harness.emit("memory", rows)


if __name__ == "__main__":
    main()
