"""TPU kernels without a TPU: cycles that the TPU compiler estimates from its final instructions.

    pip install "jax[tpu]"
    python experiments/benchmarks/kernels.py --chip v5e [--case "causal 4096, forward"]

Ours beside jax's flash and splash attention, one head, bf16, causal; every operation of the program
counts. The estimate runs the kernel's scalar code but knows no run-time values, so tables that
tell a kernel its blocks are replaced by arithmetic on the grid's indices, for ours and for splash
alike. `floor`: the products of the causal half (two forward, five backward) at the unit's rate.
Each figure is compiled in a process of its own, since the compiler takes its settings from the
environment. Prints a table, and one JSON line last.
"""

import argparse
import contextlib
import os
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental import topologies

from experiments.benchmarks import harness
from jgpt.kernels.attention import pallas_tpu, pallas_tpu_kernels
from jgpt.kernels.attention.schedule import make_schedule
from jgpt.typing import Mask

WIDTH = 128
CASES = {
    f"causal {length}, {what}": (length, what)
    for length in (2048, 4096)
    for what in ("forward", "both")
}
CONTENDERS = {
    "ours": (1024,),
    "ours 512": (512,),
    "flash 512": (512,),
    "flash 1024": (1024,),
    "splash 512": (512,),
    "splash 1024": (1024,),
    "splash 1024/512": (1024, 512),
}
"""Rows and columns of a block; splash may compute on fewer keys at once."""
RATE = {"v5e": 4 * 128 * 128, "v6e": 4 * 256 * 256}
"""Multiply-adds of bf16 per cycle."""


class Arithmetic:
    """Stands for a table in scalar memory; its last index goes through `function`."""

    def __init__(self, function, shape):
        self.function, self.shape, self.dtype = function, shape, jnp.int32

    def __getitem__(self, at):
        at = at if isinstance(at, tuple) else (at,)
        return jnp.asarray(self.function(*at), jnp.int32)


@contextlib.contextmanager
def without_tables(tables_of):
    """Inside, kernels get `tables_of(name, operands, grid)` for their scalar-prefetch operands."""
    real = pl.pallas_call

    def call(kernel, out_shape=None, *, grid_spec, **options):
        count, grid = grid_spec.num_scalar_prefetch, grid_spec.grid

        def run(*operands):
            tables = tables_of(options["name"], operands[:count], grid)

            def based(spec):
                if spec.index_map is None:
                    return spec
                return pl.BlockSpec(
                    spec.block_shape,
                    lambda *at: spec.index_map(*at[: len(grid)], *tables),
                    memory_space=spec.memory_space,
                )

            return real(
                lambda *refs: kernel(*tables, *refs),
                out_shape,
                grid=grid,
                in_specs=jax.tree.map(based, list(grid_spec.in_specs)),
                out_specs=jax.tree.map(based, grid_spec.out_specs),
                scratch_shapes=grid_spec.scratch_shapes,
                **options,
            )(*operands[count:])

        return run

    pl.pallas_call = call
    try:
        yield
    finally:
        pl.pallas_call = real


