"""Documents to rows of a fixed length: cut up, fitted in whole, or one a row.

A document of n tokens, `bos` and `eos` included, gives n - 1 training positions (each token
predicts the next). A `Segment` is a run of positions of one document; a row is a list of segments
of at most `length` positions in all. Packers hold rows that are still open; their state can be
saved.
"""

import abc
import base64
import zlib
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np


class Segment(NamedTuple):
    """`len(tokens) - 1` positions of one document.

    Attributes:
        tokens: [n + 1] int32; inputs are all but the last, targets all but the first.
        characters: code points of the text that these positions account for.
        learned: [n] bool, the targets that count; None for all.
        label: of the whole segment; None where it has none.
        weight: of the loss of each target that counts.
    """

    tokens: np.ndarray
    characters: int
    learned: np.ndarray | None = None
    label: float | None = None
    weight: float = 1.0

    @property
    def size(self) -> int:
        """Positions that the segment takes in a row."""
        return len(self.tokens) - 1

    def part(self, start: int, end: int) -> "Segment":
        """Positions `start` to `end`, with their share of the characters (shares add up)."""
        size = self.size
        share = self.characters * end // size - self.characters * start // size
        learned = None if self.learned is None else self.learned[start:end]
        return Segment(self.tokens[start : end + 1], share, learned, self.label, self.weight)


Row = list[Segment]


class Packer(abc.ABC):
    """Takes segments of any length, gives rows; subclasses decide which goes where.

    Attributes:
        ready: finished rows, oldest first.
        open: rows that may still grow.
    """

    def __init__(self, length: int):
        self.length = length
        self.ready: deque[Row] = deque()
        self.open: list[Row] = []

    @abc.abstractmethod
    def add(self, segment: Segment) -> None:
        """Places a whole document."""

    def flush(self) -> None:
        """Finishes all open rows: nothing more will come."""
        self.ready.extend(self.open)
        self.open = []

    def snapshot(self) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
        """(ready, open): a copy that later calls do not touch; token arrays are shared."""
        return tuple(self.ready), tuple(list(row) for row in self.open)

    def restore(self, ready: Iterable[Row], open_rows: Iterable[Row]) -> None:
        self.ready = deque(ready)
        self.open = [list(row) for row in open_rows]


class NonePacker(Packer):
    """One document a row; longer documents continue in rows of their own."""

    def add(self, segment: Segment) -> None:
        for start in range(0, segment.size, self.length):
            self.ready.append([segment.part(start, min(start + self.length, segment.size))])


class SplitPacker(Packer):
    """Concatenates everything and cuts every `length` positions: no padding, cut documents."""

    def add(self, segment: Segment) -> None:
        row = self.open.pop() if self.open else []
        room = self.length - sum(part.size for part in row)
        start = 0
        while segment.size - start >= room:
            row.append(segment.part(start, start + room))
            self.ready.append(row)
            start += room
            row, room = [], self.length
        if start < segment.size:
            row.append(segment.part(start, segment.size))
        if row:
            self.open = [row]


class BestFitPacker(Packer):
    """Whole documents, chosen so that they fill rows best.

    Documents wait; a row takes the one that has waited longest and those others that fill it best
    (exactly, by subset sums). A row that cannot yet be filled to within `length // 64` waits for
    more documents, until those waiting would fill `open_rows` rows. Only a document longer than a
    row is cut, into full rows; its remainder waits like a short document. Packing whole
    documents: Ding et al. 2024, Fewer Truncations Improve Language Modeling.
    """

    def __init__(self, length: int, open_rows: int):
        super().__init__(length)
        self._slack = length // 64
        self._most_waiting = open_rows * length
        self._sizes: list[int] = []  # of self.open, each of which is one waiting segment
        self._sums: list[int] = []

    def add(self, segment: Segment) -> None:
        start = 0
        while segment.size - start > self.length:
            self.ready.append([segment.part(start, start + self.length)])
            start += self.length
        rest = segment.part(start, segment.size) if start else segment
        self.open.append([rest])
        self._sizes.append(rest.size)
        self._make_rows(self._most_waiting)

    def flush(self) -> None:
        self._make_rows(most_waiting=0)

    def restore(self, ready: Iterable[Row], open_rows: Iterable[Row]) -> None:
        super().restore(ready, open_rows)
        self._sizes = [segment.size for (segment,) in self.open]
        self._sums = []

    def _make_rows(self, most_waiting: int) -> None:
        while self.open:
            extend_sums(self._sums, self._sizes, self.length)
            room = self.length - largest_sum(self._sums)
            if room > self._slack and sum(self._sizes) <= most_waiting:
                return
            chosen = subset_of_largest_sum(self._sums, self._sizes)
            self.ready.append([self.open[index][0] for index in chosen])
            for index in reversed(chosen):
                del self.open[index], self._sizes[index]
            self._sums = []


