"""How tensors of other libraries become our parameters, and back: named, invertible.

A transform stands between one tensor of theirs and one or more parameters of ours (`parts`). Where
it can, `read` returns a view, so that slices of a memory-mapped file stay slices.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from jgpt.config import ModelConfig

Shape = tuple[int, ...]


class Transform(Protocol):
    """`read` of every part after `write` gives the parts; `write` after `read` gives theirs."""

    def shape(self, shapes: Sequence[Shape], model: ModelConfig) -> Shape:
        """Of their tensor, from the shapes of our parts."""

    def read(
        self, theirs: np.ndarray, part: int, shapes: Sequence[Shape], model: ModelConfig
    ) -> np.ndarray:
        """Our part number `part` of their tensor (which has shape `shape(shapes, model)`)."""

    def write(self, parts: Sequence[np.ndarray], model: ModelConfig) -> np.ndarray:
        """Their tensor."""


@dataclass(frozen=True)
class Same:
    """Nothing changes."""

    def shape(self, shapes: Sequence[Shape], model: ModelConfig) -> Shape:
        return tuple(shapes[0])

    def read(
        self, theirs: np.ndarray, part: int, shapes: Sequence[Shape], model: ModelConfig
    ) -> np.ndarray:
        return theirs

    def write(self, parts: Sequence[np.ndarray], model: ModelConfig) -> np.ndarray:
        return parts[0]


@dataclass(frozen=True)
class Transposed:
    """The last two axes change places: torch's (out, in) and our (in, out)."""

    def shape(self, shapes: Sequence[Shape], model: ModelConfig) -> Shape:
        *rest, rows, columns = shapes[0]
        return (*rest, columns, rows)

    def read(
        self, theirs: np.ndarray, part: int, shapes: Sequence[Shape], model: ModelConfig
    ) -> np.ndarray:
        return theirs.swapaxes(-1, -2)

    def write(self, parts: Sequence[np.ndarray], model: ModelConfig) -> np.ndarray:
        return parts[0].swapaxes(-1, -2)


SAME = Same()
TRANSPOSED = Transposed()


@dataclass(frozen=True)
class Fused:
    """Parts one after the other along an axis of theirs, each put through `inner`."""

    inner: Transform
    axis: int

    def _each(self, shapes: Sequence[Shape], model: ModelConfig) -> list[Shape]:
        return [self.inner.shape([shape], model) for shape in shapes]

    def shape(self, shapes: Sequence[Shape], model: ModelConfig) -> Shape:
        each = self._each(shapes, model)
        whole = list(each[0])
        whole[self.axis] = sum(shape[self.axis] for shape in each)
        return tuple(whole)

    def read(
        self, theirs: np.ndarray, part: int, shapes: Sequence[Shape], model: ModelConfig
    ) -> np.ndarray:
        sizes = [shape[self.axis] for shape in self._each(shapes, model)]
        start = sum(sizes[:part])
        index = [slice(None)] * theirs.ndim
        index[self.axis] = slice(start, start + sizes[part])
        return self.inner.read(theirs[tuple(index)], 0, [shapes[part]], model)

    def write(self, parts: Sequence[np.ndarray], model: ModelConfig) -> np.ndarray:
        return np.concatenate([self.inner.write([part], model) for part in parts], axis=self.axis)


@dataclass(frozen=True)
class FusedPerHead:
    """Rows ordered head, then part, then width of a head (GPT-NeoX's query, key and value)."""

    inner: Transform

    def shape(self, shapes: Sequence[Shape], model: ModelConfig) -> Shape:
        rows, *rest = self.inner.shape([shapes[0]], model)
        return (len(shapes) * rows, *rest)

    def read(
        self, theirs: np.ndarray, part: int, shapes: Sequence[Shape], model: ModelConfig
    ) -> np.ndarray:
        rows, *rest = theirs.shape
        heads = theirs.reshape(model.num_heads, len(shapes), -1, *rest)[:, part]
        return self.inner.read(heads.reshape(rows // len(shapes), *rest), 0, [shapes[part]], model)

    def write(self, parts: Sequence[np.ndarray], model: ModelConfig) -> np.ndarray:
        each = [self.inner.write([part], model) for part in parts]
        rows, *rest = each[0].shape
        heads = [part.reshape(model.num_heads, 1, -1, *rest) for part in each]
        return np.concatenate(heads, axis=1).reshape(len(parts) * rows, *rest)
