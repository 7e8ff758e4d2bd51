"""The sha256 and size of every file of a folder, so that damage to any byte is found.

The manifest is written last and atomically: a folder without one is incomplete. It carries its own
digest, and it is compared byte for byte with what it would be written as, so that damage to the
manifest itself is found as well.
"""

import hashlib
import json
import os
from pathlib import Path

NAME = "manifest.json"


def write(directory: Path) -> None:
    """Describes every file under `directory` in `directory/manifest.json`.

    Raises:
        OSError: a file cannot be read, or the manifest cannot be written.
    """
    files = {
        path.relative_to(directory).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": sha256(path),
        }
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != NAME
    }
    write_atomically(directory / NAME, _render(files))


def exists(directory: Path) -> bool:
    """Whether `directory` was completely written."""
    return (directory / NAME).is_file()


def damage(directory: Path, part: int = 0, parts: int = 1) -> str:
    """'' if every file is as it was written, else which one is not and how.

    Args:
        directory: a folder with a manifest.
        part: which share of the files to read, of `parts`: processes can divide the work.
        parts: number of shares.
    """
    try:
        text = (directory / NAME).read_text(encoding="utf-8")
        files = json.loads(text)["files"]
        if _render(files) != text:
            return f"{NAME} is damaged"
        described = [(name, entry["bytes"], entry["sha256"]) for name, entry in files.items()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{NAME} is damaged ({type(error).__name__})"
    for name, size, digest in described[part::parts]:
        path = directory / name
        try:
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} bytes, not {size}"
            if sha256(path) != digest:
                return f"{name} has changed (sha256 differs)"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return ""


def sha256(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Either all of `text` is at `path` afterwards, on disk, or what was there before."""
    temporary = path.with_name(path.name + ".partial")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _render(files: dict) -> str:
    body = json.dumps(files, sort_keys=True)
    digest = hashlib.sha256(body.encode()).hexdigest()
    return json.dumps({"files": files, "sha256": digest}, sort_keys=True, indent=1) + "\n"
