"""A file that holds generated documents, for reading them faster than they are made.

The file is one header, the texts as one UTF-8 run, the answers as another, the arrays that say
where each document lies, and the sha256 of all that; it is mapped into memory and read at random.
Its name carries the hash of the generator's source, so that a changed generator makes a new
file; a cut or damaged file is noticed by its hash.
"""

from __future__ import annotations

import builtins
import concurrent.futures
import hashlib
import json
import mmap
import multiprocessing
import os
import pathlib
import struct
import sys
from array import array
from collections.abc import Iterator, Sequence
from typing import overload

from jgpt.data.document import Document
from jgpt.data.microworld.generator import DEFAULT_SIZE, KINDS, documents

_MAGIC = b"JGPTMW01"
_LENGTH = struct.Struct("<q")  # of the header that follows the magic
_CHUNK = 5_000  # documents generated at a time
_INTEGERS = "q"  # array code: 64 bits
# The sections after the header, in order: two runs of UTF-8, then arrays of 64-bit integers.
_TEXTS, _ANSWERS, _TEXT_ENDS, _ANSWER_ENDS, _PROMPT_ENDS, _KINDS = range(6)
_DIGEST = hashlib.sha256().digest_size  # bytes at the end: the hash of all before them
_SHORTEST = len(_MAGIC) + _LENGTH.size + _DIGEST
_NONE = -1  # end of an answer or a prompt that does not exist


class DamagedCacheError(ValueError):
    """The file is not what its header says, or no cache of documents at all."""


