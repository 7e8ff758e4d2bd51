"""Trains a model: `python -m jgpt.main --config=configs/NAME.py [--config.x.y=VALUE] [--workdir=DIR]`.

Killed or stopped, the same command goes on from where it was. Exit status: 0 finished; 2 something
to correct, said in one line on standard error; 128 + n stopped by signal n, saved.
"""  # noqa: E501

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags, logging

from jgpt.command_line import CONFIG, parse, refuse
from jgpt.config import Config, ConfigError, from_config_dict
from jgpt.malloc import keep_freed_buffers

flags.declare_key_flag("config")
WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run; runs/NAME by default")


def join_cluster() -> None:
    """Joins the other processes of the run where the environment says that there are some."""
    import jax

    if coordinator := os.environ.get("JGPT_COORDINATOR"):
        jax.distributed.initialize(
            coordinator,
            int(os.environ["JGPT_NUM_PROCESSES"]),
            int(os.environ["JGPT_PROCESS_ID"]),
        )
    elif os.environ.get("JGPT_DISTRIBUTED") == "1":
        jax.distributed.initialize()


def train(config: Config) -> int:
    """Runs the training loop; returns the exit status."""
    # Imported late: the allocator must be told before JAX takes memory, and --help needs no JAX.
    from jgpt.data.records import DataError
    from jgpt.interop.start import prepare
    from jgpt.training import loop
    from jgpt.training.signals import Stopped
    from jgpt.training.state_files import CheckpointError

    join_cluster()
    workdir = WORKDIR.value or os.path.join("runs", config.name)
    try:
        config, start = prepare(config, Path(workdir))
        loop.run(config, workdir, start)
    except (ConfigError, DataError, CheckpointError, loop.TrainingError) as error:
        return refuse(error)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return 128 + stopped.signum
    return 0


def main(_: Sequence[str]) -> int:
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    try:
        config = from_config_dict(CONFIG.value)
    except ConfigError as error:
        return refuse(error)
    if config.train.keep_malloc and os.environ.get("JAX_PLATFORMS", "cpu") == "cpu":
        keep_freed_buffers()
    return train(config)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
