"""Who the processes of a run are, from the environment; which rows each of them gives."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jgpt import sharding
from jgpt.cluster import Cluster, detect, first_host, lost_line
from jgpt.config import ConfigError, MeshConfig

SLURM = {
    "SLURM_JOB_ID": "4100",
    "SLURM_STEP_NODELIST": "gpu[07-10,12]",
    "SLURM_STEP_NUM_NODES": "4",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
}
JOBSET = {
    "JOBSET_NAME": "run",
    "REPLICATED_JOB_NAME": "train",
    "JOB_INDEX": "1",
    "JOB_COMPLETION_INDEX": "3",
    "JGPT_NUM_PROCESSES": "8",
    "JGPT_PODS_PER_JOB": "4",
}
EXPLICIT = {"JGPT_COORDINATOR": "a:1", "JGPT_NUM_PROCESSES": "2", "JGPT_PROCESS_ID": "1"}
FOUND = {
    "alone": ({}, 1, None),
    "explicit": (EXPLICIT, 1, Cluster("JGPT_COORDINATOR", "a:1", 2, 1)),
    "explicit inside SLURM": (SLURM | EXPLICIT, 1, Cluster("JGPT_COORDINATOR", "a:1", 2, 1)),
    "told to be alone": (SLURM | {"JGPT_DISTRIBUTED": "0"}, 8, None),
    "told to find out": (
        {"JGPT_DISTRIBUTED": "1"},
        1,
        Cluster("JGPT_DISTRIBUTED=1, the rest by JAX"),
    ),
    "SLURM": (SLURM, 1, Cluster("SLURM", "gpu07:61444", 4, 2)),
    "SLURM, a task for each GPU": (
        SLURM | {"SLURM_NTASKS": "32", "SLURM_PROCID": "17", "SLURM_LOCALID": "1"},
        1,
        Cluster("SLURM", "gpu07:61444", 32, 17, (1,)),
    ),
    "SLURM, one task": (SLURM | {"SLURM_NTASKS": "1"}, 1, None),
    "JobSet": (JOBSET, 1, Cluster("JobSet", "run-train-0-0.run:61440", 8, 7)),
    "GKE": ({"TPU_WORKER_HOSTNAMES": "a,b"}, 1, Cluster("TPU slices on GKE (1 x 2 hosts)")),
    "GKE, one host": ({"TPU_WORKER_HOSTNAMES": "localhost"}, 1, None),
    "TPU pod": ({}, 4, Cluster("TPU pod of 4 hosts")),
}  # fmt: skip
WRONG = {
    "no port": (EXPLICIT | {"JGPT_COORDINATOR": "a"}, "JGPT_COORDINATOR is 'a'"),
    "no count": ({"JGPT_COORDINATOR": "a:1"}, "has no JGPT_NUM_PROCESSES"),
    "no number": (EXPLICIT | {"JGPT_NUM_PROCESSES": "two"}, "JGPT_NUM_PROCESSES is 'two'"),
    "numbered from 1": (EXPLICIT | {"JGPT_PROCESS_ID": "2"}, "JGPT_PROCESS_ID is 2"),
}


@pytest.mark.parametrize("case", FOUND)
def test_the_environment_says_who_the_others_are(case):
    environment, hosts, expected = FOUND[case]
    assert detect(environment, lambda: hosts) == expected


@pytest.mark.parametrize("case", WRONG)
def test_an_incomplete_environment_is_one_clear_line(case):
    environment, message = WRONG[case]
    with pytest.raises(ConfigError, match=message):
        detect(environment, lambda: 1)


@pytest.mark.parametrize(
    "nodes, first",
    [("n1", "n1"), ("n1,n2", "n1"), ("n[03-05,9],m", "n03"), ("n[3,5]-ib", "n3-ib")],
)
def test_the_first_host_of_a_node_list(nodes, first):
    assert first_host(nodes) == first


def test_the_line_about_a_lost_process_names_the_newest_complete_checkpoint(tmp_path):
    assert "starts from the beginning" in lost_line(tmp_path, "why")
    for step in (5, 40):
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
    (tmp_path / "checkpoints/5/manifest.json").touch()
    line = lost_line(tmp_path, "why")
    assert line.endswith("goes on from checkpoint 5") and "(why)" in line


@pytest.mark.parametrize(
    "rows, shares",
    [
        ([{0, 1}, {2, 3}], [(0, 2), (1, 2)]),
        ([{2, 3}, {0, 1}], [(1, 2), (0, 2)]),
        ([{0, 1}, {0, 1}], [(0, 1), (0, 1)]),  # a model cut up over two hosts
        ([{0}, {0}, {1}, {1}], [(0, 2), (0, 2), (1, 2), (1, 2)]),
        ([{0, 1, 4, 5}, {2, 3, 6, 7}], [(0, 2), (1, 2)]),  # hosts of 2 x 2 chips in a 2 x 4 slice
    ],
)
def test_each_process_gives_the_rows_that_its_devices_hold(rows, shares):
    rows = dict(enumerate(rows))
    assert [sharding._share(rows, process) for process in rows] == shares


def test_rows_that_two_processes_share_in_part_are_refused():
    with pytest.raises(ConfigError, match="cannot share the 3 parts"):
        sharding._share({0: {0, 1}, 1: {1, 2}}, 0)


def test_one_process_gives_all_rows():
    assert sharding.row_share(sharding.make_mesh(MeshConfig(fsdp=4, tensor=2))) == (0, 1)


SUPERVISED = """
import os, sys, time
from pathlib import Path
from jgpt.cluster import Supervisor
Supervisor(Path(sys.argv[1])).start()
print(os.getpid(), flush=True)
exec(sys.argv[2])
"""


def supervised(folder: Path, body: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", SUPERVISED, str(folder), body],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    "body, status", [("os.abort()", 75), ("sys.exit(3)", 3), ("os.kill(os.getpid(), 9)", 137)]
)
def test_an_abort_becomes_one_line_and_a_status_and_others_stay(tmp_path, body, status):
    process = supervised(tmp_path, body)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status
    said = [line for line in errors.splitlines() if line.startswith("error: another process")]
    assert len(said) == (status == 75), errors


def test_a_signal_to_the_parent_reaches_the_child_and_its_death_ends_the_child(tmp_path):
    asked = supervised(tmp_path, "time.sleep(60)")
    asked.stdout.readline()
    asked.send_signal(signal.SIGTERM)
    assert asked.wait(20) == 128 + signal.SIGTERM

    killed = supervised(tmp_path, "time.sleep(60)")
    killed.stdout.readline()
    killed.kill()
    killed.communicate(timeout=20)  # the child holds standard output open as long as it lives
