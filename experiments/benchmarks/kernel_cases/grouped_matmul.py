"""Grouped matmul beside megablox and, where groups are equal, XLA's batched product.

4,096 rows, 8 groups, matrices of 2,048 x 2,048, bfloat16. Groups' tables are computed as the
kernels do it, from sizes that are known here, and then baked in as arithmetic on the step, for ours
and for megablox alike. Numbers behind a public kernel's name are its tiles of rows, of the
contracted axis and of columns (of rows, and of the result, for the gradient of the matrices).
"""

import functools
import importlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.kernel_cases import Arithmetic, Case, Program
from jgpt.kernels.grouped_matmul import pallas_tpu
from jgpt.kernels.grouped_matmul.pallas_tpu_visits import make_visits

ROWS, GROUPS, WIDTH = 4096, 8, 2048
SIZES = {
    "even": (ROWS // GROUPS,) * GROUPS,
    "uneven": (1500, 37, 900, 0, 411, 3, 700, 545),
}
ROW = jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.bfloat16)
MATRIX = jax.ShapeDtypeStruct((GROUPS, WIDTH, WIDTH), jnp.bfloat16)
COUNTS = jax.ShapeDtypeStruct((GROUPS,), jnp.int32)
PRODUCT = ROWS * WIDTH * WIDTH
ROW_BYTES, MATRIX_BYTES = 2 * ROWS * WIDTH, 2 * GROUPS * WIDTH * WIDTH


def baked(values: np.ndarray) -> Arithmetic:
    """A table of known numbers: a line where they lie on one, else a sum of steps."""
    values = [int(x) for x in values]
    steps = np.diff(values).tolist()

    def at(index):
        if len(set(steps)) == 1:
            return values[0] + index * steps[0]
        rises = (jnp.where(index > i, x, 0) for i, x in enumerate(steps) if x)
        return sum(rises, values[0] + 0 * index)

    return Arithmetic(at, (len(values),))


class Together(tuple):
    """Tables that a kernel takes as one operand; as long as the walk over them, the last one."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self[-1].shape


def our_tables(sizes: tuple[int, ...]) -> Callable:
    """Of the kernel's name: the gradient of the matrices visits empty groups too."""

    def tables(name, operands, grid):
        del grid
        num_tiles = operands[1].shape[0] - GROUPS
        with jax.ensure_compile_time_eval():
            visits = make_visits(
                jnp.asarray(sizes, jnp.int32),
                num_tiles,
                ROWS // num_tiles,
                every_group="weight" in name,
            )
            counts, *rest = (np.asarray(x) for x in visits.tables())
        return [baked(counts), *(baked(x[: counts[0]]) for x in rest)]

    return tables


def ours(function: Callable, groups: str, *arrays: jax.ShapeDtypeStruct) -> Callable[[], Program]:
    return lambda: Program(function, (*arrays, COUNTS), our_tables(SIZES[groups]))


def megablox(function: Callable, groups: str, *arrays: jax.ShapeDtypeStruct) -> Callable:
    """`function(backend, *arrays, group sizes)`, with the groups' metadata made of known sizes."""

    def program() -> Program:
        backend = importlib.import_module("jax.experimental.pallas.ops.tpu.megablox.gmm")
        real, visits = backend.make_group_metadata, []

        def known(*, group_sizes, start_group, **options):
            del group_sizes, start_group
            with jax.ensure_compile_time_eval():
                sizes = jnp.asarray(SIZES[groups], jnp.int32)
                metadata, count = real(group_sizes=sizes, start_group=jnp.int32(0), **options)
            visits.append(int(count))
            return jax.tree.map(np.asarray, metadata), int(count)

        def tables(name, operands, grid):
            del name, grid
            offsets, ids, tiles = operands[0]
            walk = baked(ids[: visits[-1]]), baked(tiles[: visits[-1]])
            return [Together((baked(offsets), *walk)), Arithmetic(lambda i: 0 * i, (1,))]

        backend.make_group_metadata = known
        return Program(functools.partial(function, backend), (*arrays, COUNTS), tables)

    return program


def gmm(backend, x, w, sizes, *, tiles, transposed=False):
    return backend.gmm(x, w, sizes, jnp.bfloat16, tiles, transpose_rhs=transposed)


