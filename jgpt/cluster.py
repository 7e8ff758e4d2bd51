"""Several processes, one run: who the others are, agreeing with them, and losing one of them.

`detect` reads the environment, `join` starts `jax.distributed`, and the functions after them make
all processes decide alike. A process that loses another can only end: `Supervisor` sees to it that
this takes one line and an exit status of its own, also where JAX's coordination service aborts the
process from a thread that Python knows nothing of.
"""

import os
import re
import signal
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from jgpt.config import ConfigError

LOST_PEER = 75
"""Exit status (EX_TEMPFAIL of sysexits.h): the same command, run again, goes on."""

FIRST_PORT, PORTS = 61440, 4096
"""Ports for the coordinator; a job's number picks one."""

TPU_DEVICES = ("/dev/accel0", "/dev/vfio/0")
TPU_WORKERS = (
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/"
    "worker-network-endpoints"
)
SIGNS_OF_LOSS = (
    "gloo",
    "nccl",
    "connection reset",
    "connection closed",
    "socket closed",
    "unavailable:",
    "coordination",
    "heartbeat",
    "barrier",
)
"""In lower case, words of the errors that follow the loss of a process, from JAX's transports."""


class PeerLost(RuntimeError):
    """Another process of the run is gone; this one cannot go on alone."""


@dataclass(frozen=True)
class Cluster:
    """How this process finds the others.

    Attributes:
        kind: where that was found out, for the log.
        coordinator: host:port of process 0; '' where JAX finds all of it out by itself.
        num_processes, process_id: of the run; 0 with an empty `coordinator`.
        local_devices: numbers of the accelerators of this host that are this process's; None for
            all that it sees.
    """

    kind: str
    coordinator: str = ""
    num_processes: int = 0
    process_id: int = 0
    local_devices: tuple[int, ...] | None = None


def detect(
    environment: Mapping[str, str], tpu_workers: Callable[[], int] | None = None
) -> Cluster | None:
    """The cluster that the environment describes; None for a process that is alone.

    In this order: `JGPT_COORDINATOR` with `JGPT_NUM_PROCESSES` and `JGPT_PROCESS_ID`;
    `JGPT_DISTRIBUTED` (0: alone, 1: JAX detects); a JobSet with `JGPT_NUM_PROCESSES`; SLURM; TPU
    slices on GKE; TPU pods.

    Args:
        environment: variables.
        tpu_workers: tells the number of hosts of this TPU VM's slice, 1 elsewhere.

    Raises:
        ConfigError: variables that are there are incomplete or contradict one another.
    """
    if "JGPT_COORDINATOR" in environment:
        return _explicit(environment)
    if environment.get("JGPT_DISTRIBUTED") == "0":
        return None
    if environment.get("JGPT_DISTRIBUTED") == "1" and "SLURM_STEP_NODELIST" not in environment:
        return Cluster("JGPT_DISTRIBUTED=1, the rest by JAX")
    if "JOBSET_NAME" in environment and "JGPT_NUM_PROCESSES" in environment:
        return _jobset(environment)
    if "SLURM_STEP_NODELIST" in environment and "SLURM_PROCID" in environment:
        return _slurm(environment)
    slices = _number(environment, "MEGASCALE_NUM_SLICES", "1")
    hosts = len(environment.get("TPU_WORKER_HOSTNAMES", "").split(","))
    if hosts > 1 or slices > 1:
        return Cluster(f"TPU slices on GKE ({slices} x {hosts} hosts)")
    hosts = (tpu_workers or count_tpu_workers)()
    return Cluster(f"TPU pod of {hosts} hosts") if hosts > 1 else None


def _explicit(environment: Mapping[str, str]) -> Cluster:
    address = environment["JGPT_COORDINATOR"]
    if not re.fullmatch(r".+:\d+", address):
        raise ConfigError(f"JGPT_COORDINATOR is {address!r}; write HOST:PORT of process 0")
    count = _number(environment, "JGPT_NUM_PROCESSES")
    index = _number(environment, "JGPT_PROCESS_ID")
    if not 0 <= index < count:
        raise ConfigError(
            f"JGPT_PROCESS_ID is {index} and JGPT_NUM_PROCESSES {count}; number the processes from "
            "0 to one less than there are"
        )
    return Cluster("JGPT_COORDINATOR", address, count, index)


