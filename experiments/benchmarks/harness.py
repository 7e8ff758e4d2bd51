"""What every benchmark here shares: workers that take turns, medians, and the closing JSON line.

A contender runs in a process of its own, started with the same allocator settings as all others,
and steps when it is told to; so contenders alternate within one run and a busy machine disturbs
them alike. CPU-seconds of the process are recorded beside wall time: they do not grow when
somebody else has the core.
"""

import importlib.metadata
import json
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

# glibc returns large buffers to the kernel at every free and then pays page faults for fresh ones;
# every contender is started with the setting that keeps them.
MALLOC = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:"
    "glibc.malloc.trim_threshold=100000000000:glibc.malloc.arena_max=1"
)
READY = "worker ready"


def machine() -> str:
    """Processor and number of usable cores."""
    name = platform.processor() or platform.machine()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def versions(*packages: str) -> dict[str, str | None]:
    """Installed version of each package, None where it is absent."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def row(
    case: str,
    metric: str,
    unit: str,
    ours: float | None,
    peers: dict[str, float] | None = None,
    floor: float | None = None,
    higher_is_better: bool = True,
) -> dict[str, Any]:
    """One figure in the common form; `ratio`: how many times better ours is than the best peer."""
    peers = peers or {}
    best = (max if higher_is_better else min)(peers, key=peers.get) if peers else None
    ratio = None
    if best is not None and ours:
        ratio = ours / peers[best] if higher_is_better else peers[best] / ours
    return {
        "case": case,
        "metric": metric,
        "unit": unit,
        "ours": ours,
        "peers": peers,
        "best_peer": best,
        "ratio": None if ratio is None else round(ratio, 3),
        "floor": floor,
    }


def emit(benchmark: str, rows: list[dict[str, Any]], packages: tuple[str, ...] = ()) -> None:
    """The last line of every benchmark: all figures as one JSON object."""
    print(
        json.dumps(
            {
                "benchmark": benchmark,
                "machine": machine(),
                "versions": versions("jax", "jaxlib", "flax", "optax", *packages),
                "rows": rows,
            },
            ensure_ascii=False,
        )
    )


def show(title: str, columns: list[str], lines: list[list[Any]]) -> None:
    """A table on the terminal; the first column is left-aligned."""
    table = Table(title=title)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    for line in lines:
        table.add_row(*(f"{x:,.4g}" if isinstance(x, float) else str(x) for x in line))
    Console(width=160).print(table)


class Worker:
    """A contender in its own process; see `serve` for the other end."""

    def __init__(self, name: str, script: str, arguments: list[str]):
        self.name = name
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        environment = {**os.environ, "GLIBC_TUNABLES": MALLOC}
        self.process = subprocess.Popen(
            [sys.executable, script, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.facts = self._answer()

    def _answer(self) -> dict[str, Any]:
        for line in self.process.stdout:
            if line.startswith(READY):
                return json.loads(line.removeprefix(READY))
        raise RuntimeError(f"contender {self.name} ended with {self.process.wait()}")

    def _ask(self, word: str) -> dict[str, Any]:
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        return self._answer()

    def steps(self, count: int) -> None:
        """Runs and times `count` steps while every other contender sleeps."""
        answer = self._ask(f"steps {count}")
        self.seconds += answer["seconds"]
        self.cpu_seconds += answer["cpu_seconds"]

    def close(self) -> None:
        """Takes the last figures (`peak_mb`, the process's largest memory) and ends the process."""
        self.facts |= self._ask("end")
        self.process.wait()

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def cpu_median(self) -> float:
        return statistics.median(self.cpu_seconds)


def serve(step: Callable[[], Any], facts: dict[str, Any]) -> None:
    """A worker's end: tells that it is ready, then steps when asked, until told to end."""
    _say(facts)
    for line in sys.stdin:
        word, *count = line.split()
        if word == "end":
            _say({"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024})
            return
        seconds, cpu_seconds = [], []
        for _ in range(int(count[0])):
            start, cpu_start = time.perf_counter(), time.process_time()
            step()
            seconds.append(time.perf_counter() - start)
            cpu_seconds.append(time.process_time() - cpu_start)
        _say({"seconds": seconds, "cpu_seconds": cpu_seconds})


def _say(facts: dict[str, Any]) -> None:
    print(READY + json.dumps(facts), flush=True)


def alternate(workers: list[Worker], rounds: int, steps: int) -> None:
    """`rounds` turns of `steps` steps each, the order reversed every other round."""
    for i in range(rounds):
        for worker in workers if i % 2 == 0 else workers[::-1]:
            worker.steps(steps)
