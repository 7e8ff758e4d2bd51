"""The folder of a run: what is in it, and whether it can be written."""

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jgpt.config import ConfigError
from jgpt.training.metrics import finite


@dataclass(frozen=True)
class Workdir:
    """Paths of everything that a run leaves behind."""

    path: Path

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer"

    @property
    def tokenizer_settings(self) -> Path:
        """Settings that the tokenizer was made with; there only when it is complete."""
        return self.tokenizer / "settings.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        return self.path / "samples.jsonl"

    @property
    def run(self) -> Path:
        """Config, versions, devices, tokenizer and data figures."""
        return self.path / "run.json"

    @property
    def final(self) -> Path:
        """Final figures; there only when the run has finished."""
        return self.path / "final.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    def open(self) -> None:
        """Makes the folder.

        Raises:
            ConfigError: it cannot be made or written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise ConfigError(
                f"workdir {str(self.path)!r} cannot be written ({error.strerror}); choose another "
                "with --workdir"
            ) from error


def write_json(path: Path, value: Any) -> None:
    """Writes a whole JSON file or none: a reader never sees half of it."""
    text = json.dumps(finite(value), ensure_ascii=False, indent=1)
    write_text(path, text + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a whole text file or none."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def read_json(path: Path) -> Any:
    """What `write_json` wrote; None where there is nothing."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
