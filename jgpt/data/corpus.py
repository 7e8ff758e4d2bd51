"""All sources of a run, cleaned and split into a training and a validation side.

A document belongs to the validation side when the 64-bit hash of its cleaned text, as a fraction of
2**64, lies below `data.validation_fraction`: identical texts are never on both sides, whatever
their order, source or process. Of a record it is the question, without replies and labels, that
is hashed. Sources with an index are cleaned once into a `Store`; the microworld is generated as it
is read; Hugging Face datasets are cleaned as they stream.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from jgpt.config import DataConfig
from jgpt.data import microworld
from jgpt.data.cleaning import CleaningReport, clean
from jgpt.data.document import Document
from jgpt.data.encoding import ITEMS
from jgpt.data.microworld import cache as microworld_cache
from jgpt.data.records import BadRecords, DataError
from jgpt.data.sources import SourceSpec, file_identities, parse_sources, read_documents
from jgpt.data.split import is_validation, validation_bound
from jgpt.data.store import Store, cache_folder, store_key, write_store
from jgpt.data.stream import StreamTexts
from jgpt.data.tasks import MicroworldConversations, MicroworldLabels

_log = logging.getLogger(__name__)


class Source(Protocol):
    """One source, cleaned and split. What it gives are strings: texts, or records as JSON.

    `items` says which (a key of `encoding.ITEMS`). Sources with an index also have `len()` and
    `[index]`, which gives the text, or None for a document that is kept for validation.
    """

    name: str
    fingerprint: str
    items: str

    def training_texts(self) -> Iterator[str]:
        """Texts of the training side once, in the source's own order."""

    def validation_texts(self) -> Iterator[str]:
        """Texts of the validation side."""


class StoredTexts:
    """The training side of a store, in file order."""

    def __init__(self, name: str, store: Store, fraction: float, items: str = "text"):
        self.name, self.items = name, items
        # Of records the hashes do not tell replies and labels.
        self.fingerprint = store.fingerprint if items == "text" else store.content_hash()
        self._store = store
        kept = store.hashes < np.uint64(min(validation_bound(fraction), 2**64 - 1))
        self._training = np.flatnonzero(~kept)
        validation = np.flatnonzero(kept)
        # By hash: a sample of the whole corpus, which does not change when more is asked for.
        self._validation = validation[np.argsort(store.hashes[validation], kind="stable")]

    def __len__(self) -> int:
        return len(self._training)

    def __getitem__(self, index: int) -> str:
        return self._store[self._training[index]]

    def training_texts(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    def validation_texts(self) -> Iterator[str]:
        return (self._store[index] for index in self._validation)


MICROWORLD_SEED = 0
"""Of the world, not of shuffling: data.seed never changes the corpus."""


def open_microworld(config: DataConfig) -> Sequence[Document]:
    """The embedded corpus: from its cache where there is a good one, else generated when asked for.

    The cache is seven times faster to read, but takes longer to build than a short run needs;
    `microworld.cache.ensure` builds it.
    """
    path = microworld_cache.cache_path(
        cache_folder(config.cache) / "microworld", config.microworld_documents, MICROWORLD_SEED
    )
    if os.path.exists(path):
        try:
            return microworld_cache.open(path)
        except microworld_cache.DamagedCacheError as error:
            _log.warning("%s; generating the documents instead", error)
    return MicroworldDocuments(config.microworld_documents)


class MicroworldDocuments(Sequence[Document]):
    """The first `size` documents of the embedded world, each generated when it is asked for."""

    def __init__(self, size: int):
        self._size = size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Document:
        if not 0 <= index < self._size:
            raise IndexError(f"document {index} of {self._size}")
        return microworld.document(int(index), MICROWORLD_SEED)


class GeneratedTexts:
    """The microworld, generated (or read from its cache) when indexed; written clean.

    Tasks made of it have None for documents that are of no use to them.
    """

    def __init__(self, documents: Sequence[Any], name: str, fraction: float, items: str = "text"):
        self.name, self.items = name, items
        self._asked = ITEMS[items].asked
        first = (documents[i] for i in range(min(200, len(documents))))
        sample = "\n".join(document.text for document in first if document is not None)
        identity = f"{name} {len(documents)}\n{sample}"
        self.fingerprint = hashlib.sha256(identity.encode()).hexdigest()[:16]
        self._documents = documents
        self._fraction = fraction

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, index: int) -> str | None:
        document = self._documents[index]
        if document is None or is_validation(self._asked(document.text), self._fraction):
            return None
        return document.text

    def training_texts(self) -> Iterator[str]:
        texts = (self[index] for index in range(len(self)))
        return (text for text in texts if text is not None)

    def validation_texts(self) -> Iterator[str]:
        for index in range(len(self._documents)):
            document = self._documents[index]
            if document is not None and is_validation(self._asked(document.text), self._fraction):
                yield document.text


