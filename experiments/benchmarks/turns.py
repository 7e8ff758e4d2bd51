"""Contenders of one process that take turns, for kernels: medians of process CPU-seconds.

CPU-seconds add up all threads and do not grow when somebody else has the cores; taking turns lets
what remains of a busy machine (caches, memory) disturb all alike. A torch contender gets one
thread, as its pool spins on after its work and would be billed to whoever comes next.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jgpt.malloc import keep_freed_buffers

Contender = Callable[[], Any]


def prepare() -> None:
    """The allocator setting that training uses; call before the first array."""
    if not keep_freed_buffers():
        print("this C library's allocator has no switch to keep freed buffers: figures include it")


def compiled(function: Callable, *arguments: Any) -> tuple[Contender, float]:
    """A contender that runs `function` on device arrays, and its temporary memory in MiB."""
    program = jax.jit(function).lower(*arguments).compile()
    memory = program.memory_analysis().temp_size_in_bytes / 2**20
    return lambda: jax.block_until_ready(program(*arguments)), memory


def milliseconds(contenders: Mapping[str, Contender], seconds: float) -> dict[str, float]:
    """Median CPU-milliseconds per call of each, taking turns for `seconds` (at least three)."""
    spent = {name: [] for name in contenders}
    for run in contenders.values():
        run()
    start, turn = time.monotonic(), 0
    while turn < 3 or time.monotonic() - start < seconds:
        names = list(contenders)
        for name in names if turn % 2 == 0 else names[::-1]:
            before = time.process_time()
            contenders[name]()
            spent[name].append(time.process_time() - before)
        turn += 1
    return {name: 1e3 * statistics.median(times) for name, times in spent.items()}
