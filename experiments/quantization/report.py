"""What quantising the layers of a trained model loses: NF4 beside linear four bits and int8.

    python -m experiments.quantization.report --workdir=runs/dense_small [--per_layer]

Of every linear map, on a batch of held-out text: the relative error (Frobenius norms) of its weight
and of its output, `|x (W - Q)| / |x W|` with the x that the whole model has there. And of the whole
model the loss. Every kind has one scale per 64 inputs, but int8 (one per output); `linear4` has
the 15 equally spaced levels that a symmetric four-bit integer has.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jgpt import models
from jgpt.config import ModelConfig
from jgpt.data import pipeline
from jgpt.interop.adapted import open_run
from jgpt.kernels.quantized import dequantize, quantize
from jgpt.layers.linear import Linear
from jgpt.peft.targets import IN_A_LAYER
from jgpt.tokenizers import load
from jgpt.training.workdir import Workdir
from jgpt.trees import leaves_by_path, map_with_path
from jgpt.typing import Array, PyTree

BLOCK = 64


def linear4(kernel: Array) -> Array:
    """Symmetric integers -7 .. 7, one scale per 64 inputs."""
    blocks = kernel.T.reshape(kernel.shape[1], -1, BLOCK)
    scales = abs(blocks).max(-1, keepdims=True) / 7
    return (jnp.round(blocks / jnp.maximum(scales, 1e-30)) * scales).reshape(kernel.shape[::-1]).T


def through(kind: str) -> Callable[[Array], Array]:
    return lambda kernel: dequantize(quantize(kernel.T, kind)).T


KINDS: dict[str, tuple[float, Callable[[Array], Array]]] = {
    "nf4, double scales": (4.127, through("nf4")),
    "nf4": (4.5, through("nf4_plain")),
    "linear4": (4.5, linear4),
    "int8": (8.0, through("int8")),
}
"""Name -> bits per weight, and what a kernel [in, out] becomes."""


def inputs_of_maps(model: ModelConfig, params: PyTree, batch: dict) -> dict[str, Array]:
    """Path of every linear map in a layer -> the rows [N, in] that it sees."""
    seen: dict[str, Array] = {}

    def note(next_function, args, kwargs, context):
        path = "/".join(context.module.path)
        if isinstance(context.module, Linear) and IN_A_LAYER.match(path):
            seen[path] = args[0].reshape(-1, args[0].shape[-1])
        return next_function(*args, **kwargs)

    with nn.intercept_methods(note):
        models.apply(model, {"params": params}, batch, output="hidden")
    return seen


def error(found: Array, expected: Array) -> float:
    return float(jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected))


def loss(model: ModelConfig, params: PyTree, batches: list[dict]) -> float:
    """Mean over tokens, in nats."""
    run = jax.jit(lambda p, b: models.apply(model, {"params": p}, b, output="cross_entropy")[0])
    sums = [run(params, batch) for batch in batches]
    return float(sum(s.nll for s in sums) / sum(s.weight for s in sums))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--per_layer", action="store_true", help="a row per map of every layer")
    arguments = parser.parse_args()
    run = open_run(arguments.workdir)
    config, params = run.config, run.variables["params"]
    model, tokenizer = config.model, load(Workdir(arguments.workdir).tokenizer)
    corpus = pipeline.open_corpus(config.data)
    batches = pipeline.validation_batches(
        corpus, tokenizer, config.data, config.data.batch_size, 0, 1
    )
    seen = inputs_of_maps(model, params, batches[0])
    kernels = leaves_by_path(params)
    rows, losses = defaultdict(lambda: defaultdict(list)), {"whole": loss(model, params, batches)}
    for name, (_, change) in KINDS.items():
        for path, x in seen.items():
            kernel = kernels[f"{path}/kernel"].astype(jnp.float32)
            changed = change(kernel)
            place = path if arguments.per_layer else IN_A_LAYER.match(path)[3]
            rows[place][name].append((error(changed, kernel), error(x @ changed, x @ kernel)))
        changed_params = map_with_path(
            lambda path, leaf, change=change: (
                change(leaf) if path.removesuffix("/kernel") in seen else leaf
            ),
            params,
        )
        losses[name] = loss(model, changed_params, batches)
    print("| map | " + " | ".join(f"{n}: weight | output" for n in KINDS) + " |")
    print("|---" * (2 * len(KINDS) + 1) + "|")
    for place, kinds in rows.items():
        cells = [f"{v:.3%}" for pairs in kinds.values() for v in np.mean(pairs, axis=0)]
        print(f"| {place} | " + " | ".join(cells) + " |")
    print()
    print("| | bits per weight | held-out loss | more than whole |")
    print("|---|---|---|---|")
    for name, value in losses.items():
        bits = KINDS[name][0] if name in KINDS else 32
        print(f"| {name} | {bits} | {value:.4f} | {value - losses['whole']:+.4f} |")
    print(json.dumps({"losses": losses, "errors": {p: dict(k) for p, k in rows.items()}}))


if __name__ == "__main__":
    main()
