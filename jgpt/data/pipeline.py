"""Batches for training and validation: Grain around the virtual shards.

`training_batches` gives the same global batches whatever the number of processes and workers, and
its state, merged over processes, continues them exactly under any other number. Rows are made in
a Grain worker process (`data.workers` > 0) or thread; every batch travels with its step number
and, now and then, with a snapshot of the shards it came from, so that what was prefetched is
never part of the state.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from jgpt.config import ConfigError, DataConfig
from jgpt.data.corpus import Corpus, CorpusReport, open_corpus
from jgpt.data.packing import BestFitPacker, NonePacker
from jgpt.data.records import DataError
from jgpt.data.shards import Counts, ShardState, VirtualShard, rows_of_part
from jgpt.data.transforms import Arrays, concatenate, document_segment, rows_to_arrays

__all__ = [
    "BatchIterator",
    "Corpus",
    "CorpusReport",
    "DataError",
    "PipelineStats",
    "merge_states",
    "open_corpus",
    "training_batches",
    "validation_batches",
]

SNAPSHOT_STEPS = 16
"""Steps between snapshots of the shards. Restoring replays the packing of fewer steps than this."""

Snapshot = dict[int, ShardState]


@dataclasses.dataclass
class _Start:
    """Where rows begin: shards as they were before `base_step`, then packed again up to `step`."""

    base_step: int = 0
    step: int = 0
    shards: Snapshot = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class _Made:
    """Part of a batch with what the iterator's state needs to know.

    Opaque to Grain, which would otherwise walk through the snapshot as through a tree of arrays.
    """

    step: int
    arrays: Arrays
    snapshot: Snapshot | None
    counts: Counts
    ended: bool


class RowsDataset(grain.IterDataset):
    """Part `part` of `parts` of every global batch, step after step; never ends by itself."""

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: Any,
        config: DataConfig,
        part: int,
        parts: int,
        start: _Start,
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
        config, start = dataset.config, dataset.start
        self._shards = {
            index: VirtualShard(index, dataset.corpus, dataset.tokenizer, config)
            for index in sorted(shards_of(dataset.part, dataset.parts, config))
        }
        for index, shard in self._shards.items():
            if start.shards:
                shard.restore(start.shards[index])
        self._step = start.base_step
        self._replay(start.step)

    def _replay(self, step: int) -> None:
        while self._step < step:
            self._rows()
            self._step += 1
        self._take_counts()

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

    def __next__(self) -> _Made:
        snapshot = None
        if self._step % SNAPSHOT_STEPS == 0:
            snapshot = {index: shard.state() for index, shard in self._shards.items()}
        rows = self._rows()
        config = self._dataset.config
        arrays = rows_to_arrays(
            [row or [] for row in rows], config.sequence_length, self._dataset.tokenizer.pad_id
        )
        ended = all(shard.ended for shard in self._shards.values())
        made = _Made(self._step, arrays, snapshot, self._take_counts(), ended)
        self._step += 1
        return made

    def get_state(self) -> dict[str, int]:
        return {"step": self._step}

    def set_state(self, state: dict[str, int]) -> None:
        self._begin()
        self._replay(state["step"])


@dataclasses.dataclass
class PipelineStats:
    """What this process's batches were made of, since the iterator was made or its state set.

    Attributes:
        sources: names, in the order of the lists.
        counts: documents, characters, tokens, unk tokens per source; seconds tokenising.
        targets: positions with a target.
        positions: all positions, padding included.
        epochs: how often the average source was read, over all processes.
    """

    sources: list[str]
    sizes: list[int]
    share: float
    counts: Counts
    targets: int = 0
    positions: int = 0

    @property
    def documents(self) -> int:
        return sum(self.counts.documents)

    @property
    def characters(self) -> int:
        return sum(self.counts.characters)

    @property
    def tokens(self) -> int:
        return sum(self.counts.tokens)

    @property
    def tokenize_seconds(self) -> float:
        return self.counts.tokenize_seconds

    @property
    def padding_share(self) -> float:
        """Positions without a target over all positions."""
        return 1 - self.targets / self.positions if self.positions else 0.0

    @property
    def unknown_share(self) -> float:
        """The unk token's share of the tokens."""
        return sum(self.counts.unknown) / max(1, self.tokens)

    @property
    def epochs(self) -> list[float]:
        """Per source: times it was read by all processes, as far as this one can tell."""
        pairs = zip(self.counts.documents, self.sizes, strict=True)
        return [documents / self.share / max(1, size) for documents, size in pairs]


