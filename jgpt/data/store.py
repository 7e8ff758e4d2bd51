"""A cleaned corpus on disk: written once, then read at random through memory maps.

A store is a folder: `text.bin` (all texts in UTF-8, one after the other), `offsets.npy` ([n + 1]
int64 bytes), `hashes.npy` ([n] uint64 of the texts, which decide the validation split) and
`report.json`. It is written under another name and renamed, so that a folder with the final name
is complete.
"""

import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from jgpt.data.document import Document
from jgpt.data.records import DataError
from jgpt.data.split import text_hash

FORMAT = 1
_REPORT = "report.json"


def cache_folder(configured: str) -> Path:
    """`data.cache`, else $JGPT_CACHE, else ~/.cache/jgpt; created if need be.

    Raises:
        DataError: it cannot be written.
    """
    folder = Path(configured or os.environ.get("JGPT_CACHE", "") or "~/.cache/jgpt").expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise DataError(
            f"cannot write the cache folder {folder} ({error.strerror}); set data.cache or "
            "$JGPT_CACHE"
        ) from error
    return folder


def store_key(values: dict[str, Any]) -> str:
    """Name of the store made from these JSON values (files, sizes, settings)."""
    text = json.dumps(values | {"format": FORMAT}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_store(
    folder: Path,
    documents: Iterable[Document],
    report: Any,
    asked: Callable[[str], str] = lambda text: text,
) -> None:
    """Writes the store `folder`; `report()` is asked for its JSON values after the last document.

    `asked(text)` is what is hashed: it decides the validation split.

    Raises:
        DataError: the disk is full or not writable.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder.parent))
    except OSError as error:
        raise DataError(
            f"cannot write {folder.parent} ({error.strerror}); set data.cache"
        ) from error
    try:
        _write(temporary, documents, report, asked)
        _publish(temporary, folder)
    except OSError as error:
        raise DataError(f"cannot write {folder} ({error.strerror}); set data.cache") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write(
    folder: Path, documents: Iterable[Document], report: Any, asked: Callable[[str], str]
) -> None:
    offsets, hashes = [0], []
    with (folder / "text.bin").open("wb") as file:
        for document in documents:
            data = document.text.encode("utf-8")
            file.write(data)
            offsets.append(offsets[-1] + len(data))
            hashes.append(text_hash(asked(document.text).encode("utf-8")))
    np.save(folder / "offsets.npy", np.asarray(offsets, np.int64))
    np.save(folder / "hashes.npy", np.asarray(hashes, np.uint64))
    (folder / _REPORT).write_text(json.dumps(report(), ensure_ascii=False), encoding="utf-8")


def _publish(temporary: Path, folder: Path) -> None:
    try:
        os.rename(temporary, folder)
    except OSError:
        if not (folder / _REPORT).exists():  # else another process was faster with the same store
            raise


class Store:
    """Reads a store. Indexing gives texts; picklable (the maps are opened again).

    Attributes:
        report: what was given to `write_store`.
        hashes: [n] uint64.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.report: dict[str, Any] = json.loads((self.folder / _REPORT).read_text("utf-8"))
        self._offsets = np.load(self.folder / "offsets.npy")
        self.hashes = np.load(self.folder / "hashes.npy")

    @staticmethod
    def exists(folder: Path) -> bool:
        return (folder / _REPORT).exists()

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"])

    def __len__(self) -> int:
        return len(self.hashes)

    @functools.cached_property
    def _text(self) -> np.ndarray:
        path = self.folder / "text.bin"
        return np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)

    def __getitem__(self, index: int) -> str:
        start, end = self._offsets[index], self._offsets[index + 1]
        return self._text[start:end].tobytes().decode("utf-8")

    def content_hash(self) -> str:
        """Hash of all that is stored."""
        return hashlib.sha256(self._text).hexdigest()[:16]

    @property
    def fingerprint(self) -> str:
        """Hash of all texts in their order."""
        return hashlib.sha256(self.hashes.tobytes()).hexdigest()[:16]
