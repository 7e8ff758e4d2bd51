"""All runs of one method, in a process of its own: `run.py` starts it.

The runs are the project's own training loop, stopped short of its end, where figures are taken
that it does not take: processor time of a step, and memory as the compiler plans it. What is
compiled is kept from run to run where it is the same.
"""

import dataclasses
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import jax
from methods import EVAL_EVERY, METHODS, STEPS, Entry

from configs import sft_small
from jgpt.config import Config, from_config_dict
from jgpt.interop.start import prepare
from jgpt.malloc import keep_freed_buffers
from jgpt.peft.adalora import final_ranks
from jgpt.training import loop
from jgpt.training.assembly import placed
from jgpt.training.evaluation import Evaluator
from jgpt.training.metrics import Clock, read_json_lines
from jgpt.training.progress import Display
from jgpt.training.setup import set_up
from jgpt.training.signals import StopRequest
from jgpt.training.state import ADAPTERS, TrainState, variables
from jgpt.training.workdir import Workdir

TEMPLATE = Path(__file__).with_name("question.jinja")
"""No control tokens: see README.md."""
VALIDATION, QUESTIONS, DRIFT = 96, 96, 32
"""Documents of each kind that a run is measured on."""
IDLE = 0.005
"""Processor seconds below which two records belong to one step."""


class Measured(loop.Loop):
    """A run that keeps what the comparison needs."""

    def measure(self, shared: Evaluator | None, steps: dict[float, Any]) -> tuple[TrainState, dict]:
        """Trains; (the last state, figures).

        Args:
            shared: of an earlier run of the method, which has its parts compiled.
            steps: learning rate -> compiled training step; what is missing is added.
        """
        self.evaluator = shared or self.evaluator
        self.times: list[float] = []
        self.steps = steps
        state, _ = self._train(*self._begin())
        return state, self._figures(state)

    def _compile(self, state: TrainState, batch: dict[str, jax.Array]) -> Any:
        rate = self.config.optimizer.learning_rate
        if rate not in self.steps:
            self.steps[rate] = super()._compile(state, batch)
        return self.steps[rate]

    def _record(self) -> None:
        super()._record()
        self.times.append(time.process_time())

    def _figures(self, state: TrainState) -> dict[str, Any]:
        records = read_json_lines(self.parts.files.metrics)
        losses = [r["loss"] for r in records if r["kind"] == "train"]
        seen = [r for r in records if r["kind"] == "validation"]
        seconds = [b - a for a, b in zip(self.times, self.times[1:], strict=False)]
        memory = self.steps[self.config.optimizer.learning_rate].memory_analysis()
        figures = {
            "parameters": self.parts.facts["model"]["trained_parameters"],
            "losses": losses,
            "training_loss": statistics.mean(losses[-10:]),
            "validation": [(r["step"], r["validation_loss"]) for r in seen],
            "validation_loss": seen[-1]["validation_loss"],
            "step_cpu_seconds": statistics.median(s for s in seconds if s > IDLE),
            "temporary_bytes": memory.temp_size_in_bytes,
            "argument_bytes": memory.argument_size_in_bytes,
        }
        if self.config.peft.method == "adalora":
            ranks = jax.device_get(final_ranks(state.params[ADAPTERS]))
            figures["ranks"] = {path: rank.tolist() for path, rank in ranks.items()}
        return figures


def config_of(entry: Entry, task: dict[str, Any], rate: float, seed: int) -> Config:
    """The config of a run of the comparison."""
    c = sft_small.get_config()
    c.init.workdir = task["base"]
    c.model.scan_layers = "on"  # compiles in half the time
    c.data.sources = f"chat:{task['data']}"
    c.data.sequence_length, c.data.batch_size = 128, 4
    c.data.seed = c.train.seed = seed
    c.data.validation_fraction, c.data.validation_documents = 0.1, VALIDATION
    c.data.chat.checked, c.data.chat.template = QUESTIONS, str(TEMPLATE)
    c.sample.max_new_tokens = 12
    c.optimizer.learning_rate, c.optimizer.warmup_steps, c.optimizer.rules = rate, 5, entry.rules
    c.train.steps, c.train.eval_every, c.checkpoint.every = STEPS, EVAL_EVERY, 0
    c.forgetting.drift_documents = DRIFT
    config = from_config_dict(c)
    changes = dict(entry.peft)
    for name in {"adalora", "prompt"} & changes.keys():
        changes[name] = dataclasses.replace(getattr(config.peft, name), **changes[name])
    return dataclasses.replace(config, peft=dataclasses.replace(config.peft, **changes))


class Runs:
    """Runs of one method, with what they share."""

    def __init__(self, task: dict[str, Any]):
        self._task, self._entry = task, METHODS[task["method"]]
        self._steps: dict[float, Any] = {}
        self._evaluator: Evaluator | None = None

    def seed(self, seed: int, rates: tuple[float, ...]) -> dict[str, Any]:
        """Figures of the run with this seed at the rate of lowest validation loss."""
        found = {rate: self._run(rate, seed) for rate in rates}
        rate = min(rates, key=lambda r: found[r][1]["validation_loss"])
        state, figures, mesh = found[rate]
        with placed(mesh):
            held = variables(state)
            figures |= self._evaluator.check(held)
            figures |= self._evaluator.drift(held)
        tried = {str(r): f["validation_loss"] for r, (_, f, _) in found.items()}
        return {"rate": rate, "tried": tried, **figures}

    def _run(self, rate: float, seed: int) -> tuple[TrainState, dict[str, Any], jax.sharding.Mesh]:
        config = config_of(self._entry, self._task, rate, seed)
        with tempfile.TemporaryDirectory() as name, StopRequest() as stop:
            files = Workdir(Path(name))
            files.open()
            with Display(config.train.steps, active=False) as display:
                config, start = prepare(config, files.path)
                parts = set_up(config, files, start)
                with placed(parts.mesh):
                    run = Measured(parts, Clock(), display, stop)
                    try:
                        state, figures = run.measure(self._evaluator, self._steps)
                    finally:
                        run.close()
                    self._evaluator = run.evaluator
        return state, figures, parts.mesh


def main() -> None:
    task = json.loads(sys.argv[1])
    keep_freed_buffers()
    runs, rates = Runs(task), tuple(task["rates"])
    for seed, file in task["runs"].items():
        began = time.process_time()
        found = {"method": task["method"], "seed": int(seed), **runs.seed(int(seed), rates)}
        found["cpu_seconds"] = round(time.process_time() - began, 1)
        rates = (found["rate"],)
        part = Path(file).with_suffix(".part")
        part.write_text(json.dumps(found, ensure_ascii=False))
        os.replace(part, file)
        accuracy = found["checked_accuracy"]
        print(
            f"{found['method']:14} seed {seed}  rate {found['rate']:g}  accuracy {accuracy:.3f}  "
            f"validation loss {found['validation_loss']:.4f}  {found['cpu_seconds']:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
