"""A whole run, small: what it records, leaves behind, and survives."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jgpt.config import ConfigError, from_config_dict
from jgpt.data.records import DataError
from jgpt.training import loop
from jgpt.training.metrics import last_per_step, read_json_lines
from jgpt.training.state_files import CheckpointError
from tests.training.tiny import command_line, settings

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache) -> tuple[Path, dict]:
    """(workdir, final figures) of a finished run."""
    workdir = tmp_path_factory.mktemp("run")
    return workdir, loop.run(from_config_dict(settings(cache)), workdir)


def records(workdir: Path, kind: str) -> list[dict]:
    return last_per_step(read_json_lines(workdir / "metrics.jsonl"), kind)


def test_every_step_has_a_record_with_finite_figures(finished):
    train = records(finished[0], "train")
    assert [r["step"] for r in train] == list(range(1, 13))
    for record in train:
        for name in ("loss", "grad_norm", "learning_rate", "update_norm", "param_norm", "tokens"):
            assert math.isfinite(record[name])
        assert record["loss"] == np.float32(record["loss"])
    shown = [r["step"] for r in train if "tokens_per_second" in r]
    assert shown == [2, 4, 6, 8, 10, 12]
    assert all(0 <= r["data_wait_fraction"] <= 1 for r in train if r["step"] in shown)


def test_loss_falls_and_validation_agrees_with_it(finished):
    train, validation = records(finished[0], "train"), records(finished[0], "validation")
    assert [r["step"] for r in validation] == [6, 12]
    assert train[-1]["loss"] < train[0]["loss"] - 0.1
    last = validation[-1]
    assert last["validation_loss"] == pytest.approx(train[-1]["loss"], abs=0.3)
    assert last["validation_perplexity"] == pytest.approx(math.exp(last["validation_loss"]))
    # Bytes: three to a character of Japanese.
    ratio = last["validation_bits_per_character"] / (last["validation_loss"] / math.log(2))
    assert 2.0 < ratio < 3.2


def test_baselines_are_fitted_on_exactly_the_tokens_seen(finished):
    workdir, final = finished
    assert final["tokens_seen"] == sum(r["tokens"] for r in records(workdir, "train"))
    assert final["trigram_loss"] < final["unigram_loss"] < math.log(300)


def test_samples_are_judged_and_clean(finished):
    workdir, final = finished
    samples = read_json_lines(workdir / "samples.jsonl")
    assert [s["step"] for s in samples] == [6, 12, 12, 12]
    assert final["replacement_characters"] == 0
    assert 0 <= final["wellformed_share"] <= 1
    assert all("sentences" in s for s in samples)


def test_checkpoints_keep_the_last_and_the_best(finished):
    steps = {int(p.name) for p in (finished[0] / "checkpoints").iterdir()}
    assert steps == {8, 12}


def test_a_finished_run_is_only_evaluated_again(finished, cache):
    workdir, final = finished
    before = (workdir / "metrics.jsonl").read_text().count('"train"')
    again = loop.run(from_config_dict(settings(cache)), workdir)
    assert (workdir / "metrics.jsonl").read_text().count('"train"') == before
    for name in ("step", "validation_loss", "tokens_seen", "trigram_loss", "wellformed_share"):
        assert again[name] == final[name]


def test_another_tokenizer_is_refused_in_a_used_workdir(finished, cache):
    config = from_config_dict(settings(cache, tokenizer__kind="char"))
    with pytest.raises(ConfigError, match=r"tokenizer\.kind is 'char'.*made with 'byte'"):
        loop.run(config, finished[0])


def test_another_model_is_refused_in_a_used_workdir(finished, cache):
    config = from_config_dict(settings(cache, model__hidden_size=64))
    with pytest.raises(CheckpointError, match=r"model\.hidden_size was 32 and is 64"):
        loop.run(config, finished[0])


BAD_SETTINGS = [
    ({"model__vocab_size": 100}, ConfigError, r"model\.vocab_size is 100"),
    ({"data__batch_size": 4}, ConfigError, r"data\.batch_size \(4\) cannot be cut into 8"),
    ({"data__sources": "text:/nowhere/*.txt"}, DataError, "/nowhere"),
    ({"data__sources": "jsonl:$NO_SUCH_VARIABLE/x.jsonl"}, DataError, "NO_SUCH_VARIABLE"),
    ({"mesh__data": 3}, ConfigError, "does not fit 8 devices"),
]


@pytest.mark.parametrize("changes,error,message", BAD_SETTINGS)
def test_bad_settings_end_in_one_clear_line(tmp_path, cache, changes, error, message):
    with pytest.raises(error, match=message) as caught:
        loop.run(from_config_dict(settings(cache, **changes)), tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_an_empty_corpus_is_refused(tmp_path, cache):
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    config = from_config_dict(settings(cache, data__sources=f"text:{empty}"))
    with pytest.raises(DataError, match=r"empty\.txt"):
        loop.run(config, tmp_path / "run")


def test_a_workdir_that_cannot_be_written_is_refused(tmp_path, cache):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot be written.*--workdir"):
        loop.run(from_config_dict(settings(cache)), tmp_path / "file" / "run")


def test_a_full_disk_ends_the_run_with_one_line(tmp_path, cache):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(loop.TrainingError, match="is full; free some space"):
        loop.run(from_config_dict(settings(cache)), tmp_path)


def test_steps_that_are_not_finite_end_the_run(tmp_path, cache):
    config = settings(
        cache, optimizer__learning_rate=1e30, optimizer__warmup_steps=1, train__max_nonfinite=3
    )
    with pytest.raises(loop.TrainingError, match="not finite in 3 steps"):
        loop.run(from_config_dict(config), tmp_path)


def test_data_that_ends_ends_the_run(tmp_path, cache):
    """One epoch of a few documents: fewer steps than asked for, and a checkpoint of the last."""
    text = tmp_path / "text.jsonl"
    lines = [json.dumps({"text": f"{i}番目の文です。" * 4}, ensure_ascii=False) for i in range(40)]
    text.write_text("\n".join(lines), encoding="utf-8")
    changes = {
        "data__sources": f"jsonl:{text}",
        "data__epochs": 1,
        "train__steps": 1000,
        "train__eval_every": 0,
        "sample__final_samples": 0,
    }
    config = from_config_dict(settings(cache, **changes))
    final = loop.run(config, tmp_path / "run")
    assert 1 <= final["step"] < 100
    assert (tmp_path / "run" / "checkpoints" / str(final["step"])).is_dir()
    assert final["epochs"] == [1.0]


class Process:
    """`jgpt.main` on one device in a process of its own."""

    def __init__(self, workdir: Path, arguments: list[str]):
        self.metrics = workdir / "metrics.jsonl"
        environment = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "jgpt.main", "--config=configs/default.py",
             f"--workdir={workdir}", *arguments],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def signal_after(self, step: int, signum: int) -> None:
        """Sends the signal once the step's record is there."""
        while self._process.poll() is None:
            if any(r.get("step", 0) >= step for r in read_json_lines(self.metrics)):
                self._process.send_signal(signum)
                return
            time.sleep(0.005)

    def end(self) -> tuple[int, str]:
        """(exit status, what it printed)."""
        output, _ = self._process.communicate(timeout=300)
        return self._process.returncode, output


