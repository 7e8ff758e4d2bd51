"""The filters of `CleaningConfig` over a stream of documents, with a count of what each removed."""

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from jgpt.config import CleaningConfig
from jgpt.data import text as filters
from jgpt.data.dedup import ExactDuplicates, NearDuplicates
from jgpt.data.document import Document
from jgpt.tokenizers.normalization import nfkc


@dataclass
class FilterCount:
    """What one filter did.

    Attributes:
        documents: documents it removed.
        changed: documents it changed and kept.
        characters: code points it removed, those of removed documents included (negative where
            normalisation made a text longer).
    """

    documents: int = 0
    changed: int = 0
    characters: int = 0


@dataclass
class CleaningReport:
    """Documents and characters before and after cleaning, and what each filter removed.

    Cutting long documents makes more of them: `documents_out` may exceed `documents_in`.
    """

    documents_in: int = 0
    characters_in: int = 0
    documents_out: int = 0
    characters_out: int = 0
    filters: dict[str, FilterCount] = field(default_factory=dict)

    def count(self, name: str) -> FilterCount:
        return self.filters.setdefault(name, FilterCount())

    def to_dict(self) -> dict[str, Any]:
        """JSON values; `from_dict` is the inverse."""
        values = {name: value for name, value in vars(self).items() if name != "filters"}
        return values | {"filters": {name: vars(count) for name, count in self.filters.items()}}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "CleaningReport":
        counts = {name: FilterCount(**count) for name, count in values["filters"].items()}
        return cls(**(values | {"filters": counts}))

    def add(self, other: "CleaningReport") -> None:
        """Adds the counts of another source."""
        for name in ("documents_in", "characters_in", "documents_out", "characters_out"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name, count in other.filters.items():
            mine = self.count(name)
            for entry, value in vars(count).items():
                setattr(mine, entry, getattr(mine, entry) + value)

    def table(self) -> str:
        """The counts as lines of text."""
        head = f"{'filter':<24}{'documents removed':>18}{'changed':>10}{'characters removed':>20}"
        lines = [head]
        for name, count in self.filters.items():
            lines.append(
                f"{name:<24}{count.documents:>18,}{count.changed:>10,}{count.characters:>20,}"
            )
        lines.append(
            f"in:  {self.documents_in:,} documents, {self.characters_in:,} characters\n"
            f"out: {self.documents_out:,} documents, {self.characters_out:,} characters"
        )
        return "\n".join(lines)


def changes(config: CleaningConfig) -> list[tuple[str, Callable[[str], str]]]:
    """(field name, function) of the filters that rewrite a text, in order.

    The last, not a setting, takes away what white space they leave around the text.
    """
    steps: list[tuple[str, bool, Callable[[str], str]]] = [
        ("normalize", config.normalize == "nfkc", nfkc),
        ("strip_control", config.strip_control, filters.strip_control),
        ("strip_aozora", config.strip_aozora, filters.strip_aozora),
        ("drop_boilerplate", config.drop_boilerplate, filters.drop_boilerplate),
        ("drop_repeated_lines", config.drop_repeated_lines, filters.drop_repeated_lines),
        ("surrounding space", True, filters.strip_blank),
    ]
    return [(name, change) for name, wanted, change in steps if wanted]


def record_cleaning(config: CleaningConfig) -> Callable[[str], str]:
    """What is done to the texts within records: `normalize` and `strip_control`.

    The other filters know documents; in a conversation 《》 or a repeated line is meant.
    """
    steps = [f for name, f in changes(config) if name in ("normalize", "strip_control")]
    return lambda text: functools.reduce(lambda value, step: step(value), steps, text)


def rejections(config: CleaningConfig) -> list[tuple[str, Callable[[str], bool]]]:
    """(field name, predicate) of the filters that remove a whole document, in order."""
    steps: list[tuple[str, Callable[[str], bool]]] = [
        ("min_characters", lambda text: len(text) < max(1, config.min_characters))
    ]
    if config.min_japanese_ratio > 0:
        least = config.min_japanese_ratio
        steps.append(("min_japanese_ratio", lambda text: filters.japanese_ratio(text) < least))
    if config.min_kana_ratio > 0:
        least_kana = config.min_kana_ratio
        steps.append(("min_kana_ratio", lambda text: filters.kana_ratio(text) < least_kana))
    if config.exact_dedup:
        steps.append(("exact_dedup", ExactDuplicates().is_duplicate))
    if config.minhash_threshold > 0:
        steps.append(("minhash_threshold", NearDuplicates(config.minhash_threshold).is_duplicate))
    return steps


class Cleaner:
    """The filters with their memory of earlier documents (deduplication) and their counts.

    Order: the rewriting filters, the length and language filters, deduplication, then cutting at
    `max_characters`. Empty documents are always removed.

    Attributes:
        report: counts so far.
    """

    def __init__(self, config: CleaningConfig, report: CleaningReport | None = None):
        self.report = CleaningReport() if report is None else report
        self._max_characters = config.max_characters
        self._changes, self._rejections = changes(config), rejections(config)
        for name, _ in [*self._changes, *self._rejections]:
            self.report.count(name)

    def clean(self, document: Document) -> list[Document]:
        """The document cleaned: none, one, or its pieces with the ids `ID#0`, `ID#1`, ..."""
        self.report.documents_in += 1
        self.report.characters_in += len(document.text)
        text = self._rewritten(document.text)
        if self._rejected(text):
            return []
        self.report.characters_out += len(text)
        pieces = _pieces(document._replace(text=text), self._max_characters)
        self.report.documents_out += len(pieces)
        return pieces

    def _rewritten(self, text: str) -> str:
        for name, change in self._changes:
            changed = change(text)
            if changed != text:
                count = self.report.filters[name]
                count.changed += 1
                count.characters += len(text) - len(changed)
                text = changed
        return text

    def _rejected(self, text: str) -> bool:
        for name, rejects in self._rejections:
            if rejects(text):
                count = self.report.filters[name]
                count.documents += 1
                count.characters += len(text)
                return True
        return False


def clean(
    documents: Iterable[Document], config: CleaningConfig, report: CleaningReport | None = None
) -> Iterator[Document]:
    """Cleaned documents in their order, long ones in pieces; counts go to `report`."""
    cleaner = Cleaner(config, report)
    for document in documents:
        yield from cleaner.clean(document)


def _pieces(document: Document, max_characters: int) -> list[Document]:
    if not max_characters or len(document.text) <= max_characters:
        return [document]
    return [
        document._replace(text=piece, id=f"{document.id}#{number}")
        for number, piece in enumerate(filters.cut_at_sentences(document.text, max_characters))
    ]
