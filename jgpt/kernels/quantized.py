"""Frozen weights in few bits, of whichever kind: what fine-tuning on a quantised base builds on.

    packed = quantize(kernel.T, "nf4")          # a pytree, [out, in]
    y = matmul(x, packed, cut=PartitionSpec("tensor", "fsdp"))    # x's gradient, and no other

A weight is [out, in], the transpose of a Flax kernel, and `cut` says how it lies over the mesh that
is set; the packed arrays' first axis is `out`, their second one `in` or blocks of it (of size 1: a
scale for the whole row), so they can be placed by the same entries. (Scales of NF4's scales are one
short vector, to be kept whole.)

- `nf4`: 4.127 bits per weight, blocks of 64 inputs (`nf4_matmul`);
- `nf4_plain`: the same codes with float32 scales, 4.5 bits;
- `int8`: 8 bits, one scale per output (`int8_matmul`).
"""

import functools
from collections.abc import Callable

from jax.sharding import PartitionSpec

from jgpt.kernels import int8_matmul, nf4_matmul
from jgpt.kernels.int8_matmul import Int8
from jgpt.kernels.nf4_matmul import Nf4
from jgpt.kernels.weight_mesh import UNCUT
from jgpt.typing import Array

Packed = Nf4 | Int8
KINDS: dict[str, Callable[[Array], Packed]] = {
    "nf4": nf4_matmul.quantize,
    "nf4_plain": functools.partial(nf4_matmul.quantize, double=False),
    "int8": int8_matmul.quantize,
}


def quantize(weight: Array, kind: str) -> Packed:
    """A float weight [out, in] packed.

    Raises:
        ValueError: an unknown kind, or a shape that it does not take.
    """
    if kind not in KINDS:
        raise ValueError(f"quantised weights {kind!r} are unknown; choose {', '.join(KINDS)}")
    return KINDS[kind](weight)


def dequantize(packed: Packed) -> Array:
    """The weight [out, in] in float32."""
    module = int8_matmul if isinstance(packed, Int8) else nf4_matmul
    return module.dequantize(packed)


def matmul(x: Array, packed: Packed, *, backend: str = "auto", cut: PartitionSpec = UNCUT) -> Array:
    """`x @ dequantize(packed).T`: [..., in] to [..., out]; see `nf4_matmul` and `int8_matmul`."""
    if isinstance(packed, Int8):
        return int8_matmul.int8_matmul(x, packed, backend=backend, cut=cut)
    return nf4_matmul.nf4_matmul(x, packed, backend=backend, cut=cut)
