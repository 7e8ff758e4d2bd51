"""Says what a config will do on a TPU: `python -m jgpt.plan --config=configs/NAME.py --topology=v5p-128`.

Compiles the real training step for the named topology with the TPU compiler, without a TPU, and
shows memory, work and an estimate of time. `--search` looks for a better mesh, remat policy and
number of microbatches. Exit status: 0 fits; 1 does not fit; 2 something to correct, in one line.
"""  # noqa: E501

import os
import sys
from collections.abc import Sequence

from absl import app, flags, logging

from jgpt.command_line import CONFIG, parse, refuse
from jgpt.config import Config, ConfigError, from_config_dict

flags.declare_key_flag("config")
TOPOLOGY = flags.DEFINE_string("topology", None, "v5e-16, v5p-128, v5p:4x4x4, 2xv5e-256, ...")
SEARCH = flags.DEFINE_bool("search", False, "try meshes, remat policies and microbatches")
TRIES = flags.DEFINE_integer("tries", 8, "programs that --search compiles at most", 1)
JSON = flags.DEFINE_bool("json", False, "end with one JSON line")
PLOT = flags.DEFINE_string("plot", None, "image of memory by part")
TIMEOUT = flags.DEFINE_float("timeout", None, "seconds that one compilation may take")
FRESH = flags.DEFINE_bool("fresh", False, "compile even what was planned before")


def plan(config: Config) -> int:
    """Plans, shows, and gives the exit status."""
    from rich.console import Console

    from jgpt.planning import report, search
    from jgpt.planning.step import PlanError, make_plan
    from jgpt.planning.topologies import parse_topology

    console = Console(width=None if sys.stdout.isatty() else 120)
    options = {"timeout": TIMEOUT.value, "fresh": FRESH.value}
    try:
        if not TOPOLOGY.value:
            raise ConfigError("give --topology=NAME, such as v5e-16, v5p-128 or v5p:4x4x4")
        topology = parse_topology(TOPOLOGY.value)
        if SEARCH.value:
            best = search.run(config, topology, TRIES.value, console, **options)
        else:
            best = make_plan(config, topology, **options)
    except (ConfigError, PlanError) as error:
        return refuse(error)
    report.show(best, console)
    if PLOT.value:
        report.plot(best, PLOT.value)
    if JSON.value:
        print(report.as_json(best))
    return 0 if best.fits else 1


def main(_: Sequence[str]) -> int:
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    # Plans need no device, and must not take one that a run is using.
    os.environ["JAX_PLATFORMS"] = "cpu"
    try:
        config = from_config_dict(CONFIG.value)
    except ConfigError as error:
        return refuse(error)
    return plan(config)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