def _jobset(environment: Mapping[str, str]) -> Cluster | None:
    """Pods of one replicated job: pod `JOB_COMPLETION_INDEX` of job `JOB_INDEX`."""
    count = _number(environment, "JGPT_NUM_PROCESSES")
    pods = _number(environment, "JGPT_PODS_PER_JOB", str(count))
    job, pod = (_number(environment, name, "0") for name in ("JOB_INDEX", "JOB_COMPLETION_INDEX"))
    name = environment["JOBSET_NAME"]
    host = f"{name}-{environment.get('REPLICATED_JOB_NAME', 'train')}-0-0.{name}"
    address = f"{host}:{FIRST_PORT}"
    return Cluster("JobSet", address, count, job * pods + pod) if count > 1 else None


def _slurm(environment: Mapping[str, str]) -> Cluster | None:
    """Tasks of one `srun`. JAX's own detection would give a task one GPU even if it has all."""
    count = _number(environment, "SLURM_NTASKS")
    if count < 2:
        return None
    host = first_host(environment["SLURM_STEP_NODELIST"])
    port = FIRST_PORT + _number(environment, "SLURM_JOB_ID") % PORTS
    alone = count <= _number(environment, "SLURM_STEP_NUM_NODES", "1")
    devices = None
    if not alone and "SLURM_GPUS_PER_TASK" not in environment:
        devices = (_number(environment, "SLURM_LOCALID"),)
    return Cluster("SLURM", f"{host}:{port}", count, _number(environment, "SLURM_PROCID"), devices)


def first_host(nodes: str) -> str:
    """The first of SLURM's node list: 'n[03-05,9],m' is 'n03'."""
    found = re.match(r"([^,\[]+)(?:\[([^,\-\]]+)[^\]]*\]([^,]*))?", nodes)
    return "".join(part or "" for part in found.groups()) if found else nodes


def _number(environment: Mapping[str, str], name: str, default: str | None = None) -> int:
    value = environment.get(name, default)
    if value is None:
        raise ConfigError(f"the environment has no {name}, which the other processes' place needs")
    try:
        return int(value)
    except ValueError:
        raise ConfigError(f"the environment's {name} is {value!r}; it must be a number") from None


def count_tpu_workers() -> int:
    """Hosts of the TPU slice that this machine is part of; 1 where it is part of none."""
    if "TPU_SKIP_MDS_QUERY" in os.environ or not any(map(os.path.exists, TPU_DEVICES)):
        return 1
    request = urllib.request.Request(TPU_WORKERS, headers={"Metadata-Flavor": "Google"})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return len(answer.read().decode().split(","))
    except (urllib.error.URLError, TimeoutError):
        return 1


def join(cluster: Cluster, timeout: int = 300) -> None:
    """Meets the other processes, and says on standard error as which one.

    Args:
        cluster: from `detect`.
        timeout: seconds to wait for them.

    Raises:
        ConfigError: they did not come.
    """
    import jax

    where = {}
    if cluster.coordinator:
        where = {
            "coordinator_address": cluster.coordinator,
            "num_processes": cluster.num_processes,
            "process_id": cluster.process_id,
            "local_device_ids": cluster.local_devices,
            "cluster_detection_method": "deactivate",
        }
    try:
        jax.distributed.initialize(**where, initialization_timeout=timeout)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise ConfigError(
            f"the processes of the run did not meet within {timeout} s ({cluster.kind}"
            f"{cluster.coordinator and ', coordinator '}{cluster.coordinator}: {reason}); start "
            "all of them, or set JGPT_DISTRIBUTED=0 for one alone"
        ) from error
    print(
        f"process {jax.process_index()} of {jax.process_count()}, found by {cluster.kind}"
        + (f", coordinator {cluster.coordinator}" if cluster.coordinator else ""),
        file=sys.stderr,
        flush=True,
    )


