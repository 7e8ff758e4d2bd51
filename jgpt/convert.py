"""Hugging Face model folders in and out.

    python -m jgpt.convert from_hf --folder=DIR --workdir=RUN    a run to generate or train from
    python -m jgpt.convert to_hf --workdir=RUN --folder=DIR      a run's model as such a folder
    python -m jgpt.convert inspect --folder=DIR                  what is in a folder
    python -m jgpt.convert verify --folder=DIR [--workdir=RUN]   logits beside those of transformers
    python -m jgpt.convert extend_vocabulary --folder=DIR --target=NEW --tokenizer=JAPANESE

Weights are read from safetensors files only, one at a time. Exit status: 0 done; 1 `verify` found a
difference; 2 something to correct, said in one line on standard error; nothing is half-written.
"""

import argparse
import dataclasses
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from absl import logging

from jgpt.config import ConfigError, ModelConfig
from jgpt.interop import adapted, vocabulary_command
from jgpt.interop.export import LARGEST_SHARD
from jgpt.interop.folder import open_folder
from jgpt.interop.weights import dtype_of, plan, sources
from jgpt.interop.workdirs import from_hf, to_hf
from jgpt.training.state_files import CheckpointError

TOLERANCE = 1e-4
"""Largest difference of two logits over the largest logit, in float32, that `verify` allows."""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m jgpt.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, needs_workdir in (
        ("from_hf", True),
        ("to_hf", True),
        ("inspect", None),
        ("verify", False),
    ):
        command = commands.add_parser(name)
        command.add_argument("--folder", required=True, type=Path, help="Hugging Face folder")
        if needs_workdir is not None:
            command.add_argument("--workdir", required=needs_workdir, type=Path, help="of a run")
    commands.choices["from_hf"].add_argument(
        "--dtype", default="", choices=("float32", "bfloat16"), help="of the weights; kept if unset"
    )
    export = commands.choices["to_hf"]
    export.add_argument(
        "--dtype", default="", choices=("float32", "float16", "bfloat16"), help="kept if unset"
    )
    export.add_argument("--family", default="", help="such as llama; the one that fits if unset")
    export.add_argument("--max_shard_bytes", type=float, default=LARGEST_SHARD, help="of one file")
    export.add_argument("--no_ema", action="store_true", help="the weights, not their average")
    vocabulary_command.add_options(commands.add_parser("extend_vocabulary"))
    commands.choices["inspect"].add_argument("--tensors", action="store_true", help="list them all")
    return parser.parse_args(arguments)


def run_from_hf(options: argparse.Namespace) -> int:
    model, notes = from_hf(options.folder, options.workdir, options.dtype)
    for note in notes:
        print(note)
    print(f"{options.workdir}: {model.num_layers} layers of width {model.hidden_size}")
    return 0


def run_to_hf(options: argparse.Namespace) -> int:
    family, notes = to_hf(
        options.workdir,
        options.folder,
        family=options.family,
        dtype=options.dtype,
        largest_shard=int(options.max_shard_bytes),
        use_ema=not options.no_ema,
        reader=partial(adapted.reader, options.workdir),
    )
    for note in notes:
        print(note)
    print(f"{options.folder}: {family.architecture}")
    return 0


def run_inspect(options: argparse.Namespace) -> int:
    folder = open_folder(options.folder)
    family, model = folder.family, folder.model
    sources(folder, model)  # every tensor is there, with its shape
    uses = plan(family, model)
    numbers = sum(math.prod(shape) * len(use.names) for use in uses for shape in use.shapes)
    files = {file.path.name for file in folder.files.values()}
    print(f"{family.architecture} (model_type {family.name})")
    print(f"{numbers:,} parameters, {dtype_of(folder).name}")
    print(f"{len(folder.files)} tensors in {len(files)} files")
    default = ModelConfig()
    for field in dataclasses.fields(model):
        value = getattr(model, field.name)
        if value != getattr(default, field.name):
            print(f"  model.{field.name} = {value!r}")
    if options.tensors:
        for name in sorted(folder.files):
            entry = folder.entry(name)
            print(f"  {name}  {list(entry.shape)}  {entry.dtype.name}")
    return 0


def run_verify(options: argparse.Namespace) -> int:
    from jgpt.interop import parity

    if options.workdir is None:
        model, variables = parity.on_one_device(options.folder)
    else:
        found = adapted.open_run(options.workdir)
        model = dataclasses.replace(found.config.model, dtype="float32")
        variables = found.merged()
    found = parity.compare(options.folder, model, variables, parity.random_tokens(model))
    print(
        f"logits differ by at most {found.largest_difference:.2e} (the largest is "
        f"{found.largest_logit:.2e}); the likeliest token is the same at "
        f"{found.same_best_token:.1%} of the positions"
    )
    return 0 if found.relative <= TOLERANCE else 1


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "from_hf": run_from_hf,
    "to_hf": run_to_hf,
    "inspect": run_inspect,
    "verify": run_verify,
    "extend_vocabulary": vocabulary_command.run,
}


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    logging.set_verbosity(logging.ERROR)
    try:
        return COMMANDS[options.command](options)
    except (ConfigError, CheckpointError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