def tgmm(backend, x, dy, sizes, *, tiles):
    return backend.tgmm(x.T, dy, sizes, jnp.bfloat16, tiles)


def gated_by_megablox(backend, x, gate, up, sizes, *, tiles):
    gate, up = (gmm(backend, x, w, sizes, tiles=tiles) for w in (gate, up))
    return jax.nn.silu(gate) * up


def by_xla(equation: str, *arrays: jax.ShapeDtypeStruct) -> Callable[[], Program]:
    """The batched product of equal groups."""

    def cut(x):
        if len(x.shape) == 3:
            return x
        return jax.ShapeDtypeStruct((GROUPS, ROWS // GROUPS, WIDTH), x.dtype)

    return lambda: Program(lambda *a: jnp.einsum(equation, *a), tuple(cut(x) for x in arrays))


def weight_gradient(x, dy, sizes):
    return pallas_tpu.weight_gradient(x, dy, sizes, jnp.bfloat16)


def gated(x, gate, up, sizes):
    return pallas_tpu.gated(x, gate, up, sizes, "silu")


def gated_backward(x, w_gate, w_up, gate, up, dh, sizes):
    return pallas_tpu.gated_backward(x, w_gate, w_up, sizes, gate, up, dh, "silu")


def _forward(groups: str, tiles: list[tuple[int, ...]], transposed: bool = False) -> Case:
    run = pallas_tpu.input_gradient if transposed else pallas_tpu.matmul
    contenders = {"ours": ours(run, groups, ROW, MATRIX)}
    for t in tiles:
        public = functools.partial(gmm, tiles=t, transposed=transposed)
        contenders[f"megablox {'/'.join(map(str, t))}"] = megablox(public, groups, ROW, MATRIX)
    if groups == "even":
        equation = "erf,edf->erd" if transposed else "erd,edf->erf"
        contenders["xla batched"] = by_xla(equation, ROW, MATRIX)
    return Case(contenders, PRODUCT, 2 * ROW_BYTES + MATRIX_BYTES)


def _weights(groups: str, tiles: list[tuple[int, ...]]) -> Case:
    contenders = {"ours": ours(weight_gradient, groups, ROW, ROW)}
    for t in tiles:
        name = f"megablox {'/'.join(map(str, t))}"
        contenders[name] = megablox(functools.partial(tgmm, tiles=t), groups, ROW, ROW)
    if groups == "even":
        contenders["xla batched"] = by_xla("erd,erf->edf", ROW, ROW)
    return Case(contenders, PRODUCT, 2 * ROW_BYTES + MATRIX_BYTES)


def _gated() -> Case:
    contenders = {"ours": ours(gated, "even", ROW, MATRIX, MATRIX)}
    for tiles in ((512, 2048, 512), (512, 2048, 1024)):
        public = functools.partial(gated_by_megablox, tiles=tiles)
        name = f"two megablox {'/'.join(map(str, tiles))} and xla"
        contenders[name] = megablox(public, "even", ROW, MATRIX, MATRIX)
    return Case(contenders, 2 * PRODUCT, 2 * ROW_BYTES + 2 * MATRIX_BYTES)


DEFAULT, RETUNED = (512, 1024, 1024), [(512, 2048, 512), (512, 2048, 1024)]
CASES: dict[str, Case] = {
    "even, forward": _forward("even", [DEFAULT, *RETUNED]),
    "even, input gradient": _forward("even", [DEFAULT, *RETUNED], True),
    "even, weight gradient": _weights("even", [(512, 1024, 1024), (512, 2048, 1024)]),
    "uneven, forward": _forward("uneven", [(256, 2048, 1024), (512, 2048, 1024)]),
    "uneven, input gradient": _forward("uneven", [(256, 2048, 1024), (512, 2048, 1024)], True),
    "uneven, weight gradient": _weights("uneven", [(256, 1024, 1024), (512, 1024, 1024)]),
    "even, gated forward": _gated(),
    "even, gated backward": Case(
        {"ours": ours(gated_backward, "even", ROW, MATRIX, MATRIX, ROW, ROW, ROW)},
        4 * PRODUCT,
        5 * ROW_BYTES + 4 * MATRIX_BYTES,
        {"two megablox and xla": "compare with the sum of its two gradients above, twice"},
    ),
}