@dataclass
class CorpusReport:
    """What was read.

    Attributes:
        documents: cleaned documents of both sides (of a stream: None).
        characters: their code points; None for what is generated or streamed.
        bad_records: unreadable records that were skipped, and `bad_examples` of them.
        cleaning: what each filter removed, all sources together.
    """

    documents: int | None = 0
    characters: int | None = 0
    bad_records: int = 0
    bad_examples: list[str] = dataclasses.field(default_factory=list)
    cleaning: CleaningReport = dataclasses.field(default_factory=CleaningReport)

    def add(self, documents: int | None, characters: int | None) -> None:
        """Counts a source; unknown parts make the sum unknown."""
        self.documents = _sum(self.documents, documents)
        self.characters = _sum(self.characters, characters)


def _sum(left: int | None, right: int | None) -> int | None:
    return None if left is None or right is None else left + right


@dataclass
class Corpus:
    """The sources of a run, ready to be read. Picklable, for worker processes.

    Attributes:
        sources: in the order of `data.sources`.
        weights: their shares of the training tokens; sum to 1.
        validation_documents: at most so many are scored.
        report: counts.
        fingerprint: tells corpora apart: texts, split, weights.
    """

    sources: list[Source]
    weights: list[float]
    validation_documents: int
    report: CorpusReport
    fingerprint: str

    def training_texts(self) -> Iterator[str]:
        """Cleaned texts of the training side once, each source in its order; records as text.

        Sources take turns by weight (counted in characters) until all are exhausted, so that the
        start of the iteration is a fair sample of the mixture.
        """
        readers = [source.training_texts() for source in self.sources]
        spent = [0.0] * len(readers)
        left = set(range(len(readers)))
        while left:
            turn = min(left, key=lambda s: (spent[s] / self.weights[s], s))
            text = next(readers[turn], None)
            if text is None:
                left.remove(turn)
            else:
                text = ITEMS[self.sources[turn].items].readable(text)
                spent[turn] += len(text)
                yield text

    @functools.cached_property
    def validation_items(self) -> list[tuple[int, str]]:
        """(source, text or record) of the validation side, by weight from each.

        At most `validation_documents` in all. Kept: they are looked for among all documents.
        """
        found = []
        for s, (source, weight) in enumerate(zip(self.sources, self.weights, strict=True)):
            most = max(1, round(weight * self.validation_documents))
            found += [(s, text) for text in itertools.islice(source.validation_texts(), most)]
        return found[: self.validation_documents]

    def validation_texts(self) -> list[str]:
        """Those items."""
        return [text for _, text in self.validation_items]

    @property
    def labelled(self) -> bool:
        """Whether rows have labels."""
        return any(source.items == "labels" for source in self.sources)


def open_corpus(config: DataConfig) -> Corpus:
    """Reads, cleans and splits all sources (or finds them in the cache).

    Raises:
        DataError: a source that cannot be used; one line with the file or setting and the remedy.
    """
    specs = parse_sources(config.sources)
    _check_packing(specs, config)
    report = CorpusReport()
    sources = [_open_source(spec, config, report) for spec in specs]
    total = sum(spec.weight for spec in specs)
    weights = [spec.weight / total for spec in specs]
    identity = [[source.fingerprint for source in sources], weights, config.validation_fraction]
    fingerprint = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    _check_sides(sources, config)
    return Corpus(sources, weights, config.validation_documents, report, fingerprint)