@pytest.mark.slow
def test_killed_and_stopped_it_repeats_the_uninterrupted_run_bit_for_bit(tmp_path, cache):
    steps, random_step = 60, random.SystemRandom().randrange(18, 40)
    arguments = command_line(
        cache, train__steps=steps, train__eval_every=0, train__sample_every=0,
        checkpoint__every=7, sample__final_samples=0,
    )  # fmt: skip
    status, output = Process(tmp_path / "whole", arguments).end()
    assert status == 0, output

    stopped = Process(tmp_path / "parts", arguments)
    stopped.signal_after(10, signal.SIGTERM)
    status, output = stopped.end()
    assert status == 128 + signal.SIGTERM, output
    assert "stopped by SIGTERM after step" in output

    killed = Process(tmp_path / "parts", arguments)
    killed.signal_after(random_step, signal.SIGKILL)
    assert killed.end()[0] == -signal.SIGKILL

    status, output = Process(tmp_path / "parts", arguments).end()
    assert status == 0 and "resumed after step" in output, output
    whole, parts = records(tmp_path / "whole", "train"), records(tmp_path / "parts", "train")
    assert [r["step"] for r in parts] == list(range(1, steps + 1))
    assert [r["loss"] for r in parts] == [r["loss"] for r in whole], f"killed at {random_step}"
    assert [r["grad_norm"] for r in parts] == [r["grad_norm"] for r in whole]
