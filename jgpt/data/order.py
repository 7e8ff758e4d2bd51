"""The endless sequence of a source's training texts, epoch after epoch, that virtual shards share
out.

Text number g belongs to virtual shard g % V. A source with an index is read at random, in a new
permutation each epoch; a stream is read once, block by block, and shuffled within each block.
"""

import abc
import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence

import grain
import numpy as np

from jgpt.config import DataConfig
from jgpt.data.corpus import Source
from jgpt.data.stream import StreamReader, StreamTexts

Bookmarks = list[list]
"""[block, place in the stream where it begins] of blocks that are still in use."""


class EndOfData(Exception):
    """The source has given its last epoch."""


class Order(abc.ABC):
    """What the virtual shards of one process or worker read a source through.

    Attributes:
        size: texts of one epoch, those kept for validation included; None where it is unknown.
    """

    size: int | None

    @abc.abstractmethod
    def __getitem__(self, position: int) -> str | None:
        """Text number `position`; None where that document is kept for validation.

        Raises:
            EndOfData: `data.epochs` are over.
        """

    @abc.abstractmethod
    def restore(self, positions: Mapping[int, int], bookmarks: Bookmarks) -> None:
        """Must be told before reading: each shard's next position, and what `bookmarks` gave."""

    @abc.abstractmethod
    def bookmarks(self, positions: Iterable[int]) -> Bookmarks:
        """What `restore` needs to find these places without reading all again; JSON values.

        Places before them are forgotten.
        """


def shuffled_index(index: int, size: int, seed: int) -> int:
    """Where `index` goes in a permutation of range(size) that the seed decides.

    Grain's index shuffle needs no memory, but walks long in small ranges (8 ms for 3 items).
    """
    if size < 4096:
        return int(_permutation(size, seed)[index])
    return grain.experimental.index_shuffle(index, max_index=size - 1, seed=seed, rounds=4)


@functools.lru_cache(maxsize=64)
def _permutation(size: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(size)


class IndexedOrder(Order):
    """Of a source with an index: each epoch in a permutation of its own."""

    def __init__(self, source: Sequence[str | None], seed: int, config: DataConfig):
        self._source, self._seed, self._config = source, seed, config
        self.size = len(source)

    def __getitem__(self, position: int) -> str | None:
        epoch, index = divmod(position, self.size)
        if self._config.epochs and epoch >= self._config.epochs:
            raise EndOfData
        if self._config.shuffle:
            index = shuffled_index(index, self.size, (self._seed + epoch) % 2**32)
        return self._source[index]

    def restore(self, positions: Mapping[int, int], bookmarks: Bookmarks) -> None:
        """Nothing to do: any position can be read at any time."""

    def bookmarks(self, positions: Iterable[int]) -> Bookmarks:
        return []


class StreamOrder(Order):
    """Of a stream: blocks of `data.shuffle_buffer` texts, each in a random order.

    Epochs follow one another without a gap, so a block may hold the end of one and the start of the
    next. Blocks stay in memory until all shards have passed them.
    """

    size = None

    def __init__(self, source: StreamTexts, seed: int, config: DataConfig):
        self._source, self._seed, self._config = source, seed, config

    def restore(self, positions: Mapping[int, int], bookmarks: Bookmarks) -> None:
        self._next = dict(positions)
        usable = [pair for pair in bookmarks if pair[0] <= self._oldest()]
        self._next_block, mark = max(usable, default=[0, None], key=lambda pair: pair[0])
        self._reader = StreamReader(self._source, self._config.epochs, mark)
        self._blocks: dict[int, list[str]] = {}
        self._marks: dict[int, list] = {}

    def bookmarks(self, positions: Iterable[int]) -> Bookmarks:
        oldest = min(positions) // self._config.shuffle_buffer
        self._marks = {block: mark for block, mark in self._marks.items() if block >= oldest}
        return [[block, mark] for block, mark in self._marks.items()]

    def _oldest(self) -> int:
        """The first block that a shard still has to read."""
        return min(self._next.values()) // self._config.shuffle_buffer

    def _load(self) -> None:
        oldest, buffer = self._oldest(), self._config.shuffle_buffer
        for block in [block for block in self._blocks if block < oldest]:
            del self._blocks[block]
        self._marks[self._next_block] = self._reader.bookmark()
        self._blocks[self._next_block] = list(itertools.islice(self._reader, buffer))
        self._next_block += 1

    def __getitem__(self, position: int) -> str:
        block, offset = divmod(position, self._config.shuffle_buffer)
        while block >= self._next_block:
            self._load()
        texts = self._blocks[block]
        if offset >= len(texts):
            raise EndOfData
        self._next[position % self._config.virtual_shards] = position + self._config.virtual_shards
        if self._config.shuffle:
            offset = shuffled_index(offset, len(texts), (self._seed + block) % 2**32)
        return texts[offset]


def make_order(source: Source, number: int, config: DataConfig) -> Order:
    """The order of source `number`; its seed is far from those of other sources' later epochs."""
    seed = int(np.random.SeedSequence((config.seed % 2**32, number)).generate_state(1)[0])
    if isinstance(source, StreamTexts):
        return StreamOrder(source, seed, config)
    return IndexedOrder(source, seed, config)
