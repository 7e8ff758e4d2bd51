"""Loss of a language model's head with its gradients, on CPU: chunks against all logits at once.

    python experiments/benchmarks/cross_entropy.py [--seconds 5] [--peers]

Median CPU-milliseconds per call and temporary memory; `--peers` adds torch (linear layer and
`cross_entropy`) on one thread. `floor` is the time of the three products alone.
Prints a table, and one JSON line last.
"""

import argparse
import functools
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import harness, turns
from jgpt.kernels.cross_entropy import BACKENDS
from jgpt.kernels.matmul import input_gradient, product, weight_gradient

CASES = {"shape S": (8, 256, 256, 8192), "shape M": (4, 512, 512, 16384)}
"""Batch, length, width, vocabulary."""


def arrays(batch, length, width, vocabulary, dtype):
    """hidden in `dtype`, head in float32 as master weights are, targets."""
    keys = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(keys[0], (batch, length, width)).astype(dtype)
    head = 0.02 * jax.random.normal(keys[1], (width, vocabulary))
    return hidden, head, jax.random.randint(keys[2], (batch, length), 0, vocabulary)


def loss_and_gradients(backend: str, hidden, head, targets):
    weights = jnp.ones(targets.shape)

    def mean(hidden, head):
        sums = BACKENDS[backend].cross_entropy(hidden, head, targets, weights)
        return sums.total / sums.weight

    return jax.value_and_grad(mean, (0, 1))(hidden, head)


def rematerialised(hidden, head, targets):
    """The usual way to save memory: chunks whose logits are computed again in the backward pass."""

    @jax.checkpoint
    def chunk(total, x):
        scores = jnp.einsum(
            "bcd,dv->bcv", x[0], head.astype(hidden.dtype), preferred_element_type=jnp.float32
        )
        chosen = jnp.take_along_axis(scores, x[1][..., None], -1)[..., 0]
        return total + (jax.nn.logsumexp(scores, axis=-1) - chosen).sum(), None

    def mean(hidden, head):
        parts = [jnp.stack(jnp.split(x, 4, axis=1)) for x in (hidden, targets)]
        return jax.lax.scan(chunk, 0.0, tuple(parts))[0] / targets.size

    def with_head(hidden, new_head):
        nonlocal head
        head = new_head
        return mean(hidden, head)

    return jax.value_and_grad(with_head, (0, 1))(hidden, head)


def products_alone(hidden, head):
    head = head.astype(hidden.dtype)
    scores = jax.lax.optimization_barrier(product(hidden, head).astype(hidden.dtype))
    return input_gradient(scores, head), weight_gradient(hidden, scores)


def torch_contender(hidden, head, targets):
    import torch

    torch.set_num_threads(1)
    kind = torch.bfloat16 if hidden.dtype == jnp.bfloat16 else torch.float32
    x = torch.from_numpy(np.array(hidden.astype(jnp.float32))).to(kind).flatten(0, 1)
    w = torch.from_numpy(np.array(head.T)).requires_grad_()
    y = torch.from_numpy(np.array(targets)).long().flatten()

    def run():
        leaf = x.detach().requires_grad_()
        w.grad = None
        logits = torch.nn.functional.linear(leaf, w.to(kind)).float()
        torch.nn.functional.cross_entropy(logits, y).backward()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="per case")
    parser.add_argument("--peers", action="store_true", help="torch too (pip install torch)")
    options = parser.parse_args()
    turns.prepare()
    lines, rows = [], []
    for dtype in ("float32", "bfloat16"):
        for name, shape in CASES.items():
            inputs = arrays(*shape, dtype)
            steps = {
                n: functools.partial(loss_and_gradients, n) for n in ("blockwise", "reference")
            }
            steps["rematerialised"] = rematerialised
            contenders, memory = {}, {}
            for label, step in steps.items():
                contenders[label], memory[label] = turns.compiled(step, *inputs)
            contenders["products"], _ = turns.compiled(products_alone, *inputs[:2])
            if options.peers:
                contenders["torch"] = torch_contender(*inputs)
            spent = turns.milliseconds(contenders, options.seconds)
            peers = {n: spent[n] for n in spent if n not in ("blockwise", "products")}
            others = {n: memory[n] for n in ("reference", "rematerialised")}
            case = f"{name} {dtype}"
            floor, timed = spent["products"], functools.partial(harness.row, higher_is_better=False)
            rows += [
                timed(case, "loss and gradients", "CPU ms", spent["blockwise"], peers, floor),
                timed(case, "temporary memory", "MiB", memory["blockwise"], others),
            ]
            figures = (spent.get(n, "-") for n in (*steps, "torch", "products"))
            lines.append([case, *figures, *memory.values()])
    columns = ["case", *steps, "torch", "products", *(f"MiB {n}" for n in memory)]
    harness.show("cross-entropy, CPU ms with gradients", columns, lines)
    harness.emit("cross_entropy", rows, ("torch",))


if __name__ == "__main__":
    main()
