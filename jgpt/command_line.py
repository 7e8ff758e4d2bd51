"""What commands share: the flag `--config` and its overrides, errors in one line, option types."""

import argparse
import os
import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file("config", None, "the run's settings; see configs/")


def parse(argv: Sequence[str]) -> list[str]:
    """Flags and overrides; a wrong one ends the process with one line."""
    try:
        rest = flags.FLAGS(argv)
        if CONFIG.value is None:
            raise ValueError("give --config=FILE, such as --config=configs/moe_small.py")
        path = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[0]
        if not os.path.isfile(path):
            raise ValueError(f"there is no config file {path!r}; see configs/")
        if rest[1:]:
            raise ValueError(f"{rest[1]!r} is no flag; overrides are --config.SECTION.FIELD=VALUE")
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        sys.exit(refuse(error))
    return rest


def refuse(error: Exception) -> int:
    """Says what is wrong in one line, and gives the exit status for it."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    print(f"error: {' '.join(text.split())}", file=sys.stderr)
    return 2


def positive(text: str) -> int:
    """An option's value as an integer above 0."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value
