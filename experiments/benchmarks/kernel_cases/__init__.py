"""What `kernels.py` compiles: one module per kernel, each a table `CASES` by name.

A kernel that reads scalar-prefetch tables profiles as empty, because the compiler's estimate runs
its scalar code but knows no run-time values. `Program.tables` puts arithmetic in their place.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl


class Program(NamedTuple):
    """One thing to compile."""

    function: Callable
    arrays: tuple[jax.ShapeDtypeStruct, ...]
    """What it is called with."""
    tables: Callable[[str, Sequence, tuple[int, ...]], list] | None = None
    """Takes a kernel's name, its scalar-prefetch operands and its grid; gives what stands for each
    operand, `Arithmetic` or None. Without it, tables are left as they are."""


class Case(NamedTuple):
    """One problem, and who solves it."""

    contenders: dict[str, Callable[[], Program]]
    """By name; those that begin with "ours" are ours, "ours" itself as it ships."""
    multiply_adds: float
    """That the problem needs of the matrix unit, in bfloat16."""
    bytes: float
    """That have to travel between HBM and the chip."""
    unavailable: dict[str, str] = {}
    """Public kernels without a figure here, and why."""


class Chip(NamedTuple):
    multiply_adds: int
    """Per cycle, bfloat16."""
    bytes: float
    """Per cycle, from and to HBM."""
    instruction: int
    """Multiply-adds that one instruction of the matrix unit has room for; narrower operands
    (a head of 128 on v6e) leave some of it unused."""


CHIPS = {
    "v5e": Chip(4 * 128 * 128, 819e9 / 1.5e9, 16 * 128 * 128),
    "v6e": Chip(4 * 256 * 256, 1640e9 / 1.75e9, 16 * 256 * 256),
}
"""Google's published rates, at the clock that the published peak implies."""


class Arithmetic:
    """Stands for a table in scalar memory: its entry at an index is what `function` gives."""

    def __init__(self, function: Callable, shape: tuple[int, ...]):
        self.function, self.shape, self.dtype = function, shape, jnp.int32

    def __getitem__(self, at: Any) -> jax.Array:
        at = at if isinstance(at, tuple) else (at,)
        return jnp.asarray(self.function(*at), jnp.int32)


@contextlib.contextmanager
def without_tables(tables_of: Callable[[str, Sequence, tuple[int, ...]], list] | None):
    """Inside, every `pallas_call` with scalar prefetch gets `tables_of(...)` for those operands.

    A grid whose length is known only at run time becomes as long as the tables.
    """
    if tables_of is None:
        yield
        return
    real = pl.pallas_call

    def call(kernel, out_shape=None, *, grid_spec=None, **options):
        count = getattr(grid_spec, "num_scalar_prefetch", 0)
        if not count:
            grid = {} if grid_spec is None else {"grid_spec": grid_spec}
            return real(kernel, out_shape, **grid, **options)
        grid = grid_spec.grid

        def run(*operands):
            tables = tables_of(options.get("name"), operands[:count], grid)
            lengths = [table.shape[-1] for table in tables if table is not None]
            static = tuple(n if isinstance(n, int) else lengths[0] for n in grid)

            def based(spec):
                if spec is None or spec.index_map is None:
                    return spec
                return pl.BlockSpec(
                    spec.block_shape,
                    lambda *at: spec.index_map(*at[: len(grid)], *tables),
                    memory_space=spec.memory_space,
                )

            def is_spec(x):
                return x is None or isinstance(x, pl.BlockSpec)

            return real(
                lambda *refs: kernel(*tables, *refs),
                out_shape,
                grid=static,
                in_specs=jax.tree.map(based, list(grid_spec.in_specs), is_leaf=is_spec),
                out_specs=jax.tree.map(based, grid_spec.out_specs, is_leaf=is_spec),
                scratch_shapes=grid_spec.scratch_shapes,
                **options,
            )(*operands[count:])

        return run

    pl.pallas_call = call
    try:
        yield
    finally:
        pl.pallas_call = real
