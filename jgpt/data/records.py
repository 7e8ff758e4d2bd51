"""Files to documents: text, JSONL, Parquet and ArrayRecord, with every unreadable record counted.

Readers are generators over `Document`s; what cannot be read is reported to a `BadRecords` with file
and line (or row) number, and too much of it stops the run.
"""

import contextlib
import gzip
import importlib
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from jgpt.data.document import Document

MAX_LINE_BYTES = 64 * 2**20
"""A longer line is an unreadable record: one document must fit in memory several times over."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class DataError(ValueError):
    """The corpus cannot be used; the message names the file or setting and the remedy."""


@dataclass
class BadRecords:
    """Counts unreadable records and keeps the first few for the report.

    Attributes:
        limit: `data.max_bad_records`; one more raises `DataError`.
        count: unreadable records so far.
        examples: the first ones, as `file:line: reason`.
    """

    limit: int
    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, path: Path | str, number: int, reason: str) -> None:
        self.count += 1
        if len(self.examples) < 5:
            self.examples.append(f"{path}:{number}: {reason}")
        self.check()

    def check(self) -> None:
        """Raises DataError: more than `limit` were counted."""
        if self.count > self.limit:
            raise DataError(
                f"more than data.max_bad_records={self.limit} unreadable records, the first at "
                f"{self.examples[0]}; mend the file or raise the limit"
            )


def optional_package(name: str, extra: str = "data") -> ModuleType:
    """An optional package; DataError with the install command where it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.split(".")[0]
        raise DataError(
            f"this source needs the package {package!r} ({error}); pip install 'jgpt[{extra}]'"
        ) from error


class _ZstandardFile(io.RawIOBase):
    """Frame after frame; unlike with the library's reader, ending inside one is an EOFError."""

    def __init__(self, path: Path):
        self._zstandard = optional_package("zstandard")
        self._file = path.open("rb")
        self._frame: Any = None
        self._input = self._output = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._output:
            self._input = self._input or self._file.read(2**16)
            if not self._input:
                if self._frame is not None:
                    raise EOFError("the file ends inside a Zstandard frame")
                return 0
            self._frame = self._frame or self._zstandard.ZstdDecompressor().decompressobj()
            self._output = self._frame.decompress(self._input)
            self._input = self._frame.unused_data
            if self._frame.eof:
                self._frame = None
        size = min(len(buffer), len(self._output))
        buffer[:size], self._output = self._output[:size], self._output[size:]
        return size

    def close(self) -> None:
        self._file.close()
        super().close()


