"""The rows of one process or worker as a Grain dataset, with what is needed to come back to them.

Every part of a batch travels with its step number and, now and then, with a snapshot of the virtual
shards it came from, so that what Grain prefetched is never part of the pipeline's state.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np

from jgpt.config import DataConfig
from jgpt.data.corpus import Corpus
from jgpt.data.encoding import ITEMS, AfterVirtualTokens, Encoder
from jgpt.data.order import Bookmarks, make_order
from jgpt.data.shards import ShardState, VirtualShard
from jgpt.data.stats import Counts
from jgpt.data.transforms import Arrays, rows_to_arrays

SNAPSHOT_STEPS = 16
"""Steps between snapshots of the shards. Restoring replays the packing of fewer steps than this."""


@dataclasses.dataclass
class Snapshot:
    """Virtual shards by index, and per source where its stream's blocks begin."""

    shards: dict[int, ShardState] = dataclasses.field(default_factory=dict)
    bookmarks: list[Bookmarks] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Start:
    """Where rows begin: shards as they were before `base_step`, then packed again up to `step`."""

    base_step: int = 0
    step: int = 0
    snapshot: Snapshot = dataclasses.field(default_factory=Snapshot)


@dataclasses.dataclass
class Made:
    """Part of a batch with what the iterator's state needs to know.

    Opaque to Grain, which would otherwise walk through the snapshot as through a tree of arrays.
    """

    step: int
    arrays: Arrays
    snapshot: Snapshot | None
    counts: Counts
    ended: bool


def make_encoders(corpus: Corpus, tokenizer: Any, config: DataConfig) -> list[Encoder]:
    """One per source."""
    count = config.virtual_tokens
    room = dataclasses.replace(config, sequence_length=config.sequence_length - count)
    made = [ITEMS[source.items].encoder(tokenizer, room) for source in corpus.sources]
    return [AfterVirtualTokens(encoder, count) for encoder in made] if count else made


def label_dtype(corpus: Corpus, config: DataConfig) -> type | None:
    """Of the batches' `labels`: classes are int32, numbers float32; None where there are none."""
    if not corpus.labelled:
        return None
    return np.int32 if config.labels.classes else np.float32


def rows_of_part(step: int, part: int, parts: int, config: DataConfig) -> Sequence[int]:
    """Virtual shards, in row order, that give part `part` of `parts` of the batch of a step.

    With k = max(1, batch_size / V) rows of each shard side by side, global row n = step *
    batch_size + r comes from shard (n // k) % V. A shard's rows are always asked for in order,
    and for given `parts` always by the same part (batch_size and V divide one another, parts
    divides both).
    """
    size = config.batch_size // parts
    side_by_side = max(1, config.batch_size // config.virtual_shards)
    start = step * config.batch_size + part * size
    return [(n // side_by_side) % config.virtual_shards for n in range(start, start + size)]


def shards_of(part: int, parts: int, config: DataConfig) -> set[int]:
    """The virtual shards that a part reads."""
    cycle = max(1, config.virtual_shards // config.batch_size)
    return {shard for step in range(cycle) for shard in rows_of_part(step, part, parts, config)}


def merge_snapshots(snapshots: Sequence[Snapshot]) -> Snapshot:
    """One snapshot with the shards of several."""
    shards = {index: state for part in snapshots for index, state in part.shards.items()}
    return Snapshot(shards, merge_bookmarks([part.bookmarks for part in snapshots]))


def merge_bookmarks(parts: Sequence[list[Bookmarks]]) -> list[Bookmarks]:
    """Per source, each block once: every part reads the same stream, so any part's mark will do."""
    merged = []
    for marks in zip(*parts, strict=True):
        by_block = {block: mark for part in marks for block, mark in part}
        merged.append([[block, by_block[block]] for block in sorted(by_block)])
    return merged


class RowsDataset(grain.IterDataset):
    """Part `part` of `parts` of every global batch, step after step; never ends by itself."""

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: Any,
        config: DataConfig,
        part: int,
        parts: int,
        start: Start,
    ):
        super().__init__()
        self.corpus, self.tokenizer, self.config = corpus, tokenizer, config
        self.part, self.parts, self.start = part, parts, start

    def set_slice(self, sl: slice, sequential_slice: bool = False) -> None:
        """Grain gives worker i of n `slice(i, None, n)`: it makes that share of the rows."""
        self.part = self.part * sl.step + sl.start
        self.parts *= sl.step

    def __iter__(self) -> "RowsIterator":
        return RowsIterator(self)


class RowsIterator(grain.DatasetIterator):
    """Iterator of `RowsDataset`. Grain's own state is the step; restoring it starts over."""

    def __init__(self, dataset: RowsDataset):
        super().__init__()
        self._dataset = dataset
        self._begin()

    def _begin(self) -> None:
        dataset = self._dataset
        config, start, corpus = dataset.config, dataset.start, dataset.corpus
        self._orders = [make_order(source, s, config) for s, source in enumerate(corpus.sources)]
        encoders = make_encoders(corpus, dataset.tokenizer, config)
        self._shards = {
            index: VirtualShard(index, self._orders, corpus.weights, encoders, config)
            for index in sorted(shards_of(dataset.part, dataset.parts, config))
        }
        for index, shard in self._shards.items():
            if start.snapshot.shards:
                shard.restore(start.snapshot.shards[index])
        bookmarks = start.snapshot.bookmarks or [[] for _ in self._orders]
        for s, order in enumerate(self._orders):
            order.restore(self._positions(s), bookmarks[s])
        self._step = start.base_step
        self._replay(start.step)

    def _positions(self, source: int) -> dict[int, int]:
        return {index: shard.next_position(source) for index, shard in self._shards.items()}

    def _replay(self, step: int) -> None:
        while self._step < step:
            self._rows()
            self._step += 1
        self._take_counts()

    def _snapshot(self) -> Snapshot:
        shards = {index: shard.state() for index, shard in self._shards.items()}
        marks = [
            order.bookmarks(self._positions(s).values()) for s, order in enumerate(self._orders)
        ]
        return Snapshot(shards, marks)

    def _rows(self) -> list:
        indices = rows_of_part(
            self._step, self._dataset.part, self._dataset.parts, self._dataset.config
        )
        return [self._shards[index].next_row() for index in indices]

    def _take_counts(self) -> Counts:
        total = Counts.zero(len(self._dataset.corpus.sources))
        for shard in self._shards.values():
            total.add(shard.counts)
            shard.counts = Counts.zero(len(self._dataset.corpus.sources))
        return total

    def __next__(self) -> Made:
        snapshot = None
        if self._step % SNAPSHOT_STEPS == 0:
            snapshot = self._snapshot()
        rows = self._rows()
        config = self._dataset.config
        arrays = rows_to_arrays(
            [row or [] for row in rows],
            config.sequence_length,
            self._dataset.tokenizer.pad_id,
            label_dtype(self._dataset.corpus, config),
        )
        ended = all(shard.ended for shard in self._shards.values())
        made = Made(self._step, arrays, snapshot, self._take_counts(), ended)
        self._step += 1
        return made

    def get_state(self) -> dict[str, int]:
        return {"step": self._step}

    def set_state(self, state: dict[str, int]) -> None:
        self._begin()
        self._replay(state["step"])
