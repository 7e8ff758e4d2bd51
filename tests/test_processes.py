"""Two processes on loopback: they train as one, end as one, and any number goes on from there."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.training.tiny import command_line

ROOT = Path(__file__).parents[1]

STEPS = range(35, 50)
"""Where the data end: somewhere here, after one pass over a corpus of 35 documents."""
WAIT = 240


class Job:
    """`jgpt.main` in `count` processes of one CPU device each."""

    def __init__(self, folder: Path, workdir: str, count: int, **changes):
        self.workdir = folder / workdir
        self.output = folder / f"{workdir}-{time.monotonic_ns()}.txt"
        self.metrics = self.workdir / "metrics.jsonl"
        settings = {
            "data.microworld_documents": 35,
            "data.epochs": 1,
            "train.steps": STEPS.stop,
            "train.eval_every": 0,
            "train.sample_every": 0,
            "checkpoint.every": 5,
            "sample.final_samples": 0,
        }
        arguments = command_line(folder / "cache", **settings | changes)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        own = {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
        self.processes = []
        for index in range(count):
            if count > 1:
                own |= {
                    "JGPT_COORDINATOR": address,
                    "JGPT_NUM_PROCESSES": str(count),
                    "JGPT_PROCESS_ID": str(index),
                }
            command = [sys.executable, "-m", "jgpt.main", "--config=configs/default.py"]
            with self.output.open("ab") as output:
                process = subprocess.Popen(
                    [*command, f"--workdir={self.workdir}", *arguments],
                    cwd=ROOT,
                    env={**os.environ, **own},
                    stdout=output,
                    stderr=output,
                )
            self.processes.append(process)

    def after(self, step: int, index: int, signum: int) -> None:
        """Sends the signal to one process once the step's record and a checkpoint are there."""
        end = time.monotonic() + WAIT
        while self.processes[index].poll() is None and time.monotonic() < end:
            saved = any(self.metrics.parent.glob("checkpoints/*/manifest.json"))
            if saved and any(record["step"] >= step for record in records(self.metrics)):
                return self.processes[index].send_signal(signum)
            time.sleep(0.02)
        raise AssertionError(self.output.read_text())

    def end(self) -> tuple[list[int], str]:
        """(exit statuses, what all printed)."""
        try:
            statuses = [process.wait(WAIT) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        return statuses, self.output.read_text()


def records(path: Path) -> list[dict]:
    """Training records; the last one of a step counts."""
    found = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
        except ValueError:  # cut off by a kill, or still being written
            continue
        if record["kind"] == "train":
            found[record["step"]] = record
    return [found[step] for step in sorted(found)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def whole(folder):
    """Records of an uninterrupted run of one process, to the end of the data."""
    statuses, output = Job(folder, "whole", 1).end()
    assert statuses == [0], output
    [end] = re.findall(r"the data ends at step (\d+)", output)
    assert int(end) in STEPS
    return records(folder / "whole/metrics.jsonl")


def test_two_end_when_one_is_killed_or_told_to_stop_and_one_alone_goes_on(folder, whole):
    killed = Job(folder, "parts", 2)
    at = random.SystemRandom().randrange(6, 13)
    victim = random.SystemRandom().randrange(2)
    killed.after(at, victim, signal.SIGKILL)
    statuses, output = killed.end()
    about = f"killed process {victim} after step {at}\n{output}"
    assert statuses[victim] == -signal.SIGKILL and statuses[1 - victim] == 75, about
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, about
    lost = "another process of the run was lost .* goes on from checkpoint \\d+"
    assert re.search(lost, errors[0])
    assert "Traceback" not in output

    stopped = Job(folder, "parts", 2, **{"checkpoint.every": 1000})
    stopped.after(at + 5, 1, signal.SIGTERM)
    statuses, output = stopped.end()
    assert statuses == [128 + signal.SIGTERM] * 2, about + output
    assert "resumed after step" in output
    steps = re.findall(r"stopped by SIGTERM after step (\d+), saved", output)
    assert len(steps) == 2 and len(set(steps)) == 1, output
    assert (folder / "parts/checkpoints" / steps[0] / "manifest.json").exists()
    assert len(list((folder / "parts/checkpoints" / steps[0]).glob("data-*.json"))) == 2

    statuses, output = Job(folder, "parts", 1).end()
    assert statuses == [0] and f"resumed after step {steps[0]}" in output, about + output
    check_equal(records(folder / "parts/metrics.jsonl"), whole, about)


@pytest.mark.slow
def test_four_go_on_from_one_and_end_well(folder, whole, count=4):
    one = Job(folder, f"grown-{count}", 1)
    one.after(random.SystemRandom().randrange(6, 20), 0, signal.SIGKILL)
    one.end()
    statuses, output = Job(folder, f"grown-{count}", count, **{"sample.final_samples": 2}).end()
    assert statuses == [0] * count and "resumed after step" in output, output
    check_equal(records(folder / f"grown-{count}/metrics.jsonl"), whole, output)
    assert json.loads((folder / f"grown-{count}/final.json").read_text())["replayed"]


def check_equal(found: list[dict], whole: list[dict], about: str) -> None:
    """Other process counts: the same tokens and end; losses differ by the order of sums only."""
    assert [record["step"] for record in found] == list(range(1, len(whole) + 1)), about
    assert [record["tokens"] for record in found] == [record["tokens"] for record in whole]
    for mine, theirs in zip(found, whole, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5), about
