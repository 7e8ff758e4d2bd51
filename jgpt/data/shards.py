"""Virtual shards: the fixed streams of packed rows that processes and workers share out.

Documents of a source form one endless sequence, epoch after epoch, each epoch in an order of its
own. Document number g of that sequence belongs to virtual shard g % V, so the shards walk through
every epoch together, whatever the number of processes. A shard tokenises its documents, packs
them, and can save its place: documents taken from each source, tokens spent, and the rows that
are still open.
"""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from jgpt.config import DataConfig
from jgpt.data.encoding import Encoded, Encoder
from jgpt.data.order import EndOfData, Order
from jgpt.data.packing import Row, decode_rows, encode_rows, make_packer
from jgpt.data.records import DataError
from jgpt.data.stats import Counts

REFILL_CHARACTERS = 2048
REFILL_DOCUMENTS = 64
"""A shard tokenises about so much at once: batches are fast, but the first row must not wait."""


class ShardState(NamedTuple):
    """A virtual shard's place.

    Attributes:
        taken: per source, positions of its sequence that are done with (in steps of V).
        spent: per source, tokens taken plus the random start of its turn-taking.
        ready, open: rows of the packer.
    """

    taken: tuple[int, ...]
    spent: tuple[float, ...]
    ready: tuple[Row, ...]
    open: tuple[Row, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "taken": list(self.taken),
            "spent": list(self.spent),
            "ready": encode_rows(self.ready),
            "open": encode_rows(self.open),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "ShardState":
        return cls(
            tuple(values["taken"]),
            tuple(values["spent"]),
            tuple(decode_rows(values["ready"])),
            tuple(decode_rows(values["open"])),
        )


class _Waiting(NamedTuple):
    encoded: Encoded
    taken: int


@dataclass
class _Reader:
    """A shard's place in one source: what is tokenised and waits, and how far reading has got."""

    order: Order
    read: int = 0
    ended: bool = False
    waiting: deque[_Waiting] = field(default_factory=deque)


class VirtualShard:
    """An endless (or, with `epochs`, finite) stream of packed rows.

    Sources take turns by stride scheduling: the one with the fewest tokens for its weight is
    next, so the shares of tokens follow the weights. Each shard starts its turns at a random
    phase, or the first batch would hold a document of the rarest source in every row.

    Attributes:
        counts: what was taken; the owner may take them away and put zeros.
        ended: a row was asked for after the last.
    """

    def __init__(
        self,
        index: int,
        orders: Sequence[Order],
        weights: Sequence[float],
        encoders: Sequence[Encoder],
        config: DataConfig,
    ):
        self._index = index
        self._config = config
        self._encoders = encoders
        self._weights = weights
        self._readers = [_Reader(order) for order in orders]
        phase = np.random.default_rng((config.seed % 2**32, index)).random(len(self._readers))
        self._spent = list(phase * config.sequence_length) if len(self._readers) > 1 else [0.0]
        self._taken = [0] * len(self._readers)
        self._packer = make_packer(config.packing, config.sequence_length, config.pack_open_rows)
        self.counts = Counts.zero(len(self._readers))
        self.ended = False

    def next_position(self, source: int) -> int:
        """Of the source's sequence: the first text that is not packed yet."""
        return self._taken[source] * self._config.virtual_shards + self._index

    def next_row(self) -> Row | None:
        """The next packed row; None when the last epoch is over."""
        while not self._packer.ready:
            source = self._next_source()
            if source is not None:
                self._take(source)
                continue
            self._packer.flush()
            if not self._packer.ready:
                self.ended = True
                return None
        return self._packer.ready.popleft()

    def state(self) -> ShardState:
        ready, open_rows = self._packer.snapshot()
        return ShardState(tuple(self._taken), tuple(self._spent), ready, open_rows)

    def restore(self, state: ShardState) -> None:
        """Takes a new shard to the place of `state`."""
        self._taken, self._spent = list(state.taken), list(state.spent)
        self._packer.restore(state.ready, state.open)
        for reader, taken in zip(self._readers, self._taken, strict=True):
            reader.read = taken

    def _next_source(self) -> int | None:
        for s in sorted(
            range(len(self._readers)), key=lambda s: (self._spent[s] / self._weights[s], s)
        ):
            if self._readers[s].waiting or self._refill(s):
                return s
        return None

    def _take(self, source: int) -> None:
        document, self._taken[source] = self._readers[source].waiting.popleft()
        self._spent[source] += document.segment.size
        self._packer.add(document.segment)
        counts = self.counts
        counts.documents[source] += 1
        counts.characters[source] += document.characters
        counts.tokens[source] += document.tokens
        counts.unknown[source] += document.unknown
        counts.exchanges_dropped[source] += document.cuts.exchanges
        counts.prompts_cut[source] += document.cuts.prompts
        counts.replies_cut[source] += document.cuts.replies

    def _refill(self, source: int) -> bool:
        """Reads and tokenises the next documents of a source; False when it has ended."""
        reader = self._readers[source]
        texts, places = self._read(reader)
        started = time.perf_counter()
        batch = self._encoders[source](texts) if texts else []
        self.counts.tokenize_seconds += time.perf_counter() - started
        reader.waiting.extend(map(_Waiting, batch, places))
        return bool(texts)

    def _read(self, reader: _Reader) -> tuple[list[str], list[int]]:
        texts: list[str] = []
        places: list[int] = []
        size = skipped = 0
        while not reader.ended and size < REFILL_CHARACTERS and len(texts) < REFILL_DOCUMENTS:
            position = reader.read * self._config.virtual_shards + self._index
            try:
                text = reader.order[position]
            except EndOfData:
                reader.ended = True
                break
            reader.read += 1
            if text is not None:
                texts.append(text)
                places.append(reader.read)
                size += len(text)
                continue
            skipped += 1
            if skipped > 100 * (reader.order.size or 1):
                raise DataError(
                    "every document fell on the validation side; lower data.validation_fraction"
                )
        return texts, places
