"""Whether the model that adapters were trained on is the one that they now stand on.

Checkpoints of such a run hold the adapters alone; `base.json` in its folder says what they belong
to, so that another model in its place is noticed before it writes nonsense.
"""

import functools
import hashlib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jgpt.config import ConfigError, ModelConfig
from jgpt.peft.quantization import Convert
from jgpt.training.assembly import Start, unchanged
from jgpt.training.checkpoints import steps
from jgpt.training.trainable import unrolled_paths
from jgpt.training.workdir import read_json, write_json
from jgpt.trees import leaves_by_path
from jgpt.typing import Array, PyTree

FILE = "base.json"
"""In a workdir."""
STACKED = re.compile(r"^(encoder/)?layers/")


def fingerprint(model: ModelConfig, params: PyTree) -> str:
    """The same for the same weights, however they are laid out and cut up; one pass over them.

    Of every array the sum of its bits modulo 2^32, each number's multiplied by 2 i + 1 at place i:
    integers, so that the order of summing does not matter.
    """
    return _digest(model, {path: _sums(path, x) for path, x in leaves_by_path(params).items()})


def _digest(model: ModelConfig, sums: Mapping[str, Array]) -> str:
    lines = []
    for path, found in jax.device_get(sums).items():
        values = found if STACKED.match(path) else [found]
        places = unrolled_paths(path, model)
        lines.extend(f"{place} {int(value)}" for place, value in zip(places, values, strict=True))
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


@functools.partial(jax.jit, static_argnums=0)
def _sums(path: str, leaf: Array) -> Array:
    """[] uint32, or [layers] of a stack."""
    bits = lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}"))
    axes = tuple(range(1 if STACKED.match(path) else 0, leaf.ndim))
    place = jnp.uint32(0)
    for axis in axes:
        stride = math.prod(leaf.shape[axis + 1 :]) % 2**32
        place = place + lax.broadcasted_iota(jnp.uint32, leaf.shape, axis) * jnp.uint32(stride)
    return (bits.astype(jnp.uint32) * (2 * place + 1)).sum(axes, dtype=jnp.uint32)


def checked(start: Start, workdir: Path, source: str) -> Start:
    """`start`, whose weights are those that the run in `workdir` began with.

    A run without checkpoints begins now: its base is written down.

    Args:
        source: where the weights come from, for a reader of the file and the message.

    Raises:
        ConfigError: by the function that is returned, where they are others.
    """

    def around(
        model: ModelConfig,
        shardings: PyTree,
        replicated: jax.sharding.Sharding,
        convert: Convert = unchanged,
    ) -> dict[str, PyTree]:
        sums: dict[str, Array] = {}

        def noted(path: str, array: Array) -> Any:
            sums[path] = _sums(path, array)
            return convert(path, array)

        variables = start(model, shardings, replicated, noted)
        found = _digest(model, sums)
        begins = not steps(workdir / "checkpoints")
        kept = None if begins else read_json(workdir / FILE)
        if kept and kept["fingerprint"] != found:
            raise ConfigError(
                f"{source} is not the model that {workdir} was trained on (it has changed since, "
                "or another is in its place); put that one back"
            )
        if begins and jax.process_index() == 0:
            workdir.mkdir(parents=True, exist_ok=True)
            write_json(workdir / FILE, {"source": source, "fingerprint": found})
        return variables

    return around