def our_tables(length, block):
    """The walk of a causal mask in square blocks, checked against the tables themselves."""
    kernels, rows = pallas_tpu_kernels, length // block
    starts = [i * (i + 1) // 2 for i in range(rows + 1)]

    def row(step):
        return sum((jnp.where(step >= start, 1, 0) for start in starts[1:-1]), 0 * step)

    def column(step):
        return step - sum((jnp.where(step >= n * (n + 1) // 2, n, 0) for n in range(1, rows)), 0)

    def kind(*at):
        i, j = row(at[-1]), column(at[-1])
        on = kernels.PARTIAL | kernels.DIAGONAL | kernels.LAST
        return kernels.RUN + jnp.where(j == 0, kernels.FIRST, 0) + jnp.where(i == j, on, 0)

    with jax.ensure_compile_time_eval():
        schedule = make_schedule(Mask(), length, length, block, block)
        static = kernels.Static(schedule, Mask(), False, length, 1, 0.0, 0, False)
        extras = kernels.Extras(None, None, None, None, None)
        steps = kernels.make_steps(static, extras, None)
        numbers = jnp.arange(starts[-1])
        for function, table in ((row, steps.rows), (column, steps.columns), (kind, steps.kinds)):
            np.testing.assert_array_equal(jax.vmap(function)(numbers), table.reshape(-1))
    total = starts[-1]
    made = [
        Arithmetic(row, (total,)),
        Arithmetic(lambda _, step: column(step), (1, total)),
        Arithmetic(kind, (1, total)),
        Arithmetic(lambda n: 0 * n, (1,)),
    ]
    return lambda *_: made


def splash_tables(name, operands, grid):
    """Splash's next block, kind of block, and index of the mask, of a causal mask in squares."""
    shape = (1, *grid[1:])
    backward = "dkv" in name
    tables = (
        Arithmetic(
            lambda h, i, j: jnp.where(j <= i, j if not backward else i, 0 if not backward else j),
            shape,
        ),
        Arithmetic(lambda h, i, j: jnp.where(j < i, 2, jnp.where(j == i, 1, 0)), shape),
        Arithmetic(lambda h, i, j: 0 * i, shape),
    )
    return [None if given is None else table for given, table in zip(operands, tables)]


def ours(q, k, v, block):
    return pallas_tpu.attention(q, k, v, Mask(), scale=WIDTH**-0.5, blocks=(block, block))


def flash(q, k, v, block):
    from jax.experimental.pallas.ops.tpu import flash_attention as module

    names = [f for f in module.BlockSizes.__dataclass_fields__ if f != "block_b"]
    sizes = module.BlockSizes(block_b=1, **dict.fromkeys(names, block))
    return module.flash_attention(q, k, v, causal=True, sm_scale=WIDTH**-0.5, block_sizes=sizes)


def splash(q, k, v, block, compute=None):
    from jax.experimental.pallas.ops.tpu import splash_attention as module

    names = ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv")
    sizes = module.BlockSizes(
        **dict.fromkeys(names, block),
        block_kv_compute=compute or block,
        block_kv_dkv_compute=compute or block,
        use_fused_bwd_kernel=True,
    )
    mask = module.MultiHeadMask([module.CausalMask((q.shape[2], k.shape[2]))])
    kernel = module.make_splash_mha_single_device(mask, block_sizes=sizes)
    return jax.vmap(kernel)(q * WIDTH**-0.5, k, v)


def compile_one(chip: str, contender: str, case: str) -> None:
    """Compiles one program; the compiler writes its estimates where the environment says."""
    (length, what), blocks = CASES[case], CONTENDERS[contender]
    name = contender.split()[0]
    function = {"ours": ours, "flash": flash, "splash": splash}[name]

    def attend(q, k, v):
        return function(q, k, v, *blocks)

    def both(q, k, v):
        out, pull = jax.vjp(attend, q, k, v)
        return out, pull(jnp.ones_like(out))

    tables = contextlib.nullcontext()  # flash has none
    if name != "flash":
        made = our_tables(length, blocks[0]) if name == "ours" else splash_tables
        tables = without_tables(made)

    def program(*arrays):
        with tables:
            return (attend if what == "forward" else both)(*arrays)

    topology = topologies.get_topology_desc(platform="tpu", topology_name=f"{chip}:2x2")
    place = jax.sharding.SingleDeviceSharding(topology.devices[0])
    shape = (1, length, 1, WIDTH) if name == "ours" else (1, 1, length, WIDTH)
    array = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=place)
    mesh = jax.sharding.Mesh(np.array(topology.devices[:1]), ("one",)).abstract_mesh
    with jax.sharding.use_abstract_mesh(mesh):
        jax.jit(program).lower(*[array] * 3).compile()


def cycles(chip: str, contender: str, case: str) -> int | None:
    """Of all operations of a program; None where it does not compile."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            "LIBTPU_INIT_ARGS": f"--xla_jf_dump_static_llo_profile_to={folder}",
            "TPU_SKIP_MDS_QUERY": "1",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
            "JAX_PLATFORMS": "cpu",
        }
        command = [sys.executable, __file__, "--chip", chip, "--case", case, "--one", contender]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{contender}, {case}: {done.stderr.splitlines()[-1][:300]}", file=sys.stderr)
            return None
        texts = [p.read_text() for p in pathlib.Path(folder).glob("*_static_llo_profile.textproto")]
    counts = [[int(n) for n in re.findall(r"estimated_cycles: (\d+)", text)] for text in texts]
    return sum(found[0] for found in counts if found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--chip", choices=list(RATE), default="v5e")
    parser.add_argument("--case", choices=list(CASES))
    parser.add_argument("--one", choices=list(CONTENDERS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        compile_one(arguments.chip, arguments.one, arguments.case)
        return
    rows, lines = [], []
    for case in [arguments.case] if arguments.case else CASES:
        length, what = CASES[case]
        found = {name: cycles(arguments.chip, name, case) for name in CONTENDERS}
        peers = {n: x for n, x in found.items() if x and n.split()[0] != "ours"}
        products = 2 if what == "forward" else 7
        floor = products * length * length // 2 * WIDTH / RATE[arguments.chip]
        row = harness.row(case, "estimated cycles", "cycles", found["ours"], peers, floor, False)
        rows.append({**row, "ours_512": found["ours 512"]})
        lines.append([case, *(found[n] for n in CONTENDERS), row["ratio"], int(floor)])
    columns = ["case", *CONTENDERS, "ratio to the best peer", "floor"]
    harness.show(f"Estimated cycles, {arguments.chip}", columns, lines)
    harness.emit("kernels", rows, ("libtpu",))


if __name__ == "__main__":
    main()
