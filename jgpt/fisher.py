"""What a trained model must not lose: `python -m jgpt.fisher --workdir=runs/base`.

Estimates the diagonal of the Fisher information on the run's own training data, at the weights of
its newest checkpoint, and writes both into `WORKDIR/fisher`. A later run is held to them by
`--config.forgetting.ewc=WORKDIR` (docs/forgetting.md).
"""

import argparse
import dataclasses
import itertools
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
from absl import logging

from jgpt import models, sharding
from jgpt.command_line import positive, refuse
from jgpt.config import Config, ConfigError, MeshConfig, to_dict
from jgpt.data import pipeline
from jgpt.data.records import DataError
from jgpt.interop.start import prepare
from jgpt.interop.workdirs import open_saved
from jgpt.malloc import keep_freed_buffers
from jgpt.tokenizers import load
from jgpt.training.assembly import placed
from jgpt.training.fisher import TARGETS, UNITS, estimate
from jgpt.training.forgetting import FOLDER, write_anchor
from jgpt.training.state_files import CheckpointError
from jgpt.training.workdir import Workdir
from jgpt.typing import PyTree


def old_run(workdir: Path, sources: str = "") -> Config:
    """The config of the model in `workdir`, with the data to look at.

    Raises:
        CheckpointError: there is no checkpoint.
        ConfigError: it holds adapters, or is no model of a next token.
    """
    config = open_saved(workdir).config
    if config.objective.name not in ("pretrain", "sft"):
        raise ConfigError(
            f"{workdir} was trained with objective.name={config.objective.name!r}; the Fisher "
            "information is that of a model of the next token ('pretrain', 'sft')"
        )
    data = dataclasses.replace(config.data, sources=sources or config.data.sources, workers=0)
    return dataclasses.replace(config, data=data, mesh=MeshConfig())


def write(workdir: Path, folder: Path, config: Config, batches: int, **how: Any) -> dict[str, Any]:
    """Estimates and writes; returns the facts that are written beside.

    Args:
        workdir: of the run.
        folder: to write.
        config: from `old_run`.
        batches: how many of its training batches.
        how: `targets`, `unit`, `seed`.
    """
    mesh = sharding.make_mesh(config.mesh)
    data = dataclasses.replace(
        config.data, batch_size=_multiple(config.data.batch_size, sharding.batch_parts(mesh))
    )
    began = dataclasses.replace(
        config, init=dataclasses.replace(config.init, workdir=str(workdir), hf_folder="")
    )
    filled, start = prepare(began, folder)
    model = models.resolve_scan(filled.model, jax.default_backend())
    tokenizer = load(Workdir(workdir).tokenizer)
    shapes = models.abstract_params(model)
    places = sharding.shardings(mesh, models.logical_axes(model), shapes)
    with placed(mesh):
        variables: PyTree = start(model, places, sharding.replicated(mesh))
        corpus = pipeline.open_corpus(data)
        reader = pipeline.training_batches(corpus, tokenizer, data, *sharding.row_share(mesh))
        try:
            fisher, facts = estimate(
                partial(models.apply, model),
                variables,
                (sharding.device_batch(mesh, b) for b in itertools.islice(reader, batches)),
                jax.random.key(how["seed"]),
                targets=how["targets"],
                unit=how["unit"],
                softcap=model.final_softcap,
                parts=sharding.batch_parts(mesh),
                places=places,
            )
        finally:
            reader.close()
    facts |= {"sources": data.sources, "batches": batches, "seed": how["seed"]}
    facts |= {"model": to_dict(model), "vocabulary": tokenizer.fingerprint}
    write_anchor(folder, fisher, variables["params"], facts)
    return facts


def _multiple(rows: int, parts: int) -> int:
    return -(-rows // parts) * parts


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m jgpt.fisher", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--workdir", type=Path, required=True, help="folder of a run of jgpt.main")
    parser.add_argument("--batches", type=positive, default=64, help="of the run's training data")
    parser.add_argument(
        "--targets",
        choices=TARGETS,
        default="sampled",
        help="drawn from the model, or of the data (the empirical Fisher)",
    )
    parser.add_argument("--unit", choices=UNITS, default="token", help="what one example is")
    parser.add_argument("--seed", type=int, default=0, help="of the sampled targets")
    parser.add_argument(
        "--sources", default="", help="old data, as data.sources; the run's own by default"
    )
    parser.add_argument("--output", type=Path, help=f"folder; WORKDIR/{FOLDER} by default")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    logging.set_verbosity(logging.WARNING)
    if jax.default_backend() == "cpu":
        keep_freed_buffers()
    folder = options.output or options.workdir / FOLDER
    how = {"targets": options.targets, "unit": options.unit, "seed": options.seed}
    try:
        config = old_run(options.workdir, options.sources)
        facts = write(options.workdir, folder, config, options.batches, **how)
    except (ConfigError, DataError, CheckpointError, ValueError) as error:
        return refuse(error)
    print(
        f"{folder}: {facts['examples']:,} examples ({facts['targets']} targets, by "
        f"{facts['unit']}), mean {facts['mean']:.3g}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
