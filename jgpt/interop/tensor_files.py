"""Safetensors files, one tensor at a time.

A file is eight bytes with the length of a JSON header, the header (`{name: {dtype, shape,
data_offsets}}`), and the tensors' bytes one after the other, little-endian and row-major. It is
read through a memory map, so that only what is asked for is read, and written in one pass, so that
one tensor at a time is in memory.
"""

import json
import math
import mmap
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jgpt.interop.description import InteropError

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
LONGEST_HEADER = 100_000_000
"""Bytes; the format's own limit."""
PIECE_BYTES = 32 << 20
"""So much of a tensor is converted at a time."""


@dataclass(frozen=True)
class Entry:
    """Where a tensor is in its file."""

    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    """byte of the file at which it begins"""

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


class TensorFile:
    """A safetensors file, open for reading.

    Attributes:
        path: of the file.
        entries: name to place of every tensor.
        metadata: the header's free text fields.
    """

    def __init__(self, path: Path):
        """
        Raises:
            InteropError: the file is truncated or is no safetensors file.
        """
        self.path = path
        with path.open("rb") as file:
            total = file.seek(0, 2)
            file.seek(0)
            header, start = _read_header(path, file, total)
            self.metadata = header.pop("__metadata__", {})
            self.entries = {name: _entry(path, name, v, start) for name, v in header.items()}
            end = max((entry.start + entry.size for entry in self.entries.values()), default=start)
            if end > total:
                raise InteropError(
                    f"{path} is truncated: it has {total:,} of {end:,} bytes; fetch it again"
                )
            if end < total:
                raise InteropError(f"{path} has {total - end:,} bytes too many; fetch it again")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def view(self, name: str) -> np.ndarray:
        """A tensor as a read-only view of the file; nothing is read until it is looked at."""
        entry = self.entries[name]
        count = math.prod(entry.shape)
        return np.frombuffer(self._map, entry.dtype, count, entry.start).reshape(entry.shape)

    def release(self, name: str) -> None:
        """Lets go of a tensor's pages; a later look reads them again."""
        if not hasattr(mmap, "MADV_DONTNEED"):  # not on every system; the kernel then decides
            return
        entry = self.entries[name]
        first = entry.start - entry.start % mmap.PAGESIZE
        if entry.size:
            self._map.madvise(mmap.MADV_DONTNEED, first, entry.start + entry.size - first)


def _read_header(path: Path, file: Any, total: int) -> tuple[dict[str, Any], int]:
    """(header, byte at which the tensors begin)."""
    prefix = file.read(8)
    if prefix == b"version ":
        raise InteropError(f"{path} is a Git LFS pointer and not the file; fetch it (git lfs pull)")
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else total
    if (length > LONGEST_HEADER and length < total) or length > max(total, LONGEST_HEADER):
        raise InteropError(f"{path} is not a safetensors file; convert it with its own library")
    if 8 + length > total:
        raise InteropError(f"{path} is truncated within its header; fetch it again")
    try:
        header = json.loads(file.read(length))
        header.items()
    except (ValueError, AttributeError) as error:
        raise InteropError(f"{path} is not a safetensors file: its header is no JSON") from error
    return header, 8 + length


def _entry(path: Path, name: str, values: Any, start: int) -> Entry:
    try:
        kind, shape = values["dtype"], tuple(values["shape"])
        begin, end = values["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise InteropError(f"{path}: the header's entry {name!r} is damaged") from error
    if not all(isinstance(n, int) and n >= 0 for n in (*shape, begin, end)):
        raise InteropError(f"{path}: the header's entry {name!r} is damaged")
    if kind not in DTYPES:
        raise InteropError(f"{path}: {name} is of type {kind}; known: {', '.join(DTYPES)}")
    entry = Entry(DTYPES[kind], shape, start + begin)
    if entry.size != end - begin:
        raise InteropError(f"{path}: {name} {list(shape)} does not fill bytes {begin} to {end}")
    return entry


@dataclass(frozen=True)
class Shape:
    """What a tensor to be written will be."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_file(
    path: Path,
    shapes: Mapping[str, Shape],
    value: Callable[[str], np.ndarray],
    metadata: Mapping[str, str],
) -> None:
    """Writes tensors in the order of `shapes`, calling `value(name)` for each as its turn comes.

    Values may be of another type and order in memory: they are converted piece by piece.

    Raises:
        InteropError: a value has not the shape that `shapes` says.
        OSError: the disk.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, shape in shapes.items():
        header[name] = {
            "dtype": NAMES[shape.dtype],
            "shape": list(shape.shape),
            "data_offsets": [offset, offset + shape.size],
        }
        offset += shape.size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes.items():
            array = value(name)
            if array.shape != shape.shape:
                raise InteropError(
                    f"{name} was to have shape {list(shape.shape)} and has {list(array.shape)}"
                )
            for piece in _pieces(array, shape):
                whole = np.ascontiguousarray(piece.astype(shape.dtype, copy=False))
                file.write(whole.reshape(-1).view(np.uint8).data)
            del array  # before the next is made


def _pieces(array: np.ndarray, shape: Shape) -> Iterator[np.ndarray]:
    """Rows of an array, of at most `PIECE_BYTES` together unless one has more."""
    if not array.ndim:
        yield array
        return
    rows = max(PIECE_BYTES // max(shape.size // max(len(array), 1), 1), 1)
    for start in range(0, len(array), rows):
        yield array[start : start + rows]


def shards(shapes: Mapping[str, Shape], largest: int) -> Sequence[dict[str, Shape]]:
    """The tensors in order, in groups of at most `largest` bytes (one tensor may exceed it)."""
    groups: list[dict[str, Shape]] = [{}]
    for name, shape in shapes.items():
        size = sum(s.size for s in groups[-1].values())
        if groups[-1] and size + shape.size > largest:
            groups.append({})
        groups[-1][name] = shape
    return groups
