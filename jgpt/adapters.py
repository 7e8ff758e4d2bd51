"""Adapters of runs and of other libraries, looked at, moved and put together.

    python -m jgpt.adapters inspect --adapters=A                      what is in A
    python -m jgpt.adapters export  --adapters=RUN --folder=NEW       a run's adapters for peft
    python -m jgpt.adapters export  --adapters=A --folder=NEW --serving   plain LoRA for vLLM
    python -m jgpt.adapters import  --adapters=FOLDER --base=B --workdir=RUN   a run to generate from
    python -m jgpt.adapters compose --adapters A B --weights 0.7 0.3 --folder=NEW   one of several
    python -m jgpt.adapters merge   --adapters=A --base=B --folder=NEW   a model with A in its weights
    python -m jgpt.adapters unmerge --adapters=A --base=MERGED --folder=NEW   and without it again

`A` is the folder of a run that trained adapters, or one that peft wrote, which needs `--base`: a
Hugging Face folder or a run, by default what the adapters name as theirs. Exit status: 0 done; 2
something to correct, said in one line on standard error; nothing is half-written.
"""  # noqa: E501

import argparse
import dataclasses
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from absl import logging

from jgpt.config import ConfigError
from jgpt.interop import adapter_sources as sources
from jgpt.interop.description import InteropError
from jgpt.interop.peft_format_write import write_folder
from jgpt.peft import compose
from jgpt.training.state_files import CheckpointError


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m jgpt.adapters",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in COMMANDS:
        command = commands.add_parser(name)
        number = "+" if name == "compose" else None
        command.add_argument(
            "--adapters", required=True, type=Path, nargs=number, help="run, or folder of peft"
        )
        command.add_argument("--base", default="", help="Hugging Face folder or run of the model")
        if name not in ("inspect", "import"):
            command.add_argument("--folder", required=True, type=Path, help="to be written")
            command.add_argument("--family", default="", help="such as llama; what fits if unset")
    commands.choices["import"].add_argument("--workdir", required=True, type=Path, help="new run")
    for name in ("export", "compose"):
        command = commands.choices[name]
        command.add_argument("--serving", action="store_true", help="plain LoRA of one rank: vLLM")
    commands.choices["export"].add_argument(
        "--as_lora", action="store_true", help="AdaLoRA and VeRA as the LoRA that does the same"
    )
    options = commands.choices["compose"]
    options.add_argument("--weights", nargs="+", type=float, help="one each; 1 if unset")
    options.add_argument("--way", default="cat", choices=compose.WAYS, help="cat is the exact sum")
    options.add_argument("--rank", type=int, default=0, help="svd: of the result")
    options.add_argument("--density", type=float, default=1.0, help="pruning: share that stays")
    options.add_argument("--majority", default="total", choices=("total", "frequency"))
    options.add_argument("--seed", type=int, default=0, help="dare")
    for name in ("merge", "unmerge"):
        commands.choices[name].add_argument(
            "--dtype", default="", choices=("float32", "float16", "bfloat16"), help="kept if unset"
        )
    return parser.parse_args(arguments)


def run_inspect(options: argparse.Namespace) -> None:
    from jgpt.interop.adapter_report import lines

    found = sources.open_source(options.adapters, options.base)
    for line in lines(found):
        print(line)


def run_export(options: argparse.Namespace) -> None:
    found = sources.open_source(options.adapters, options.base, need=sources.ORIGINAL)
    pair = (found.peft, found.adapters)
    _write(options, found, compose.as_lora(pair) if options.as_lora else pair)


def _write(options: argparse.Namespace, found: sources.Source, pair: compose.Pair) -> None:
    config = write_folder(
        options.folder,
        *pair,
        own=found.own,
        began=found.began,
        base=found.base,
        family=options.family or found.family,
        serving=options.serving,
    )
    rank = f", rank {config['r']}" if "r" in config else ""
    print(f"{options.folder}: {config['peft_type']}{rank}")


def run_import(options: argparse.Namespace) -> None:
    sources.import_folder(options.adapters, options.base, options.workdir)
    print(f"{options.workdir}: ready for python -m jgpt.generate --workdir={options.workdir}")


def run_compose(options: argparse.Namespace) -> None:
    import jax

    found = [
        sources.open_source(path, options.base, need=sources.ORIGINAL) for path in options.adapters
    ]
    weights = options.weights or [1.0] * len(found)
    if len(weights) != len(found):
        raise InteropError(f"{len(found)} adapters and {len(weights)} weights; give one to each")
    own = [path for path, source in zip(options.adapters, found) if source.own]
    if own:
        raise InteropError(
            f"{own[0]} trained parameters of the model too (peft.train_also), which have no sum "
            "here; merge it into the base"
        )
    combined = compose.combine(
        [source.on_original() for source in found],
        weights,
        options.way,
        rank=options.rank,
        density=options.density,
        majority=options.majority,
        key=jax.random.key(options.seed),
    )
    _write(options, found[0], combined)


def run_merge(options: argparse.Namespace, inverse: bool = False) -> None:
    need = sources.ADAPTERS if inverse else sources.MODEL
    found = sources.open_source(options.adapters, options.base, need=need)
    if inverse:  # the weights that they are in are those of --base
        if not options.base:
            raise InteropError("unmerge needs --base=DIR, the model that the adapters are in")
        place, model = sources.open_base(options.base, options.adapters)
        variables = sources.load_base(place, model)
        found = dataclasses.replace(found, variables=variables)
    family = sources.write_merged(
        found, options.base, options.folder, options.family, options.dtype, inverse=inverse
    )
    print(f"{options.folder}: {family.architecture}")


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "inspect": run_inspect,
    "export": run_export,
    "import": run_import,
    "compose": run_compose,
    "merge": run_merge,
    "unmerge": partial(run_merge, inverse=True),
}


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    logging.set_verbosity(logging.ERROR)
    try:
        COMMANDS[options.command](options)
    except (ConfigError, CheckpointError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
