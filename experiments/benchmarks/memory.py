"""Memory of attention and of the loss, gradients included, as the length of the text grows.

    python experiments/benchmarks/memory.py [--chip v5e] [--lengths 8192 16384 32768]

Temporary memory that the compiled program asks for (nothing is run), of one row of text, and of the
loss with a vocabulary of 32,000: ours beside the form that materialises all scores. On CPU,
`blockwise`, one head of width 64, and hidden states of that width; with `--chip`, the Pallas
kernels, 16 heads of width 128, and hidden states of width 2,048, compiled for one such TPU
(`pip install "jax[tpu]"`), where a program that asks for more than the chip has is refused, and the
figure is what the refusal says. `floor` is null. Prints a table, and one JSON line last.
"""

import argparse
import os
import pathlib
import re
import sys
from collections.abc import Callable
from typing import NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies

from experiments.benchmarks import harness
from jgpt.kernels import attention, cross_entropy
from jgpt.typing import Mask


class Sizes(NamedTuple):
    heads: int
    head_width: int
    width: int


CPU, TPU = Sizes(1, 64, 64), Sizes(16, 128, 2048)
"""A TPU keeps what is small on the chip, where it is no temporary memory."""
VOCABULARY = 32000
MIB = 2**20
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


def attention_bytes(backend: str, length: int, device: jax.Device | None = None) -> int:
    """Of causal attention and its gradients."""
    heads, width, _ = TPU if device else CPU
    array = jax.ShapeDtypeStruct((1, length, heads, width), jnp.bfloat16)

    def total(q, k, v):
        out = attention.attention(q, k, v, Mask(), scale=width**-0.5, backend=backend)
        return out.astype(jnp.float32).sum()

    return _temporary(device, jax.grad(total, (0, 1, 2)), array, array, array)


def loss_bytes(backend: str, length: int, device: jax.Device | None = None) -> int:
    """Of the loss and its gradients."""
    width = (TPU if device else CPU).width

    def total(hidden, head, targets):
        weights = jnp.ones(targets.shape)
        sums = cross_entropy.cross_entropy(hidden, head, targets, weights, backend=backend)
        return sums.total

    return _temporary(
        device,
        jax.grad(total, (0, 1)),
        jax.ShapeDtypeStruct((1, length, width), jnp.bfloat16),
        jax.ShapeDtypeStruct((width, VOCABULARY), jnp.bfloat16),
        jax.ShapeDtypeStruct((1, length), jnp.int32),
    )


def _temporary(device: jax.Device | None, function: Callable, *arrays) -> int:
    """Bytes; `device` is one that is described and not there, None for this machine's."""
    if device is None:
        return _compiled_bytes(function, arrays)
    place = jax.sharding.SingleDeviceSharding(device)
    arrays = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place) for x in arrays]
    mesh = jax.sharding.Mesh(np.array([device]), ("one",)).abstract_mesh
    with jax.sharding.use_abstract_mesh(mesh):
        try:
            return _compiled_bytes(function, arrays)
        except jax.errors.JaxRuntimeError as error:
            found = re.search(r"HLO temporaries \(([\d.]+)([KMG])\)", str(error))
            if found is None:
                raise
            return int(float(found[1]) * UNITS[found[2]])


def _compiled_bytes(function: Callable, arrays) -> int:
    return jax.jit(function).lower(*arrays).compile().memory_analysis().temp_size_in_bytes


def described(chip: str) -> jax.Device:
    """One device of that kind, to compile for."""
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    jax.config.update("jax_platforms", "cpu")
    topology = topologies.get_topology_desc(platform="tpu", topology_name=f"{chip}:2x2")
    return topology.devices[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[8192, 16384, 32768])
    parser.add_argument("--chip", choices=("v5e", "v6e"), help="a TPU; this machine without")
    options = parser.parse_args()
    device = described(options.chip) if options.chip else None
    own = "pallas_tpu" if device else "blockwise"
    rows, lines = [], []
    for name, measure in (("attention", attention_bytes), ("loss", loss_bytes)):
        for length in options.lengths:
            ours, whole = (measure(b, length, device) / MIB for b in (own, "reference"))
            peers = {"materialised": whole}
            case = f"{name}, {length}"
            print(f"{case}: {ours:,.1f}, materialised {whole:,.1f}", file=sys.stderr, flush=True)
            rows.append(
                harness.row(case, "temporary memory", "MiB", ours, peers, higher_is_better=False)
            )
            lines.append([case, ours, whole, whole / ours if ours else "-"])
    where = options.chip or "CPU"
    harness.show(
        f"Temporary memory, MiB, {where}", ["case", "ours", "materialised", "times"], lines
    )
    harness.emit("memory", [{**row, "chip": options.chip} for row in rows], ("libtpu",))


if __name__ == "__main__":
    main()