def _open_source(spec: SourceSpec, config: DataConfig, report: CorpusReport) -> Source:
    if spec.kind == "microworld":
        report.add(config.microworld_documents, None)
        documents = open_microworld(config)
        return GeneratedTexts(documents, spec.name, config.validation_fraction)
    if spec.kind in ("microworld_chat", "microworld_labels"):
        size = config.microworld_documents
        report.add(size, None)
        tasks: Sequence[Document | None]
        if spec.kind == "microworld_chat":
            tasks = MicroworldConversations(size, spec.path)
        else:
            tasks = MicroworldLabels(spec.path, size, config.labels)
        return GeneratedTexts(tasks, spec.name, config.validation_fraction, spec.items)
    if spec.kind == "huggingface":
        report.add(None, None)
        return StreamTexts(spec, config)
    return _open_files(spec, config, report)


def _open_files(spec: SourceSpec, config: DataConfig, report: CorpusReport) -> StoredTexts:
    identity = {
        "files": file_identities(spec),
        "kind": spec.kind,
        "text_field": config.text_field,
        "text_documents": config.text_documents if spec.kind == "text" else "",
        "cleaning": dataclasses.asdict(config.cleaning),
    }
    if spec.items == "labels":
        identity["labels"] = dataclasses.asdict(config.labels)
    folder = cache_folder(config.cache) / "corpora" / store_key(identity)
    if not Store.exists(folder):
        _prepare(folder, spec, config)
    store = Store(folder)
    bad = BadRecords(config.max_bad_records, **store.report["bad"])
    bad.check()
    cleaning = CleaningReport.from_dict(store.report["cleaning"])
    if not len(store):
        raise DataError(_why_empty(spec, bad, cleaning))
    report.add(len(store), cleaning.characters_out)
    report.bad_records += bad.count
    report.bad_examples += bad.examples
    report.cleaning.add(cleaning)
    return StoredTexts(spec.name, store, config.validation_fraction, spec.items)


def _prepare(folder: Any, spec: SourceSpec, config: DataConfig) -> None:
    bad = BadRecords(config.max_bad_records)
    cleaning = CleaningReport()
    documents = read_documents(spec, config, bad)
    if spec.items == "text":
        documents = clean(documents, config.cleaning, cleaning)
    else:  # cleaned field by field
        documents = _counted(documents, ITEMS[spec.items].readable, cleaning)
    write_store(
        folder,
        documents,
        lambda: {
            "bad": {"count": bad.count, "examples": bad.examples},
            "cleaning": cleaning.to_dict(),
        },
        ITEMS[spec.items].asked,
    )


def _counted(
    documents: Iterator[Document], readable: Callable[[str], str], report: CleaningReport
) -> Iterator[Document]:
    for document in documents:
        size = len(readable(document.text))
        report.documents_in += 1
        report.documents_out += 1
        report.characters_in += size
        report.characters_out += size
        yield document


def _why_empty(spec: SourceSpec, bad: BadRecords, cleaning: CleaningReport) -> str:
    if cleaning.documents_in:
        removed = {name: count.documents for name, count in cleaning.filters.items()}
        worst = max(removed, key=removed.__getitem__)
        return (
            f"{spec.name}: cleaning removed all {cleaning.documents_in} documents, most by "
            f"data.cleaning.{worst}; relax it"
        )
    if bad.count:
        return (
            f"{spec.name}: all {bad.count} records are unreadable, the first at {bad.examples[0]}"
        )
    return f"{spec.name} holds no document; is the file empty?"


def _check_packing(specs: list[SourceSpec], config: DataConfig) -> None:
    items = {spec.items for spec in specs}
    if "chat" in items and config.packing == "split":
        raise DataError(
            "data.packing='split' would cut conversations between question and reply; set it to "
            "'best_fit' or 'none'"
        )
    if "labels" in items and (items != {"labels"} or config.packing != "none"):
        raise DataError(
            "labelled records stand one in a row and beside nothing else: set data.packing to "
            f"'none' and leave labels alone in data.sources ({config.sources!r})"
        )


def _check_sides(sources: list[Source], config: DataConfig) -> None:
    fraction = config.validation_fraction
    for source in sources:
        if next(source.training_texts(), None) is None:
            raise DataError(
                f"{source.name}: data.validation_fraction={fraction} leaves no document to "
                "train on; lower it or add documents"
            )
    if fraction > 0 and all(next(s.validation_texts(), None) is None for s in sources):
        raise DataError(
            f"data.validation_fraction={fraction} leaves no document to validate on; "
            " raise it, or set it to 0 to train without validation"
        )