# --- agreeing; every process calls these, in the same order ---------------------------------------


def of_first(values: Sequence[int]) -> list[int]:
    """Process 0's numbers, in every process."""
    import jax
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return list(values)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(values))))
    mine = np.zeros(size, np.int32)
    if jax.process_index() == 0:
        mine[:] = values
    return multihost_utils.broadcast_one_to_all(mine).tolist()


def first_says(answer: bool) -> bool:
    """Process 0's answer, in every process."""
    return bool(of_first([answer])[0])


def processes_without(answer: bool) -> list[int]:
    """The processes that answered False."""
    import jax
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return [] if answer else [0]
    answers = multihost_utils.process_allgather(np.array(bool(answer)))
    return np.flatnonzero(~answers).tolist()


def barrier(name: str) -> None:
    """Until every process is here."""
    import jax
    from jax.experimental import multihost_utils

    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def check_shared(folder: Path) -> None:
    """Raises ConfigError unless every process sees the same files in `folder`."""
    import jax

    if jax.process_count() == 1:
        return
    [number] = of_first([int.from_bytes(os.urandom(3), "little")])
    file = folder / f".seen-by-all-{number}"
    if jax.process_index() == 0:
        file.touch()
    barrier("shared folder")
    os.listdir(folder)  # a network file system then looks again
    blind = processes_without(file.exists())
    if jax.process_index() == 0:
        file.unlink()
    if blind:
        raise ConfigError(
            f"process {blind[0]} does not see what process 0 writes to {str(folder)!r}; give "
            "--workdir a folder that all processes share"
        )


# --- losing one -----------------------------------------------------------------------------------


def is_loss(error: BaseException) -> bool:
    """Whether an error says that another process is gone (never in a run of one process)."""
    import jax

    text = str(error).lower()
    return jax.process_count() > 1 and any(sign in text for sign in SIGNS_OF_LOSS)


def lost_line(workdir: Path, reason: str) -> str:
    """What a user reads when a process of the run is gone."""
    found = [int(f.parent.name) for f in (workdir / "checkpoints").glob("[0-9]*/manifest.json")]
    place = f"goes on from checkpoint {max(found)}" if found else "starts from the beginning"
    return f"another process of the run was lost ({reason}); the same command {place}"


class Supervisor:
    """A parent that outlives what the coordination service does to a process.

    `start` forks. The child goes on and trains; the parent hands signals on to it, waits, and turns
    an abort into one line and `LOST_PEER`. Must be called before JAX has threads.
    """

    def __init__(self, workdir: Path):
        self._workdir = workdir
        self._child = 0

    def start(self) -> None:
        """Returns in the child only; the parent ends with the child's exit status."""
        sys.stdout.flush()
        sys.stderr.flush()
        watched, held = os.pipe()
        self._child = os.fork()
        if not self._child:
            os.close(held)
            threading.Thread(target=_end_with_parent, args=(watched,), daemon=True).start()
            return
        os.close(watched)
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._hand_on)
        os._exit(self._status(os.waitstatus_to_exitcode(os.waitpid(self._child, 0)[1])))

    def _hand_on(self, signum: int, _: object) -> None:
        os.kill(self._child, signum)

    def _status(self, code: int) -> int:
        if code == -signal.SIGABRT:
            line = lost_line(self._workdir, "found by the coordination service; see above")
            print(f"error: {line}", file=sys.stderr, flush=True)
            return LOST_PEER
        return code if code >= 0 else 128 - code


def _end_with_parent(pipe: int) -> None:
    os.read(pipe, 1)  # ends when the parent does, which never writes
    os._exit(128 + signal.SIGKILL)


def part() -> None:
    """Ends the work in common, once every process has come to its end."""
    import jax

    barrier("end")
    jax.distributed.shutdown()


def leave(status: int) -> NoReturn:
    """Ends this process of several at once: others that wait for it then notice."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
