"""Checkpoints on disk: `WORKDIR/checkpoints/STEP/`.

| file | content |
| --- | --- |
| `state/` | the `TrainState`, in Orbax's format, as nested dicts named by parameter paths |
| `data-PROCESS.json` | position of the data pipeline |
| `config.json` | the whole config, and the fingerprint of the tokenizer |
| `metrics.json` | figures at that step; `validation_loss` decides which ones are best |
| `manifest.json` | sha256 and size of every file above, written last |

A folder without a manifest is incomplete: its writer was stopped. It is ignored. A folder whose
files do not match its manifest is damaged: the newest intact one is used in its place.
"""

import json
import logging
import math
import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from jgpt import cluster
from jgpt.config import CheckpointConfig, Config, from_config_dict, to_dict
from jgpt.training import compatibility, manifest
from jgpt.training.state import ADAPTERS, TrainState, joined, parted, with_selection_bias
from jgpt.training.state_files import (
    CheckpointError,
    nested,
    read_arrays,
    read_state,
    saved_arrays,
)
from jgpt.trees import size_in_bytes
from jgpt.typing import PyTree

BEST_METRIC = "validation_loss"
"""Of `metrics`: the lower, the better."""

logger = logging.getLogger(__name__)


def _is_not_from_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in Path(record.pathname).parts


# Each of Orbax's threads logs the traceback of a failed write; the `CheckpointError` says it once.
logging.getLogger("absl").addFilter(_is_not_from_orbax)


@dataclass(frozen=True)
class Restored:
    """A checkpoint, read back."""

    state: TrainState
    data_states: tuple[dict[str, Any], ...]
    """of the processes that saved it"""
    step: int
    config: dict[str, Any]
    metrics: dict[str, Any]
    notes: tuple[str, ...]
    """What a user should be told: checkpoints passed over, settings that changed."""


@dataclass(frozen=True)
class RestoredVariables:
    """A model from a checkpoint, without what only training needs."""

    variables: dict[str, PyTree]
    config: Config
    step: int
    notes: tuple[str, ...]


