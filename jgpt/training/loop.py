"""The training loop: from a config and a folder to a trained model and its report.

Killed at any moment, the same command goes on from the newest intact checkpoint and repeats exactly
what was lost: the batches, the random keys and the arithmetic are those of a run that was never
interrupted. `metrics.jsonl` then has two records of a repeated step; the later one counts, and is
equal.

The devices never wait for the host: a step is dispatched before the figures of the one before it
are fetched.
"""

import errno
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jgpt import cluster, sharding
from jgpt.config import Config
from jgpt.data import pipeline
from jgpt.training import report
from jgpt.training import state as train_state
from jgpt.training.assembly import Start, placed
from jgpt.training.evaluation import Evaluator
from jgpt.training.metrics import Clock, JsonLines, TensorBoard, expert_load
from jgpt.training.progress import Display, closing
from jgpt.training.setup import Run, set_up
from jgpt.training.signals import Stopped, StopRequest
from jgpt.training.state import TrainState
from jgpt.training.workdir import Workdir, write_json
from jgpt.typing import Batch

PREPARE = 0x70726570
"""Keeps the keys that objectives prepare with apart from those of the steps."""


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what to change."""


def run(config: Config, workdir: str | Path, start: Start | None = None) -> dict[str, Any]:
    """Trains, or goes on training, and evaluates; everything it leaves is in `workdir`.

    Args:
        config: of the run.
        workdir: folder; made if need be.
        start: where the first weights come from; None for random ones.

    Returns:
        The final figures, as in `final.json`.

    Raises:
        ConfigError, DataError, CheckpointError, TrainingError: one line that says what to change.
        Stopped: after SIGTERM or SIGINT; everything is saved.
        PeerLost: another process of the run is gone.
    """
    clock = Clock()
    files = Workdir(Path(workdir))
    files.open()
    cluster.check_shared(files.path)
    with StopRequest() as stop, Display(config.train.steps, jax.process_index() == 0) as display:
        parts = set_up(config, files, start)
        clock.add("setup", clock.total)
        with placed(parts.mesh):
            loop = Loop(parts, clock, display, stop)
            with _closing(loop):
                return loop.run()


@contextmanager
def _closing(loop: "Loop") -> Iterator[None]:
    """Closes the loop at the end, and says clearly what went wrong on the way."""
    try:
        yield
    except Exception as error:
        if cluster.is_loss(error):  # and not closed, which would wait for the lost process
            raise cluster.PeerLost(str(error).strip().splitlines()[0][:200]) from error
        loop.close()
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise TrainingError(
                f"the disk of {loop.parts.files.path} is full; free some space and run the same "
                "command again: it goes on from the newest checkpoint"
            ) from error
        raise
    loop.close()


@dataclass
class Pending:
    """A step that was dispatched, its figures not yet fetched."""

    step: int
    metrics: dict[str, jax.Array]


@dataclass
class Window:
    """Sums since figures were last shown."""

    tokens: float = 0.0
    seconds: float = 0.0
    data_wait: float = 0.0


@dataclass
class Loop:
    """One run from start, or from where it was, to its end."""

    parts: Run
    clock: Clock
    display: Display
    stop: StopRequest
    pending: Pending | None = None
    window: Window = field(default_factory=Window)
    mark: float = 0.0
    """when the last step's figures came in"""
    waited: float = 0.0
    """seconds of waiting for data since then"""
    validated: dict[str, Any] = field(default_factory=dict)
    """figures of the last validation, with its step"""
    saved: int = -1
    """step of the newest checkpoint"""

    def __post_init__(self):
        self.config = self.parts.config
        self.evaluator = Evaluator(self.parts)
        self.batches = self.parts.training_batches()
        self.metrics = self.samples = self.tensorboard = None

    def run(self) -> dict[str, Any]:
        """See `run` of this module."""
        state, first = self._begin()
        if first >= self.config.train.steps:
            self.display.say(f"training had finished at step {first}; evaluating it")
        state, steps = self._train(state, first)
        return self._finish(state, steps)

    def close(self) -> None:
        """Ends threads and files; what is being written is written first."""
        self.batches.close()
        self.parts.checkpoints.close()
        for writer in (self.metrics, self.samples, self.tensorboard):
            if writer is not None:
                writer.close()

    # --- start -----------------------------------------------------------------------------------

    def _begin(self) -> tuple[TrainState, int]:
        """The state to start from and the number of steps it has taken."""
        with self.clock.part("start"):
            abstract = self.parts.kept(self.parts.abstract)
            restored = self.parts.checkpoints.restore_latest(abstract, self.config)
            if restored:
                self.batches.set_state(pipeline.merge_states(restored.data_states))
                state, first = self.parts.completed(restored.state), restored.step
                self.saved = first
            else:
                state, first = self.parts.init(), 0
        facts = self.parts.facts
        if self.parts.main_process:
            write_json(self.parts.files.run, facts)
            self.metrics = JsonLines(self.parts.files.metrics)
            self.samples = JsonLines(self.parts.files.samples)
            self.tensorboard = TensorBoard(self.parts.files.tensorboard, first)
        self._write_metrics({"kind": "start", "step": first, "time": time.time()})
        model, device = facts["model"], facts["device"]
        some = model["trained_parameters"] != model["parameters"]
        self.display.say(
            f"{self.config.name}: {model['parameters']:,} parameters, "
            + (f"{model['trained_parameters']:,} trained, " if some else "")
            + f"{model['active_parameters']:,} per token; {device['count']} x {device['kind']}; "
            f"{self.parts.files.path}"
        )
        for note in restored.notes if restored else ():
            self.display.say(note)
        if restored:
            self.display.say(f"resumed after step {first}")
        return state, first

    def _compile(self, state: TrainState, batch: dict[str, jax.Array]) -> Any:
        start = time.monotonic()
        with self.clock.part("compile"):
            step = self.parts.train_step.lower(state, batch).compile()
        self.display.say(f"compiled the training step in {time.monotonic() - start:.1f} s")
        return step

    # --- steps -----------------------------------------------------------------------------------

    def _train(self, state: TrainState, first: int) -> tuple[TrainState, int]:
        """The state after the last step, and its number."""
        train_step = None
        at, last = first, self.config.train.steps
        prepared: list[Batch] = []
        before = at
        while at < last:
            if not prepared:
                batch = self._next_batch()
                if batch is None:
                    self.display.say(f"the data ends at step {at} (data.epochs)")
                    break
                prepared = self._prepare(state, batch, at)
            if train_step is None:
                train_step = self._compile(state, prepared[0])
                self.mark = time.monotonic()
            state, metrics = train_step(state, prepared.pop(0))
            at += 1
            self._record()
            self.pending = Pending(at, metrics)
            # Only between batches: a checkpoint cannot hold what was prepared and not yet used.
            if not prepared or at == last:
                self._events(state, before, at)
                before = at
        self._record()
        return state, at

    def _next_batch(self) -> dict[str, jax.Array] | None:
        start = time.monotonic()
        batch = next(self.batches, None)
        waited = time.monotonic() - start
        self.clock.add("data wait", waited)
        self.waited += waited
        if self.config.data.epochs and batch is not None and self.parts.several:
            # Alone, the pipeline ends by itself; of several, each sees its own rows only.
            over = self.batches.exhausted and not batch["loss_weights"].any()
            batch = batch if cluster.processes_without(over) else None
        return None if batch is None else sharding.device_batch(self.parts.mesh, batch)

    def _prepare(self, state: TrainState, batch: Batch, at: int) -> list[Batch]:
        """What the objective makes of a batch before it is learned from: one batch per step."""
        key = jax.random.fold_in(jax.random.key(self.config.train.seed), PREPARE)
        key = jax.random.fold_in(key, at)
        if self.parts.corrupt is not None:
            batch = self.parts.corrupt(batch, key)
        return self.parts.prepare(train_state.variables(state), batch, key)

    def _record(self) -> None:
        """Fetches the figures of the pending step, which ends the wait for it, and writes them."""
        if self.pending is None:
            return
        pending, self.pending = self.pending, None
        fetched = jax.device_get(pending.metrics)
        now = time.monotonic()
        seconds, self.mark = now - self.mark, now
        waited, self.waited = min(self.waited, seconds), 0.0
        self.clock.add("step", seconds - waited)
        figures = {k: float(v) for k, v in fetched.items() if np.ndim(v) == 0}
        self.window.tokens += figures["tokens"]
        self.window.seconds += seconds
        self.window.data_wait += waited
        record = {"kind": "train", "step": pending.step, **figures, "seconds": round(seconds, 6)}
        shown = None
        if pending.step % self.config.train.log_every == 0:
            shown = record | self._window_figures(fetched)
            record = shown
        self._write_metrics(record)
        self.display.step(pending.step, shown)
        self._check(figures, pending.step)

    def _window_figures(self, fetched: dict[str, np.ndarray]) -> dict[str, Any]:
        """Rates since the last call, and the experts' load at this step."""
        window, self.window = self.window, Window()
        rate = window.tokens / window.seconds
        flops = rate * self.parts.facts["model"]["flops_per_token"]
        figures = {
            "tokens_per_second": rate,
            "model_flops_per_second": flops,
            "data_wait_fraction": window.data_wait / window.seconds,
            "goodput": self.clock.goodput(),
        }
        if self.parts.peak_flops:
            figures["mfu"] = flops / self.parts.peak_flops
        if "router_assignments" in fetched:
            figures["load"] = expert_load(fetched["router_assignments"])
        layers = {k: v.tolist() for k, v in fetched.items() if np.ndim(v) == 1}
        return figures | layers

    def _check(self, figures: dict[str, float], step: int) -> None:
        if figures["consecutive_skipped"] >= self.config.train.max_nonfinite:
            raise TrainingError(
                f"loss or gradient was not finite in {figures['consecutive_skipped']:.0f} steps in "
                f"a row, the last of them {step} (train.max_nonfinite); lower "
                "optimizer.learning_rate or optimizer.clip_norm, and start from an earlier "
                "checkpoint or another --workdir"
            )

    # --- now and then ----------------------------------------------------------------------------

    def _events(self, state: TrainState, before: int, at: int) -> None:
        """What fell due in the steps from `before` to `at`: validation, samples, saving, a stop."""
        last = self.config.train.steps

        def due(every: int) -> bool:
            return at == last or (every > 0 and at // every > before // every)

        settings = self.config
        stopping = self.stop.after(at)
        validation, saving = due(settings.train.eval_every), due(settings.checkpoint.every)
        sampling = due(settings.train.sample_every) and at != last
        if not (validation or saving or sampling or stopping):
            return
        self._record()
        if validation and not stopping:
            self._validate(state, at)
        if sampling and not stopping:
            self._write_samples(state, at, settings.sample.num_samples)
        if saving or stopping:
            self._save(state, at)
        if stopping:
            self.parts.checkpoints.wait()
            raise Stopped(at, self.stop.signum)
        self.mark = time.monotonic()

    def _save(self, state: TrainState, at: int) -> None:
        if self.saved == at:
            return
        self.saved = at
        figures = self.validated if self.validated.get("step") == at else {}
        with self.clock.part("checkpoint"):
            data_state = self.batches.get_state()
            kept = self.parts.kept(state)
            self.parts.checkpoints.save(kept, data_state, self.config, figures, at)

    def _validate(self, state: TrainState, at: int) -> None:
        with self.clock.part("validation"):
            figures = self.evaluator.validate(train_state.variables(state, use_ema=True))
        if not figures:
            return
        self.validated = {"step": at, **figures}
        self._write_metrics({"kind": "validation", **self.validated})
        per_character = figures.get("validation_bits_per_character")
        self.display.say(
            f"step {at}  validation loss {figures['validation_loss']:.4f}"
            + (f"  {per_character:.4f} bits/character" if per_character else "")
        )
        if self.parts.main_process:
            report.write(self.parts.files)

    def _write_samples(self, state: TrainState, at: int, number: int) -> list[Any]:
        with self.clock.part("samples"):
            variables = train_state.variables(state, use_ema=True)
            samples = self.evaluator.write(variables, number)
            records = self.evaluator.judge(samples)
        if self.samples:
            for record in records:
                self.samples.write({"step": at, **record})
            text = "\n\n---\n\n".join(s.prompt + s.text for s in samples)
            self.tensorboard.text(at, "samples", text)
        for sample in samples[: self.config.sample.num_samples]:
            self.display.say(f"── step {at}\n{sample.prompt}{sample.text}")
        return samples

    def _write_metrics(self, record: dict[str, Any]) -> None:
        if not self.metrics:
            return
        self.metrics.write(record)
        due = record["step"] % self.config.train.log_every == 0
        if record["kind"] == "validation" or (record["kind"] == "train" and due):
            self.tensorboard.scalars(record["step"], record, record["kind"])

    # --- end -------------------------------------------------------------------------------------

    def _finish(self, state: TrainState, steps: int) -> dict[str, Any]:
        """Last validation, checkpoint, samples, baselines, report."""
        if self.validated.get("step") != steps:
            self._validate(state, steps)
        self._save(state, steps)
        figures = {**self.validated, "step": steps}
        number = self.config.sample.final_samples
        samples = self._write_samples(state, steps, number) if number else []
        held = train_state.variables(state, use_ema=True)
        with self.clock.part("samples"):
            figures |= self.evaluator.check(held)
        with self.clock.part("drift"):
            figures |= self.evaluator.drift(held)
        figures |= self.evaluator.ranks(train_state.variables(state))
        with self.clock.part("baselines"):
            figures |= self.evaluator.finish(samples, steps)
        figures |= {
            "goodput": self.clock.goodput(),
            "seconds": {name: round(s, 2) for name, s in self.clock.seconds.items()},
            "total_seconds": round(self.clock.total, 2),
        }
        if self.parts.main_process:
            write_json(self.parts.files.final, figures)
            report.write(self.parts.files)
        self.display.say(closing(figures))
        self.display.say(f"report: {self.parts.files.report}")
        return figures