def source_hash() -> str:
    """The hash of everything that decides what the generator writes."""
    digest = hashlib.sha256()
    for path in sorted(pathlib.Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def cache_path(directory: str | os.PathLike, size: int = DEFAULT_SIZE, seed: int = 0) -> str:
    """Where the cache of these documents lies in a directory."""
    name = f"microworld-{size}-{seed}-{source_hash()[:12]}.documents"
    return os.path.join(os.fspath(directory), name)


class _Columns:
    """Documents as the sections of the file."""

    def __init__(self) -> None:
        self.texts, self.answers = bytearray(), bytearray()
        self.arrays = {
            section: array(_INTEGERS)
            for section in (_TEXT_ENDS, _ANSWER_ENDS, _PROMPT_ENDS, _KINDS)
        }

    def add(self, document: Document) -> None:
        self.texts += document.text.encode()
        prompt, answer = document.prompt, document.answer
        if answer is not None:
            self.answers += answer.encode()
        self.arrays[_TEXT_ENDS].append(len(self.texts))
        self.arrays[_ANSWER_ENDS].append(_NONE if answer is None else len(self.answers))
        self.arrays[_PROMPT_ENDS].append(_NONE if prompt is None else len(prompt.encode()))
        self.arrays[_KINDS].append(KINDS.index(document.kind))

    def extend(self, other: _Columns) -> None:
        """Appends documents that follow; ends are counted from the start of their run."""
        moves = {_TEXT_ENDS: len(self.texts), _ANSWER_ENDS: len(self.answers)}
        self.texts += other.texts
        self.answers += other.answers
        for section, values in other.arrays.items():
            moved = moves.get(section, 0)
            self.arrays[section].extend(v if v == _NONE else v + moved for v in values)

    def sections(self) -> list[bytes]:
        arrays = (self.arrays[section].tobytes() for section in sorted(self.arrays))
        return [bytes(self.texts), bytes(self.answers), *arrays]


def _generate(start: int, stop: int, seed: int) -> _Columns:
    columns = _Columns()
    for document in documents(start, stop, seed):
        columns.add(document)
    return columns


def _chunks(size: int, seed: int, workers: int) -> Iterator[_Columns]:
    starts = range(0, size, _CHUNK)
    stops = [min(start + _CHUNK, size) for start in starts]
    seeds = [seed] * len(stops)
    if workers <= 1:
        yield from map(_generate, starts, stops, seeds)
        return
    context = multiprocessing.get_context("spawn")  # forking a process that runs JAX is unsafe
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        yield from pool.map(_generate, starts, stops, seeds)


def _write(path: str, sections: list[bytes], size: int, seed: int) -> None:
    header = {
        "size": size,
        "seed": seed,
        "kinds": KINDS,
        "byte_order": sys.byteorder,
        "lengths": [len(section) for section in sections],
    }
    encoded = json.dumps(header).encode()
    digest = hashlib.sha256()
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with builtins.open(temporary, "wb") as file:
            for part in (_MAGIC, _LENGTH.pack(len(encoded)), encoded, *sections):
                digest.update(part)
                file.write(part)
            file.write(digest.digest())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


class CachedDocuments(Sequence[Document]):
    """The documents of a cache file, read where they lie; pickles as its path."""

    def __init__(self, path: str | os.PathLike, verify: bool = True):
        """Opens a cache file.

        Args:
          path: as ``ensure`` returned it.
          verify: compare the sha256 of the contents; without, only their length is checked.

        Raises:
          DamagedCacheError: the file is cut, changed, or no cache.
          OSError: the file cannot be read.
        """
        self.path = os.fspath(path)
        with builtins.open(self.path, "rb") as file:
            self._require(os.fstat(file.fileno()).st_size > _SHORTEST, "cut short")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        view = memoryview(self._map)
        if verify:
            digest = hashlib.sha256(view[:-_DIGEST]).digest()
            self._require(digest == view[-_DIGEST:], "its contents are not what was written")
        header, start = self._header()
        self._require(
            len(view) == start + sum(header["lengths"]) + _DIGEST, "not as long as its header says"
        )
        sections = []
        for length in header["lengths"]:
            sections.append(view[start : start + length])
            start += length
        self._texts, self._answers = sections[:_TEXT_ENDS]
        arrays = [section.cast(_INTEGERS) for section in sections[_TEXT_ENDS:]]
        self._text_ends, self._answer_ends, self._prompt_ends, self._kinds = arrays
        self._names = tuple(header["kinds"])
        self._size, self._id = header["size"], f"microworld/{header['seed']}/"

    def _require(self, holds: bool, fault: str) -> None:
        if not holds:
            raise DamagedCacheError(f"cache {self.path}: {fault}; remove it and build it anew")

    def _header(self) -> tuple[dict, int]:
        begin = len(_MAGIC) + _LENGTH.size
        self._require(self._map[: len(_MAGIC)] == _MAGIC, "no cache of documents")
        (length,) = _LENGTH.unpack(self._map[len(_MAGIC) : begin])
        header = json.loads(self._map[begin : begin + length])
        self._require(header["byte_order"] == sys.byteorder, "made on another kind of machine")
        return header, begin + length

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, index: int) -> Document: ...
    @overload
    def __getitem__(self, index: slice) -> list[Document]: ...
    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._size))]
        if index < 0:
            index += self._size
        if not 0 <= index < self._size:
            raise IndexError(f"document {index}: the cache holds {self._size}")
        start = self._text_ends[index - 1] if index else 0
        text = str(self._texts[start : self._text_ends[index]], "utf-8")
        prompt = answer = None
        if self._prompt_ends[index] != _NONE:
            prompt = str(self._texts[start : start + self._prompt_ends[index]], "utf-8")
        if self._answer_ends[index] != _NONE:
            answer = str(
                self._answers[self._answer_start(index) : self._answer_ends[index]], "utf-8"
            )
        return Document(text, f"{self._id}{index}", self._names[self._kinds[index]], answer, prompt)

    def _answer_start(self, index: int) -> int:
        """Where the answer begins: at the end of the last answer before it."""
        while index:
            index -= 1
            if self._answer_ends[index] != _NONE:
                return self._answer_ends[index]
        return 0

    def __iter__(self) -> Iterator[Document]:
        return (self[index] for index in range(self._size))

    def __reduce__(self):
        return type(self), (self.path, False)


def open(path: str | os.PathLike, verify: bool = True) -> CachedDocuments:
    """The documents of a cache file; see ``CachedDocuments``."""
    return CachedDocuments(path, verify)


def ensure(
    directory: str | os.PathLike,
    size: int = DEFAULT_SIZE,
    seed: int = 0,
    workers: int = 1,
) -> str:
    """Returns the path of the cache of these documents, building it where there is no good one.

    Args:
      directory: made if it does not exist.
      size: the number of documents.
      seed: of the corpus.
      workers: processes to generate with.

    Raises:
      OSError: the directory cannot be written, or the disk is full; no partial file stays.
    """
    path = cache_path(directory, size, seed)
    if os.path.exists(path):
        try:
            CachedDocuments(path)
            return path
        except DamagedCacheError:
            os.remove(path)
    os.makedirs(directory, exist_ok=True)
    columns = _Columns()
    for chunk in _chunks(size, seed, workers):
        columns.extend(chunk)
    _write(path, columns.sections(), size, seed)
    return path
