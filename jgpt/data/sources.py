"""Where documents come from: `data.sources` parsed, its files found, and their documents read."""

import functools
import glob
import hashlib
import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jgpt.config import DataConfig
from jgpt.data.cleaning import record_cleaning
from jgpt.data.conversations import read_conversations
from jgpt.data.document import Document
from jgpt.data.labels import read_labelled
from jgpt.data.records import (
    BadRecords,
    DataError,
    read_array_record,
    read_jsonl,
    read_parquet,
    read_text,
)

FILE_KINDS = ("text", "jsonl", "parquet", "array_record", "chat", "labels", "class_texts")
KINDS = ("microworld", "microworld_chat", "microworld_labels", *FILE_KINDS, "huggingface")
ITEM_KINDS = {
    "chat": "chat",
    "microworld_chat": "chat",
    "class_texts": "class_texts",
    "labels": "labels",
    "microworld_labels": "labels",
}
"""What a source's items are; plain text where it is not here."""

_ENDINGS = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".array_record": "array_record",
    ".arrayrecord": "array_record",
}
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


@dataclass(frozen=True)
class SourceSpec:
    """One source of a mixture.

    Attributes:
        kind: one of `KINDS`.
        path: file, glob or dataset name with variables expanded; empty for the microworld.
        weight: share of the training tokens, relative to the other sources.
    """

    kind: str
    path: str = ""
    weight: float = 1.0

    @property
    def name(self) -> str:
        return f"{self.kind}:{self.path}" if self.path else self.kind

    @property
    def items(self) -> str:
        """`text`, `chat`, `labels` or `class_texts`."""
        return ITEM_KINDS.get(self.kind, "text")


def parse_sources(text: str) -> list[SourceSpec]:
    """The sources of `data.sources`: comma-separated `KIND:PATH@WEIGHT`; kind and weight optional.

    Raises:
        DataError: an unknown kind or ending, a bad weight, or an environment variable that is not
        set.
    """
    specs = [_parse_source(part.strip()) for part in text.split(",") if part.strip()]
    if not specs:
        raise DataError("data.sources is empty; name a source such as 'microworld'")
    return specs


def _parse_source(text: str) -> SourceSpec:
    body, weight = _split_weight(text)
    kind, colon, path = body.partition(":")
    if not colon:
        kind, path = (body, "") if body in KINDS else ("", body)
    elif kind not in KINDS:
        raise DataError(
            f"data.sources names the unknown kind {kind!r} in {text!r}; known: {', '.join(KINDS)}"
        )
    path = os.path.expanduser(expand_variables(path))
    kind = kind or kind_by_ending(path)
    if kind not in ("microworld", "microworld_chat") and not path:
        raise DataError(f"data.sources names {kind!r} without a path; write {kind}:PATH")
    if kind == "microworld" and path:
        raise DataError(f"the microworld has no path, but data.sources says {text!r}")
    return SourceSpec(kind, path, weight)


def _split_weight(text: str) -> tuple[str, float]:
    body, at, number = text.rpartition("@")
    if not at:
        return text, 1.0
    try:
        weight = float(number)
    except ValueError:
        return text, 1.0  # an @ that belongs to the path
    if not (math.isfinite(weight) and weight > 0):
        raise DataError(f"the weight in data.sources {text!r} must be a positive number")
    return body, weight


def item_kinds(text: str) -> set[str]:
    """What the sources of `data.sources` hold (as `SourceSpec.items`), without opening them."""
    kinds = {part.strip().partition(":")[0].partition("@")[0] for part in text.split(",")}
    return {ITEM_KINDS.get(kind, "text") for kind in kinds}


def expand_variables(text: str) -> str:
    """`$NAME` and `${NAME}` replaced by the environment's values.

    Raises:
        DataError: one is not set; names it.
    """

    def value(match: re.Match) -> str:
        name = match[1] or match[2]
        if not os.environ.get(name):
            raise DataError(
                f"the environment variable {name} is not set, but data.sources uses it in "
                f"{text!r}; export {name}=/path/to/folder"
            )
        return os.environ[name]

    return _VARIABLE.sub(value, text)


def kind_by_ending(path: str) -> str:
    """The kind that a file's ending tells; .gz and .zst are looked through.

    Raises:
        DataError: the ending says nothing.
    """
    name = re.sub(r"\.(gz|zst)$", "", path.lower())
    for ending, kind in _ENDINGS.items():
        if name.endswith(ending):
            return kind
    raise DataError(
        f"data.sources: cannot tell the kind of {path!r} by its ending; write KIND:PATH "
        f"with a kind of {', '.join(KINDS)}"
    )


def find_files(spec: SourceSpec) -> list[Path]:
    """Files of a source in sorted order; a folder stands for the files in it of that kind.

    Raises:
        DataError: nothing is there.
    """
    path = Path(spec.path)
    if path.is_dir():
        files = [p for p in path.rglob("*") if p.is_file() and _has_kind(p.name, spec.kind)]
    elif path.exists():
        files = [path]
    else:
        files = [Path(p) for p in glob.glob(spec.path, recursive=True) if Path(p).is_file()]
    if not files:
        raise DataError(f"data.sources: no file at {spec.path!r} ({spec.kind})")
    return sorted(files)


def _has_kind(name: str, kind: str) -> bool:
    try:
        return kind_by_ending(name) == ("jsonl" if kind in ITEM_KINDS else kind)
    except DataError:
        return False


def read_documents(spec: SourceSpec, config: DataConfig, bad: BadRecords) -> Iterator[Document]:
    """All documents of a file source, file by file.

    Raises:
        DataError: a file cannot be read, has no such field, or holds too many bad records.
    """
    field = config.text_field
    readers: dict[str, Callable[..., Iterator[Document]]] = {
        "text": functools.partial(read_text, unit=config.text_documents),
        "jsonl": functools.partial(read_jsonl, text_field=field),
        "class_texts": functools.partial(read_jsonl, text_field="text"),
        "parquet": functools.partial(read_parquet, text_field=field),
        "array_record": functools.partial(read_array_record, text_field=field),
        "chat": functools.partial(read_conversations, clean=record_cleaning(config.cleaning)),
        "labels": functools.partial(
            read_labelled, clean=record_cleaning(config.cleaning), settings=config.labels
        ),
    }
    for path in find_files(spec):
        yield from readers[spec.kind](path, bad)


def file_identities(spec: SourceSpec) -> list[dict[str, Any]]:
    """Name, size, time of change and a hash of both ends of each file: tells a new version."""
    return [_file_identity(path) for path in find_files(spec)]


def _file_identity(path: Path, end_bytes: int = 2**16) -> dict[str, Any]:
    try:
        status = path.stat()
        with path.open("rb") as file:
            digest = hashlib.sha256(file.read(end_bytes))
            file.seek(max(0, status.st_size - end_bytes))
            digest.update(file.read(end_bytes))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    return {
        "path": str(path.resolve()),
        "size": status.st_size,
        "changed": status.st_mtime_ns,
        "ends": digest.hexdigest(),
    }