class Checkpoints:
    """Writes and reads the checkpoints of one run. Every process calls every method."""

    def __init__(self, workdir: str | Path, config: CheckpointConfig, vocabulary: str = ""):
        """
        Args:
            workdir: folder of the run.
            config: how many to keep, and whether to write in the background.
            vocabulary: fingerprint of the tokenizer; a checkpoint of another one is refused.

        Raises:
            CheckpointError: the folder cannot be made.
        """
        self.root = Path(workdir).absolute() / "checkpoints"
        self._config = config
        self._vocabulary = vocabulary
        self._damaged: set[int] = set()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"cannot make {self.root} ({error.strerror}); choose a --workdir that is writable"
            ) from error
        self._orbax = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler())
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future | None = None

    def save(
        self,
        state: TrainState,
        data_state: dict[str, Any],
        config: Config,
        metrics: dict[str, float],
        step: int,
    ) -> None:
        """Copies the state to the host and returns; the rest is written while training goes on.

        The state may be donated as soon as this returns. A step that has a complete checkpoint is
        not written again: it holds the same state.

        Args:
            state: of the run.
            data_state: this process's part of the data pipeline's position; JSON values.
            config: of the run.
            metrics: figures worth keeping with it; JSON values.
            step: number of steps taken.

        Raises:
            CheckpointError: this checkpoint, or the one before it, could not be written. Older
                ones are untouched.
        """
        self.wait()
        directory = self.root / str(step)
        if cluster.first_says(manifest.exists(directory) and step not in self._damaged):
            return
        self._check_room(state, step)
        own_file = {f"data-{jax.process_index()}.json": _json(data_state)}
        shared_files = {
            "config.json": _json({"config": to_dict(config), "vocabulary": self._vocabulary}),
            "metrics.json": _json(metrics),
        }
        try:
            if jax.process_index() == 0:
                _remove(directory)
                directory.mkdir()
                _write(directory, shared_files)
            cluster.barrier(f"checkpoint {step}")
            _write(directory, own_file)
            self._orbax.save(directory / "state", args=ocp.args.PyTreeSave(nested(state)))
        except Exception as error:
            raise self._given_up(step, error) from error
        self._pending = self._executor.submit(self._finish, step)
        if not self._config.asynchronous:
            self.wait()

    def _finish(self, step: int) -> None:
        """Runs in the background: waits for Orbax, writes the manifest, removes old ones."""
        directory = self.root / str(step)
        try:
            self._orbax.wait_until_finished()
            if jax.process_index() == 0:
                manifest.write(directory)
        except Exception as error:
            raise self._given_up(step, error) from error
        self._damaged.discard(step)
        if jax.process_index() == 0:
            try:
                self._prune(newest=step)
            except OSError as error:
                logger.warning("an old checkpoint in %s could not be removed: %s", self.root, error)

    def _check_room(self, state: TrainState, step: int) -> None:
        """Refuses to begin what the disk cannot hold, before Orbax's threads run into it."""
        needed, free = size_in_bytes(state), shutil.disk_usage(self.root).free
        if needed > free:
            raise CheckpointError(
                f"checkpoint {step} needs up to {needed / 1e6:,.0f} MB and {self.root} has "
                f"{free / 1e6:,.0f} MB left; free some disk space, lower checkpoint.keep_last or "
                "choose another --workdir. Checkpoints before it are intact"
            )

    def _given_up(self, step: int, error: Exception) -> CheckpointError:
        """Removes what was begun; the error to raise."""
        _remove_for_good(self.root / str(step))
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = lines[0].rsplit('": ', 1)[-1]  # TensorStore puts the file before the reason
        return CheckpointError(
            f"checkpoint {step} could not be written to {self.root} ({reason[:200]}); free some "
            "disk space or choose another --workdir. Checkpoints before it are intact"
        )

    def _prune(self, newest: int) -> None:
        """Removes all but the last and the best ones, and what is incomplete or damaged."""
        complete = [
            step
            for step in steps(self.root)
            if manifest.exists(self.root / str(step)) and step not in self._damaged
        ]
        scores = {step: _score(self.root / str(step)) for step in complete}
        best = sorted((s for s in complete if math.isfinite(scores[s])), key=scores.__getitem__)
        keep = {newest, *complete[: self._config.keep_last], *best[: self._config.keep_best]}
        for step in steps(self.root):
            if step not in keep:
                _remove(self.root / str(step))
        self._damaged &= keep

    def wait(self) -> None:
        """Until nothing is being written.

        Raises:
            CheckpointError: what was being written could not be.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Waits and lets go of the threads. Raises like `wait`."""
        try:
            self.wait()
        finally:
            self._executor.shutdown()
            self._orbax.close()

    def restore_latest(self, abstract: TrainState, config: Config) -> Restored | None:
        """The newest intact checkpoint on this run's devices, or None where there is none yet.

        Args:
            abstract: a `TrainState` of `ShapeDtypeStruct`s with shardings (`abstract_state`). It
                may be cut up differently from the one that was saved, and layers may be scanned in
                one and unrolled in the other.
            config: of this run.

        Raises:
            CheckpointError: all checkpoints are damaged, or the one found belongs to another
                model, tokenizer, data stream or optimizer.
        """
        found = newest_intact(self.root, self._damaged)
        if found is None:
            return None
        step, notes = found
        directory = self.root / str(step)
        saved = _read_json(directory / "config.json")
        notes += compatibility.check(step, saved, config, self._vocabulary)
        return Restored(
            state=read_state(directory, abstract, config.model),
            data_states=tuple(map(_read_json, sorted(directory.glob("data-*.json")))),
            step=step,
            config=saved["config"],
            metrics=_read_json(directory / "metrics.json"),
            notes=tuple(notes),
        )


