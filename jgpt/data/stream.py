"""Hugging Face datasets as they stream: cleaned and split on the way, with bookmarks to come back
to.

Nothing is written to disk. A bookmark is the dataset's own position at some document, and how many
texts were given since; restoring one reads only those again. With deduplication switched on the
filters remember all earlier texts, so a bookmark then goes back to the start of the epoch.
"""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any

from jgpt.config import DataConfig
from jgpt.data.cleaning import Cleaner
from jgpt.data.document import Document
from jgpt.data.records import BadRecords, DataError, optional_package, record_text
from jgpt.data.sources import SourceSpec
from jgpt.data.split import is_validation

MARK_EVERY = 64
"""Texts between positions of the dataset that are remembered."""

VALIDATION_SCAN = 10_000
"""Validation texts are looked for among so many texts from the start of the stream."""


def open_hugging_face(path: str, config: DataConfig) -> Iterable[dict[str, Any]]:
    """A streaming dataset: iterable, with `state_dict` and `load_state_dict`.

    Raises:
        DataError: the package is missing, or the dataset cannot be opened.
    """
    datasets = optional_package("datasets")
    try:
        return datasets.load_dataset(
            path, name=config.subset or None, split=config.split, streaming=True
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise DataError(
            f"cannot open huggingface:{path} (data.subset={config.subset!r}, "
            f"data.split={config.split!r}): {reason}"
        ) from error


class StreamTexts:
    """A streamed source. Picklable: each process opens the dataset for itself.

    Attributes:
        name: for messages.
        fingerprint: of the settings; what the far side serves under this name is not checked.
    """

    def __init__(self, spec: SourceSpec, config: DataConfig):
        self.name, self.items = spec.name, spec.items
        self._path = spec.path
        self._config = config
        cleaning = config.cleaning
        self.remembers = cleaning.exact_dedup or cleaning.minhash_threshold > 0
        settings = [spec.name, config.subset, config.split, config.text_field]
        identity = json.dumps([*settings, dataclasses.asdict(cleaning)])
        self.fingerprint = hashlib.sha256(identity.encode()).hexdigest()[:16]

    def open(self) -> Iterable[dict[str, Any]]:
        return open_hugging_face(self._path, self._config)

    def training_texts(self) -> Iterator[str]:
        """One epoch of the training side, in the stream's order."""
        return (text for text in _Epoch(self) if not self.is_validation(text))

    def validation_texts(self) -> Iterator[str]:
        """Texts of the validation side among the first `VALIDATION_SCAN`."""
        texts = itertools.islice(_Epoch(self), VALIDATION_SCAN)
        return (text for text in texts if self.is_validation(text))

    def is_validation(self, text: str) -> bool:
        return is_validation(text, self._config.validation_fraction)

    def documents(self, dataset: Iterable[dict[str, Any]]) -> Iterator[Document | None]:
        """One item per record, None for an unreadable one."""
        bad = BadRecords(self._config.max_bad_records)
        for number, record in enumerate(dataset, 1):
            text = record_text(record, self._config.text_field, f"{self.name}:{number}")
            if text is None:
                bad.add(self.name, number, f"field {self._config.text_field!r} is no Unicode text")
            yield None if text is None else Document(text, id=str(number))

    def cleaner(self) -> Cleaner:
        return Cleaner(self._config.cleaning)


class _Epoch(Iterator[str]):
    """Cleaned texts of one pass, both sides; `mark` is (dataset position, texts given since)."""

    def __init__(self, source: StreamTexts, position: Any = None):
        self._source = source
        self._dataset = source.open()
        if position is not None:
            self._dataset.load_state_dict(position)
        self._cleaner = source.cleaner()
        self._documents = source.documents(self._dataset)
        self._waiting: list[str] = []
        self._position, self._since = position, 0

    @property
    def mark(self) -> tuple[Any, int]:
        return self._position, self._since

    def __next__(self) -> str:
        while not self._waiting:
            if self._since >= MARK_EVERY and not self._source.remembers:
                self._position, self._since = self._dataset.state_dict(), 0
            document = next(self._documents)
            if document is not None:
                self._waiting = [piece.text for piece in reversed(self._cleaner.clean(document))]
        self._since += 1
        return self._waiting.pop()


class StreamReader(Iterator[str]):
    """Training texts, epoch after epoch.

    Args:
        epochs: passes over the stream; 0 for no end.
        bookmark: what `bookmark()` gave, to go on from there.
    """

    def __init__(self, source: StreamTexts, epochs: int, bookmark: list | None = None):
        self._source, self._epochs = source, epochs
        self._number, position, since = bookmark or (0, None, 0)
        self._epoch = _Epoch(source, position)
        for _ in range(since):
            next(self._epoch)
        self._found = bookmark is not None

    def bookmark(self) -> list:
        """The place after the last text given; JSON values if the dataset's position is."""
        return [self._number, *self._epoch.mark]

    def __next__(self) -> str:
        while True:
            text = next(self._epoch, None)
            if text is not None:
                if not self._source.is_validation(text):
                    self._found = True
                    return text
                continue
            if not self._found:
                raise DataError(f"{self._source.name} holds no document to train on")
            if self._epochs and self._number + 1 >= self._epochs:
                raise StopIteration
            self._number += 1
            self._epoch = _Epoch(self._source)
