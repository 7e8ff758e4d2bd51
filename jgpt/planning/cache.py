"""Plans that were made before, kept on disk: compiling one takes minutes."""

import hashlib
import importlib.metadata
import json
import os
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent.parent
VERSIONS_OF = ("jax", "jaxlib", "libtpu", "flax", "optax")


def folder() -> Path:
    """`$JGPT_PLAN_CACHE`, or `jgpt/plans` in the user's cache folder."""
    if chosen := os.environ.get("JGPT_PLAN_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jgpt" / "plans"


def versions() -> dict[str, str]:
    """Of what decides a plan; the sources of jgpt by their digest."""
    found = {}
    for name in VERSIONS_OF:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "none"
    return found | {"jgpt": source_digest()}


def source_digest() -> str:
    """Of every source file of the package: a changed model is another plan."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(str(path.relative_to(PACKAGE)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def key(case: dict[str, Any]) -> str:
    """Of a case (config and topology) under these versions."""
    text = json.dumps([case, versions()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def load(name: str) -> dict[str, Any] | None:
    """What was kept under a `key`; None where nothing was, or it cannot be read."""
    try:
        return json.loads((folder() / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None


def save(name: str, found: dict[str, Any]) -> None:
    """Keeps what was found; a folder that cannot be written costs the next call its time only."""
    path = folder() / f"{name}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(found), encoding="utf-8")
        part.replace(path)
    except OSError:
        return