def restore_params(
    workdir: str | Path, *, use_ema: bool = True, vocabulary: str = ""
) -> RestoredVariables:
    """The model of a run's newest intact checkpoint, on this process's first device.

    Of a run with adapters, these and what is trained beside them: `params` lacks the frozen model
    (`jgpt.interop.adapted` finds it).

    Args:
        workdir: folder of the run.
        use_ema: the averaged weights, where the run kept them.
        vocabulary: fingerprint of the tokenizer that will be used with it, to be compared.

    Raises:
        CheckpointError: there is none, all are damaged, or the tokenizer is another one.
    """
    root = Path(workdir).absolute() / "checkpoints"
    found = newest_intact(root)
    if found is None:
        raise CheckpointError(f"there is no checkpoint in {root}; train first, or mend --workdir")
    step, notes = found
    directory = root / str(step)
    saved = _read_json(directory / "config.json")
    compatibility.check_vocabulary(step, saved["vocabulary"], vocabulary)
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted = {
        name: jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here), tree)
        for name, tree in saved_arrays(directory).items()
        if name in ("params", "ema", "selection_bias", "frozen", "constants")
    }
    if use_ema and "ema" in wanted:
        del wanted["params"]
    tree = read_arrays(directory, wanted)
    params, adapters = parted(tree.get("params", tree.get("ema")))
    whole = joined(params, tree["frozen"]) if "frozen" in tree else params
    variables = with_selection_bias(whole, tree.get("selection_bias", {}))
    if adapters is not None:
        variables |= {ADAPTERS: adapters, "constants": tree.get("constants", {})}
    return RestoredVariables(
        variables=variables,
        config=from_config_dict(saved["config"]),
        step=step,
        notes=tuple(notes),
    )


def steps(root: Path) -> list[int]:
    """Steps that have a folder, newest first."""
    names = [path.name for path in root.iterdir()] if root.is_dir() else []
    return sorted((int(name) for name in names if name.isdecimal()), reverse=True)


def newest_intact(root: Path, damaged: set[int] | None = None) -> tuple[int, list[str]] | None:
    """(step, lines to show) of the newest checkpoint whose files are as they were written.

    Reads every byte of it, shared out over the processes.

    Args:
        root: the folder of checkpoints.
        damaged: steps found damaged are added to it.

    Raises:
        CheckpointError: there are complete checkpoints, and all are damaged.
    """
    notes: list[str] = []
    first_damage = ""
    for step in cluster.of_first(steps(root)):
        if not cluster.first_says(manifest.exists(root / str(step))):
            notes.append(f"checkpoint {step} is incomplete (its writer was stopped): passed over")
            continue
        reason = _damage(root / str(step))
        if not reason:
            if first_damage:
                notes.append(f"using checkpoint {step}, the newest intact one")
            return step, notes
        first_damage = first_damage or f"checkpoint {step}: {reason}"
        notes.append(f"checkpoint {step} is damaged: {reason}; passed over")
        if damaged is not None:
            damaged.add(step)
    if first_damage:
        raise CheckpointError(
            f"every checkpoint in {root} is damaged ({first_damage}); put back a good copy, or "
            "choose another --workdir to start from the beginning"
        )
    for note in notes:
        logger.warning("%s", note)
    return None


def _damage(directory: Path) -> str:
    reason = manifest.damage(directory, jax.process_index(), jax.process_count())
    finders = cluster.processes_without(not reason)
    return reason or (f"process {finders[0]} found damage" if finders else "")


def _score(directory: Path) -> float:
    value = _read_json(directory / "metrics.json").get(BEST_METRIC)
    return float("inf") if value is None else float(value)


def _remove(directory: Path) -> None:
    """Deletes a checkpoint, manifest first: interrupted, it is incomplete and not damaged."""
    (directory / manifest.NAME).unlink(missing_ok=True)
    if directory.exists():
        shutil.rmtree(directory)


def _remove_for_good(directory: Path, patience: float = 5.0, quiet: float = 0.2) -> None:
    """Deletes a folder that Orbax's threads may still be writing to after one of them failed.

    Until it has stayed away for `quiet` seconds, or `patience` seconds have passed: what then comes
    back has no manifest, so it is incomplete and goes with the next checkpoint.
    """
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        shutil.rmtree(directory, ignore_errors=True)
        time.sleep(quiet)
        if not directory.exists():
            return


def _json(values: Any) -> str:
    return json.dumps(values, ensure_ascii=False, indent=1) + "\n"


def _write(directory: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (directory / name).write_text(text, encoding="utf-8")


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