def extend_sums(sums: list[int], sizes: Sequence[int], limit: int) -> None:
    """Subset sums by dynamic programming: extends `sums` to all sizes, or until `limit` is reached.

    Bit n of `sums[i]` says that a subset of `sizes[: i + 1]` with the first has the sum n <= limit.
    """
    if not sums:
        sums.append(1 << sizes[0])
    within = (1 << (limit + 1)) - 1
    while len(sums) < len(sizes) and not sums[-1] >> limit:
        sums.append((sums[-1] | sums[-1] << sizes[len(sums)]) & within)


def largest_sum(sums: Sequence[int]) -> int:
    """The largest sum that `extend_sums` found."""
    return sums[-1].bit_length() - 1


def subset_of_largest_sum(sums: Sequence[int], sizes: Sequence[int]) -> list[int]:
    """Indices, ascending, of a subset with the largest sum; prefers earlier items."""
    total = largest_sum(sums)
    chosen = []
    for index in range(len(sums) - 1, 0, -1):
        if not sums[index - 1] >> total & 1:
            chosen.append(index)
            total -= sizes[index]
    return [0, *reversed(chosen)]


def make_packer(packing: str, length: int, open_rows: int) -> Packer:
    """The packer named by `data.packing`."""
    if packing == "best_fit":
        return BestFitPacker(length, open_rows)
    return {"split": SplitPacker, "none": NonePacker}[packing](length)


def encode_rows(rows: Sequence[Row]) -> dict[str, Any]:
    """Rows as JSON values: counts as lists, tokens compressed and in base64."""
    segments = [segment for row in rows for segment in row]
    tokens = np.concatenate([s.tokens for s in segments]) if segments else np.zeros(0, np.int32)
    dtype = np.dtype("<u2" if tokens.size == 0 or tokens.max() < 2**16 else "<u4")
    if tokens.size and tokens.min() < 0:  # virtual tokens
        dtype = np.dtype("<i4")
    state = {
        "segments": [len(row) for row in rows],
        "lengths": [len(segment.tokens) for segment in segments],
        "characters": [int(segment.characters) for segment in segments],
        "dtype": dtype.str,
        "tokens": _packed(tokens.astype(dtype)),
    }
    if any(segment.learned is not None for segment in segments):
        masks = [_mask(segment) for segment in segments]
        state["learned"] = _packed(np.packbits(np.concatenate(masks)))
    if any(segment.label is not None for segment in segments):
        state["labels"] = [segment.label for segment in segments]
    if any(segment.weight != 1 for segment in segments):
        state["weights"] = [segment.weight for segment in segments]
    return state


def _packed(values: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(values.tobytes(), 1)).decode()


def _mask(segment: Segment) -> np.ndarray:
    return np.ones(segment.size, bool) if segment.learned is None else segment.learned


def decode_rows(state: dict[str, Any]) -> list[Row]:
    """The rows that `encode_rows` was given."""
    data = zlib.decompress(base64.b64decode(state["tokens"]))
    tokens = np.frombuffer(data, dtype=np.dtype(state["dtype"])).astype(np.int32)
    lengths = state["lengths"]
    found = [
        Segment(part, characters)
        for part, characters in zip(_cut(tokens, lengths), state["characters"], strict=True)
    ]
    if "learned" in state:
        bits = np.frombuffer(zlib.decompress(base64.b64decode(state["learned"])), np.uint8)
        sizes = [segment.size for segment in found]
        masks = _cut(np.unpackbits(bits, count=sum(sizes)).astype(bool), sizes)
        found = [s._replace(learned=mask) for s, mask in zip(found, masks, strict=True)]
    if "labels" in state:
        found = [s._replace(label=label) for s, label in zip(found, state["labels"], strict=True)]
    if "weights" in state:
        found = [s._replace(weight=w) for s, w in zip(found, state["weights"], strict=True)]
    segments = iter(found)
    return [[next(segments) for _ in range(count)] for count in state["segments"]]


def _cut(values: np.ndarray, lengths: Sequence[int]) -> list[np.ndarray]:
    """Consecutive parts of these lengths."""
    return np.split(values, np.cumsum(lengths, dtype=np.int64)[:-1]) if lengths else []
