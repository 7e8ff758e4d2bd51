"""The figures of a run: how they follow from sums and clocks, and where they are written."""

import json
import math
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

PEAK_FLOPS: list[tuple[str, float]] = [
    (r"TPU (v6 lite|v6e)", 918e12),
    (r"TPU (v5 lite|v5e)", 197e12),
    (r"TPU v5", 459e12),
    (r"TPU v4", 275e12),
    (r"TPU v3", 61.5e12),
    (r"TPU7x", 1153.5e12),
    (r"B200", 2250e12),
    (r"H100 PCIe", 756e12),
    (r"H100|H200|GH200", 989e12),
    (r"A100", 312e12),
    (r"L40S", 362e12),
    (r"L4\b", 121e12),
    (r"A10\b", 125e12),
    (r"V100", 125e12),
    (r"T4\b", 65e12),
    (r"RTX 4090", 165e12),
]
"""(pattern of `device_kind`, dense bfloat16 FLOP/s of one JAX device; float16 where there is no
bfloat16), from the makers' data sheets. A v3 or 7x device is one of a chip's two cores."""


def peak_flops(device_kind: str) -> float | None:
    """FLOP/s of one device at its best; None where it is not known."""
    return next((peak for pattern, peak in PEAK_FLOPS if re.search(pattern, device_kind)), None)


def expert_load(assignments: np.ndarray) -> list[list[float]]:
    """Each expert's share of the assignments of its layer, from counts [L, E]; rows sum to one."""
    assignments = np.asarray(assignments, np.float64)
    share = assignments / np.maximum(assignments.sum(-1, keepdims=True), 1)
    return [[round(float(x), 5) for x in layer] for layer in share]


class Clock:
    """Where the wall time of this process went, in seconds by part; parts do not nest."""

    def __init__(self):
        self.start = time.monotonic()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Adds the time inside to part `name`."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.add(name, time.monotonic() - start)

    def add(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    @property
    def total(self) -> float:
        return time.monotonic() - self.start

    def goodput(self) -> float:
        """Share of all time since the start that went into steps (waiting for data is none)."""
        return self.seconds.get("step", 0.0) / max(self.total, 1e-9)


class JsonLines:
    """A file of one JSON object per line, appended to, that survives the process being killed."""

    def __init__(self, path: Path):
        # Without a buffer: nothing is left to be written, or to fail, when it is closed.
        self._file = path.open("ab+", buffering=0)
        self._end_last_line()

    def _end_last_line(self) -> None:
        """A line that a killed process left unfinished is ended; readers skip it."""
        if self._file.tell():
            self._file.seek(-1, os.SEEK_END)
            if self._file.read(1) != b"\n":
                self._file.write(b"\n")

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends a record. Floats are written so that they read back to the same bits."""
        line = json.dumps(finite(record), ensure_ascii=False, allow_nan=False)
        self._file.write(line.encode() + b"\n")

    def close(self) -> None:
        self._file.close()


def finite(value: Any) -> Any:
    """The value with None in place of infinities and NaN, which JSON does not have."""
    if isinstance(value, Mapping):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """All whole records of a `JsonLines` file; [] where there is none."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def last_per_step(records: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Records of a kind by ascending step; where a resumed run repeated a step, its record."""
    found = {r["step"]: r for r in records if r.get("kind") == kind}
    return [found[step] for step in sorted(found)]


@contextmanager
def without_torch() -> Iterator[None]:
    """Inside, torch cannot be imported: tensorboardX takes it in wherever it is installed, which
    costs seconds and hundreds of megabytes for nothing."""
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None
    try:
        yield
    finally:
        if hidden:
            del sys.modules["torch"]


class TensorBoard:
    """Scalars and text for TensorBoard."""

    def __init__(self, folder: Path, first_step: int):
        with without_torch():
            from tensorboardX import SummaryWriter
        self._writer = SummaryWriter(str(folder), purge_step=first_step, flush_secs=30)

    def scalars(self, step: int, figures: Mapping[str, Any], prefix: str) -> None:
        """Every number among `figures`, and the shares of `load` per layer and expert."""
        for name, value in figures.items():
            if isinstance(value, int | float) and name != "step":
                self._writer.add_scalar(f"{prefix}/{name}", value, step)
        for i, layer in enumerate(figures.get("load", [])):
            for j, share in enumerate(layer):
                self._writer.add_scalar(f"load_{i}/{j}", share, step)

    def text(self, step: int, name: str, text: str) -> None:
        self._writer.add_text(name, text, step)

    def close(self) -> None:
        self._writer.close()