def _decompressed(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return gzip.open(path, "rb")
    if path.suffix == ".zst":
        return io.BufferedReader(_ZstandardFile(path), 2**20)
    return path.open("rb")


def _decompression_errors(path: Path) -> tuple[type[Exception], ...]:
    errors: tuple[type[Exception], ...] = (EOFError, OSError, zlib.error)
    if path.suffix == ".zst":
        errors += (optional_package("zstandard").ZstdError,)
    return errors


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    try:
        file = _decompressed(path)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    with file:
        yield file


def read_lines(path: Path, bad: BadRecords) -> Iterator[tuple[int, str]]:
    """(line number from 1, text without line end) of a .gz, .zst or plain UTF-8 file.

    Lines end with LF or CRLF only; other Unicode line separators belong to the text. A byte order
    mark is dropped. Lines that are no UTF-8, or longer than `MAX_LINE_BYTES`, are bad records.

    Raises:
        DataError: the file cannot be opened, or its compressed data is damaged or cut short.
    """
    number = 0
    with _opened(path) as file:
        try:
            while line := file.readline(MAX_LINE_BYTES):
                number += 1
                if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
                    while (rest := file.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                        pass
                    bad.add(path, number, f"line longer than {MAX_LINE_BYTES >> 20} MiB")
                    continue
                if number == 1:
                    line = line.removeprefix(BYTE_ORDER_MARK)
                try:
                    yield number, line.rstrip(b"\r\n").decode("utf-8")
                except UnicodeDecodeError as error:
                    bad.add(path, number, f"not UTF-8 (byte {error.object[error.start]:#04x})")
        except _decompression_errors(path) as error:
            raise DataError(
                f"{path} is damaged or cut short after line {number} ({error}); fetch it again"
            ) from error


def read_text(path: Path, bad: BadRecords, unit: str) -> Iterator[Document]:
    """The documents of a text file: the whole file, or each block between blank lines.

    Args:
        unit: `file` or `block` (`data.text_documents`).
    """
    lines: list[str] = []
    start = 1
    for number, line in read_lines(path, bad):
        if unit == "block" and not line.strip():
            if lines:
                yield Document("\n".join(lines), id=f"{path.name}:{start}")
            lines, start = [], number + 1
        else:
            lines.append(line)
    if any(line.strip() for line in lines):
        yield Document("\n".join(lines), id=f"{path.name}:{start}")


def record_text(record: Any, text_field: str, where: str) -> str | None:
    """The text of a parsed record, or None where the field holds no string.

    Raises:
        DataError: the record has no such field; lists those it has.
    """
    if text_field not in record:
        found = ", ".join(sorted(map(str, record))) or "none"
        raise DataError(
            f"{where} has no field {text_field!r}; set data.text_field to one of: {found}"
        )
    text = record[text_field]
    return text if isinstance(text, str) and _encodable(text) else None


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _from_json(
    data: str | bytes, path: Path, number: int, text_field: str, bad: BadRecords
) -> Document | None:
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as error:
        bad.add(path, number, f"broken JSON ({error})")
        return None
    if not isinstance(record, dict):
        bad.add(path, number, f"a JSON {type(record).__name__}, not an object")
        return None
    text = record_text(record, text_field, f"{path}:{number}")
    if text is None:
        bad.add(path, number, f"field {text_field!r} is no Unicode text")
        return None
    return Document(text, id=str(record.get("id", f"{path.name}:{number}")))


def read_jsonl(path: Path, bad: BadRecords, text_field: str) -> Iterator[Document]:
    """One document per line of JSON; blank lines are skipped.

    Raises:
        DataError: a record lacks `text_field`, or the file is damaged.
    """
    for number, line in read_lines(path, bad):
        if line and not line.isspace():
            document = _from_json(line, path, number, text_field, bad)
            if document is not None:
                yield document


def read_parquet(path: Path, bad: BadRecords, text_field: str) -> Iterator[Document]:
    """One document per row; only the text column is read (package pyarrow).

    Raises:
        DataError: no such column, or no Parquet file.
    """
    parquet = optional_package("pyarrow.parquet")
    arrow = optional_package("pyarrow")
    try:
        with parquet.ParquetFile(path) as file:
            record_text(dict.fromkeys(file.schema_arrow.names), text_field, str(path))
            number = 0
            for batch in file.iter_batches(batch_size=1024, columns=[text_field]):
                for text in batch.column(0).to_pylist():
                    number += 1
                    if isinstance(text, str):
                        yield Document(text, id=f"{path.name}:{number}")
                    else:
                        bad.add(path, number, f"column {text_field!r} holds no text")
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"cannot read {path} as Parquet: {error}") from error


def read_array_record(path: Path, bad: BadRecords, text_field: str) -> Iterator[Document]:
    """One document per record, a JSON object or the bare UTF-8 text (package array_record)."""
    module = optional_package("array_record.python.array_record_module")
    try:
        reader = module.ArrayRecordReader(str(path))
        total = reader.num_records()
    except (RuntimeError, ValueError, OSError) as error:
        raise DataError(f"cannot read {path} as ArrayRecord: {error}") from error
    with contextlib.closing(reader):
        for start in range(0, total, 256):
            chunk = reader.read(range(start, min(start + 256, total)))
            for number, data in enumerate(chunk, start + 1):
                document = _from_array_record(data, path, number, text_field, bad)
                if document is not None:
                    yield document


def _from_array_record(
    data: bytes, path: Path, number: int, text_field: str, bad: BadRecords
) -> Document | None:
    if data.lstrip().startswith(b"{"):
        return _from_json(data, path, number, text_field, bad)
    try:
        return Document(data.decode("utf-8"), id=f"{path.name}:{number}")
    except UnicodeDecodeError:
        bad.add(path, number, "neither a JSON object nor UTF-8 text")
        return None


def json_lines(path: Path, bad: BadRecords) -> Iterator[tuple[int, Any]]:
    """(line number, value) of every line that is neither blank nor broken; see `read_lines`."""
    for number, line in read_lines(path, bad):
        if not line or line.isspace():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            bad.add(path, number, f"broken JSON ({error})")
            continue
        yield number, value
