"""Batches for training and validation: Grain around the virtual shards.

`training_batches` gives the same global batches whatever the number of processes and workers, and
its state, merged over processes, continues them exactly under any other number. Rows are made in
a Grain worker process (`data.workers` > 0) or thread; every batch travels with its step number
and, now and then, with a snapshot of the shards it came from, so that what was prefetched is
never part of the state.
"""

import dataclasses
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from jgpt.config import ConfigError, DataConfig
from jgpt.data.corpus import Corpus, CorpusReport, open_corpus
from jgpt.data.order import make_order
from jgpt.data.packing import BestFitPacker, NonePacker
from jgpt.data.records import DataError
from jgpt.data.rows import (
    Made,
    RowsDataset,
    Snapshot,
    Start,
    label_dtype,
    make_encoders,
    merge_bookmarks,
    merge_snapshots,
    shards_of,
)
from jgpt.data.shards import ShardState
from jgpt.data.stats import Counts, PipelineStats
from jgpt.data.transforms import Arrays, concatenate, rows_to_arrays

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
        self._running: list[grain.DatasetIterator] = []
        weakref.finalize(self, _stop, self._running)
        self._begin(Start())

    def _begin(self, start: Start) -> None:
        self.close()
        self._start = start
        self._step = start.step
        self.exhausted = False
        names = [source.name for source in self._corpus.sources]
        sizes = [make_order(x, 0, self._config).size for x in self._corpus.sources]
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
        if not self._running:
            self._running.append(self._grain_iterator())
        parts: list[Made] = [next(self._running[0]) for _ in range(self._workers)]
        if parts[0].snapshot is not None:
            snapshot = merge_snapshots([part.snapshot for part in parts])
            self._start = Start(parts[0].step, parts[0].step, snapshot)
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
            "shards": {str(k): v.to_json() for k, v in self._start.snapshot.shards.items()},
            "bookmarks": self._start.snapshot.bookmarks,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues after the batch that followed `state`; it may come from other processes.

        Raises:
            DataError: the state belongs to another corpus, tokenizer or batch shape, or lacks a
                shard that this process reads.
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
        snapshot = Snapshot(shards, state["bookmarks"])
        self._begin(Start(state["base_step"], state["step"], snapshot))

    def close(self) -> None:
        """Stops the worker processes or thread; iteration can go on and starts them again."""
        if self._running:
            _stop(self._running)
            self._start = dataclasses.replace(self._start, step=self._step)


def _stop(running: list[grain.DatasetIterator]) -> None:
    """Closes Grain's iterator and lets go of it.

    Also run when the interpreter ends: a thread of Grain's still at work then aborts the process.
    """
    while running:
        running.pop().close()


def training_batches(
    corpus: Corpus,
    tokenizer: Any,
    config: DataConfig,
    process_index: int = 0,
    process_count: int = 1,
) -> BatchIterator:
    """Rows [p * B / P, (p + 1) * B / P) of every global batch, for process p of P.

    Args:
        tokenizer: has `encode_batch`, `bos_id`, `eos_id`, `pad_id`, `unk_id`, `fingerprint`, and
            is picklable if `config.workers` > 0.

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


def identity(corpus: Corpus, tokenizer: Any, config: DataConfig) -> dict[str, Any]:
    """What must be the same for a saved state to mean the same batches."""
    items = {source.items for source in corpus.sources}
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
        # Only where they matter, so that states from before there were records stay good.
        **({"chat": dataclasses.asdict(config.chat)} if "chat" in items else {}),
        **({"virtual_tokens": config.virtual_tokens} if config.virtual_tokens else {}),
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
    bookmarks = merge_bookmarks([state["bookmarks"] for state in states])
    return first | {"shards": shards, "bookmarks": bookmarks}


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
    whatever the training packing, every target of weight 1; the last batch is filled up with rows
    of weight 0. Empty without validation.

    Raises:
        ConfigError: `batch_size` is no multiple of `process_count`.
    """
    if batch_size % process_count:
        raise ConfigError(
            f"the validation batch of {batch_size} rows cannot be shared by "
            f"{process_count} processes"
        )
    items = corpus.validation_items
    length = config.sequence_length
    config = dataclasses.replace(config, class_weight=1.0)
    packer = NonePacker(length) if config.packing == "none" else BestFitPacker(length, len(items))
    for s, encode in enumerate(make_encoders(corpus, tokenizer, config)):
        for encoded in encode([text for source, text in items if source == s]):
            packer.add(encoded.segment)
    packer.flush()
    rows = list(packer.ready)
    rows += [[]] * (-len(rows) % batch_size)
    size = batch_size // process_count
    starts = range(process_index * size, len(rows), batch_size)
    return [
        rows_to_arrays(
            rows[start : start + size], length, tokenizer.pad_id, label_dtype(corpus, config)
        )
        for start in starts
    ]
