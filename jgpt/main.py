"""Trains a model: `python -m jgpt.main --config=configs/NAME.py [--config.x.y=VALUE] [--workdir=DIR]`.

Killed or stopped, the same command goes on from where it was. Exit status: 0 finished; 2 something
to correct, said in one line on standard error; 75 another process of the run was lost; 128 + n
stopped by signal n, saved.
"""  # noqa: E501

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags, logging

from jgpt import cluster
from jgpt.command_line import CONFIG, parse, refuse
from jgpt.config import Config, ConfigError, from_config_dict
from jgpt.malloc import keep_freed_buffers

flags.declare_key_flag("config")
WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run; runs/NAME by default")


def train(config: Config, workdir: Path) -> int:
    """Runs the training loop; returns the exit status."""
    # Imported late: the allocator must be told before JAX takes memory, and --help needs no JAX.
    from jgpt.data.records import DataError
    from jgpt.interop.start import prepare
    from jgpt.training import loop
    from jgpt.training.signals import Stopped
    from jgpt.training.state_files import CheckpointError

    try:
        config, start = prepare(config, workdir)
        loop.run(config, workdir, start)
    except (ConfigError, DataError, CheckpointError, loop.TrainingError) as error:
        return refuse(error)
    except cluster.PeerLost as error:
        print(f"error: {cluster.lost_line(workdir, str(error))}", file=sys.stderr)
        return cluster.LOST_PEER
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return 128 + stopped.signum
    return 0


def train_as_one_of(found: cluster.Cluster, config: Config, workdir: Path) -> int:
    """`train` in a process that shares the run with others; a failure ends it here."""
    cluster.Supervisor(workdir).start()
    try:
        cluster.join(found)
        status = train(config, workdir)
        if status in (0, 128 + signal.SIGTERM):
            cluster.part()
            return status
    except ConfigError as error:
        status = refuse(error)
    except Exception:
        traceback.print_exc()
        status = 1
    return cluster.leave(status)


def main(_: Sequence[str]) -> int:
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    try:
        config = from_config_dict(CONFIG.value)
        found = cluster.detect(os.environ)
    except ConfigError as error:
        return refuse(error)
    workdir = Path(WORKDIR.value or os.path.join("runs", config.name))
    if config.train.keep_malloc and os.environ.get("JAX_PLATFORMS", "cpu") == "cpu":
        keep_freed_buffers()
    return train_as_one_of(found, config, workdir) if found else train(config, workdir)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
