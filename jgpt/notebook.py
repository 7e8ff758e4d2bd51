"""Runs from a notebook: configured, trained, looked at and asked, in a line each.

    from jgpt import notebook

    settings = notebook.settings("moe_small", {"train.steps": 200})
    run = notebook.train(settings, "runs/quickstart")
    run.report()                  # shown in the notebook
    run.curve("loss")             # steps, values
    run.write(["春になると、"])    # texts

`Run(path)` is any run that is there already, whoever trained it.
"""

import dataclasses
import html
import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from jgpt.config import ConfigError, SampleConfig, from_config_dict
from jgpt.data import pipeline
from jgpt.evals.replies import Question, Replier, questions_of
from jgpt.evals.routing import RoutedText, route_texts
from jgpt.evals.writing import Writer
from jgpt.interop import adapted
from jgpt.interop.start import prepare
from jgpt.malloc import keep_freed_buffers
from jgpt.tokenizers import Tokenizer, load
from jgpt.training import loop
from jgpt.training.metrics import last_per_step, read_json_lines
from jgpt.training.workdir import Workdir, read_json

ROOT = Path(__file__).parents[1]
"""Of the repository, where `configs` lies beside `jgpt`."""


def settings(name: str, changes: Mapping[str, Any] | None = None) -> ml_collections.ConfigDict:
    """The settings of `configs/NAME.py`.

    Args:
        name: of the config.
        changes: dotted names to values, as on the command line: {"train.steps": 100}.

    Raises:
        ConfigError: there is no such config.
    """
    if not (ROOT / "configs" / f"{name}.py").is_file():
        known = ", ".join(sorted(path.stem for path in (ROOT / "configs").glob("*.py")))
        raise ConfigError(
            f"there is no config {name!r} in {ROOT / 'configs'}; there are: {known or 'none'} "
            "(configs come with a clone of the repository)"
        )
    if str(ROOT) not in sys.path:  # configs build on one another
        sys.path.insert(0, str(ROOT))
    config = importlib.import_module(f"configs.{name}").get_config()
    config.update_from_flattened_dict(dict(changes or {}))
    return config


def train(settings: ml_collections.ConfigDict, workdir: str | Path) -> "Run":
    """Trains as `python -m jgpt.main` does, or goes on with what is in `workdir`.

    Raises:
        ConfigError, DataError, CheckpointError, TrainingError: one line that says what to change.
        Stopped: the cell was interrupted; all is saved, and run again it goes on from there.
    """
    config = from_config_dict(settings)
    if config.train.keep_malloc and jax.default_backend() == "cpu":
        keep_freed_buffers()
    workdir = Path(workdir)
    config, start = prepare(config, workdir)
    loop.run(config, workdir, start)
    return Run(workdir)


@dataclass(frozen=True)
class Run:
    """A run and what it left.

    Attributes:
        workdir: its folder.
    """

    workdir: str | Path

    @property
    def files(self) -> Workdir:
        return Workdir(Path(self.workdir))

    @property
    def figures(self) -> dict[str, Any]:
        """The final ones, as `docs/running.md` lists them; {} while it has not finished."""
        return read_json(self.files.final) or {}

    def curve(self, name: str, kind: str = "train") -> tuple[np.ndarray, np.ndarray]:
        """(steps [N], values [N, ...]) of a figure in `metrics.jsonl`.

        Args:
            name: of the figure; `load` is [N, L, E].
            kind: `train` or `validation`.

        Raises:
            KeyError: there is no such figure; the message lists those that there are.
        """
        records = last_per_step(read_json_lines(self.files.metrics), kind)
        found = [record for record in records if record.get(name) is not None]
        if not found:
            known = sorted({key for record in records for key in record} - {"kind", "step"})
            raise KeyError(f"no {kind} figure {name!r}; there are: {', '.join(known) or 'none'}")
        return np.array([r["step"] for r in found]), np.array([r[name] for r in found])

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return load(self.files.tokenizer)

    @cached_property
    def model(self) -> adapted.Model:
        """Of the newest intact checkpoint, with its adapters where it has some."""
        return adapted.open_run(self.files.path, vocabulary=self.tokenizer.fingerprint)

    def write(self, prompts: Sequence[str], **sampling: Any) -> list[str]:
        """Every prompt and how the model goes on; '' starts a document.

        Args:
            prompts: written to side by side.
            sampling: fields of `SampleConfig` other than the run's own: temperature=0.7, seed=1.
        """
        sample = self._sample(prompts=tuple(prompts), **sampling)
        model = self.model
        writer = Writer(model.config.model, sample, self.tokenizer, model_apply=model.apply())
        return [s.prompt + s.text for s in writer.write(model.variables, len(prompts))]

    def reply(self, questions: Sequence[str | Question], **sampling: Any) -> list[str]:
        """The model's reply to each, in the run's chat template; '' where a question is too long.

        Args:
            questions: what a user says, or questions with what was said before.
            sampling: as in `write`; the likeliest tokens where nothing is given.
        """
        asked = [
            Question(({"role": "user", "content": q},)) if isinstance(q, str) else q
            for q in questions
        ]
        model, sample = self.model, self._sample(**{"temperature": 0.0, **sampling})
        config = dataclasses.replace(model.config, sample=sample)
        replier = Replier(config, self.tokenizer, model_apply=model.apply())
        written = replier.write(model.variables, asked)
        return ["" if sample is None else sample.text for sample in written]

    def route(self, texts: Sequence[str]) -> list[RoutedText]:
        """The experts that every token of the texts goes to. Each is coloured in a notebook.

        Raises:
            ConfigError: the model has no experts.
        """
        config = self.model.config.model
        return route_texts(config, self.model.merged(), self.tokenizer, texts)

    def _sample(self, **changes: Any) -> SampleConfig:
        return dataclasses.replace(self.model.config.sample, **changes)

    @cached_property
    def _held_out(self) -> list[tuple[str, str]]:
        """(kind of its source, item) of the validation side."""
        corpus = pipeline.open_corpus(self.model.config.data)
        return [(corpus.sources[s].items, item) for s, item in corpus.validation_items]

    def held_out_texts(self) -> list[str]:
        """Documents that were kept for validation."""
        return [item for kind, item in self._held_out if kind != "chat"]

    def held_out_questions(self) -> list[Question]:
        """Questions that were kept for validation; some know their answer."""
        return questions_of(item for kind, item in self._held_out if kind == "chat")

    def report(self) -> "Page":
        """The report as it stands."""
        return Page(self.files.report.read_text(encoding="utf-8"))


@dataclass(frozen=True, repr=False)
class Page:
    """A page of HTML that a notebook shows in a frame of its own."""

    text: str

    def _repr_html_(self) -> str:
        page = html.escape(self.text)
        return f'<iframe srcdoc="{page}" style="width:100%;height:640px;border:0"></iframe>'