class BatchIterator(Iterator[Arrays]):
    """This process's rows of every global batch.

    Attributes:
        stats: what the batches so far were made of.
        exhausted: `data.epochs` are over for this process. Alone it then stops; several processes
            cannot know of one another, so each goes on with empty batches (loss weight 0) until
            whoever drives them stops.
    """

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: Any,
        config: DataConfig,
        process_index: int = 0,
        process_count: int = 1,
    ):
        self._corpus, self._tokenizer, self._config = corpus, tokenizer, config
        self._process = (process_index, process_count)
        self._workers = max(1, config.workers)
        check_parts(config, process_count)
        self._iterator: grain.DatasetIterator | None = None
        self._begin(_Start())

    def _begin(self, start: _Start) -> None:
        self.close()
        self._start = start
        self._step = start.step
        self.exhausted = False
        names = [source.name for source in self._corpus.sources]
        sizes = [len(source) for source in self._corpus.sources]
        share = 1 / self._process[1]
        self.stats = PipelineStats(names, sizes, share, Counts.zero(len(names)))

    def _grain_iterator(self) -> grain.DatasetIterator:
        index, count = self._process
        rows: grain.IterDataset = RowsDataset(
            self._corpus, self._tokenizer, self._config, index, count, self._start
        )
        if self._config.workers:
            if not flags.FLAGS.is_parsed():  # a notebook or test; Grain reads absl flags
                flags.FLAGS.mark_as_parsed()
            options = grain.MultiprocessingOptions(
                num_workers=self._config.workers, per_worker_buffer_size=self._config.prefetch
            )
            return iter(rows.mp_prefetch(options))
        threaded = grain.experimental.ThreadPrefetchIterDataset(
            rows, prefetch_buffer_size=self._config.prefetch
        )
        return iter(threaded)

    def __next__(self) -> Arrays:
        """Arrays [batch_size / process_count, sequence_length]; see `transforms.rows_to_arrays`."""
        alone = self._process[1] == 1
        while not (alone and self.exhausted):
            batch = self._next_batch()
            if not alone or batch["loss_weights"].any():
                return batch
        self.close()
        raise StopIteration

    def _next_batch(self) -> Arrays:
        if self._iterator is None:
            self._iterator = self._grain_iterator()
        parts: list[_Made] = [next(self._iterator) for _ in range(self._workers)]
        if parts[0].snapshot is not None:
            shards = {k: v for part in parts for k, v in part.snapshot.items()}
            self._start = _Start(parts[0].step, parts[0].step, shards)
        self.exhausted = all(part.ended for part in parts)
        self._step = parts[0].step + 1
        batch = concatenate([part.arrays for part in parts])
        for part in parts:
            self.stats.counts.add(part.counts)
        self.stats.targets += int(np.count_nonzero(batch["segment_ids"]))
        self.stats.positions += batch["segment_ids"].size
        return batch

    def get_state(self) -> dict[str, Any]:
        """The place after the last batch given out, as JSON values; see `merge_states`."""
        return {
            "identity": identity(self._corpus, self._tokenizer, self._config),
            "step": self._step,
            "base_step": self._start.base_step,
            "shards": {str(k): state.to_json() for k, state in self._start.shards.items()},
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues after the batch that followed `state`; it may come from other processes.

        Raises:
            DataError: the state belongs to another corpus, tokenizer or batch shape, or lacks
            shards
                that this process reads.
        """
        here = identity(self._corpus, self._tokenizer, self._config)
        for name, value in here.items():
            if state["identity"].get(name) != value:
                raise DataError(
                    f"the saved data state was made with {name}={state['identity'].get(name)!r}, "
                    f"now it is {value!r}; restore the setting or start a new workdir"
                )
        shards = {int(k): ShardState.from_json(v) for k, v in state["shards"].items()}
        lacking = shards_of(*self._process, self._config) - shards.keys()
        if state["base_step"] and lacking:
            raise DataError(
                f"the saved data state lacks virtual shard {min(lacking)}; merge the states of all "
                "processes with merge_states"
            )
        self._begin(_Start(state["base_step"], state["step"], shards))

    def close(self) -> None:
        """Stops the worker processes or thread; iteration can go on and starts them again."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None
            self._start = dataclasses.replace(self._start, step=self._step)


def training_batches(
    corpus: Corpus,
    tokenizer: Any,
    config: DataConfig,
    process_index: int = 0,
    process_count: int = 1,
) -> BatchIterator:
    """Rows [p * B / P, (p + 1) * B / P) of every global batch, for process p of P.

    Args:
        tokenizer: `encode_batch`, `bos_id`, `eos_id`, `pad_id`, `unk_id`, `fingerprint`;
        picklable if
            `config.workers` > 0.

    Raises:
        ConfigError: the batch or the virtual shards cannot be shared out evenly.
    """
    return BatchIterator(corpus, tokenizer, config, process_index, process_count)


def check_parts(config: DataConfig, process_count: int) -> None:
    """Raises ConfigError unless processes times workers divide the batch and the virtual shards."""
    parts = process_count * max(1, config.workers)
    for name in ("batch_size", "virtual_shards"):
        size = getattr(config, name)
        if size % parts:
            raise ConfigError(
                f"data.{name} ({size}) cannot be shared out evenly among {process_count} processes "
                f"with {max(1, config.workers)} workers (data.workers) each; choose a multiple"
            )


def shards_of(part: int, parts: int, config: DataConfig) -> set[int]:
    """The virtual shards that a part reads."""
    cycle = max(1, config.virtual_shards // config.batch_size)
    return {shard for step in range(cycle) for shard in rows_of_part(step, part, parts, config)}


def identity(corpus: Corpus, tokenizer: Any, config: DataConfig) -> dict[str, Any]:
    """What must be the same for a saved state to mean the same batches."""
    return {
        "corpus": corpus.fingerprint,
        "tokenizer": tokenizer.fingerprint,
        "batch_size": config.batch_size,
        "sequence_length": config.sequence_length,
        "packing": config.packing,
        "pack_open_rows": config.pack_open_rows,
        "virtual_shards": config.virtual_shards,
        "shuffle": config.shuffle,
        "seed": config.seed,
        "epochs": config.epochs,
    }


def merge_states(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The state of the whole run from `get_state()` of every process, all taken at one step.

    Any number of processes can continue from it.

    Raises:
        DataError: the states are of different steps or runs.
    """
    first = states[0]
    for state in states[1:]:
        if any(state[name] != first[name] for name in ("identity", "step", "base_step")):
            raise DataError("the processes' data states are of different steps or runs")
    shards = {key: value for state in states for key, value in state["shards"].items()}
    return first | {"shards": shards}


def validation_batches(
    corpus: Corpus,
    tokenizer: Any,
    config: DataConfig,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> list[Arrays]:
    """Batches [batch_size / process_count, S] with every validation document exactly once.

    Documents are fitted in whole (best fit over all rows; one a row with packing `none`),
    whatever the training packing; the last batch is filled up with rows of weight 0. Empty
    without validation.

    Raises:
        ConfigError: `batch_size` is no multiple of `process_count`.
    """
    if batch_size % process_count:
        raise ConfigError(
            f"the validation batch of {batch_size} rows cannot be shared by "
            f"{process_count} processes"
        )
    texts = corpus.validation_texts()
    length = config.sequence_length
    packer = NonePacker(length) if config.packing == "none" else BestFitPacker(length, len(texts))
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        packer.add(document_segment(ids, len(text), tokenizer.bos_id, tokenizer.eos_id))
    packer.flush()
    rows = list(packer.ready)
    rows += [[]] * (-len(rows) % batch_size)
    size = batch_size // process_count
    starts = range(process_index * size, len(rows), batch_size)
    return [
        rows_to_arrays(rows[start : start + size], length, tokenizer.pad_id) for start in starts
    ]
