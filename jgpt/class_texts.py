"""Texts of a model's own, to be kept in mind: `python -m jgpt.class_texts --workdir=runs/base`.

They are drawn from the model as it is, before it is taught something new, and mixed into that
training as a source `class_texts:FILE` (prior preservation, docs/forgetting.md). The same seed
gives the same texts. One that the limit of tokens cuts off is left out: its end would be learned.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from absl import logging

from jgpt.command_line import positive, refuse
from jgpt.config import ConfigError, SampleConfig
from jgpt.evals.writing import make_generator
from jgpt.inference.generate import pad_prompts
from jgpt.interop.adapted import Model, open_run
from jgpt.malloc import keep_freed_buffers
from jgpt.tokenizers import Tokenizer, load
from jgpt.training.state_files import CheckpointError
from jgpt.training.workdir import Workdir, write_text

FILE_NAME = "class_texts.jsonl"
ROWS = 32
"""Texts written side by side."""
TRIES = 8
"""Times as many texts as are wanted, after which no more are tried."""


def written(
    model: Model, tokenizer: Tokenizer, sample: SampleConfig, number: int
) -> Iterator[dict[str, Any]]:
    """At most `number` records (`text`, `prompt`) of texts that end by themselves.

    Args:
        model: from `open_run`.
        tokenizer: of it.
        sample: prompts, taken in turn, and how tokens are drawn.
        number: that are wanted; fewer come where most of what is written does not end.
    """
    generator = make_generator(
        model.config.model, sample, tokenizer, sample.max_new_tokens, model.apply()
    )
    found = 0
    for start in range(0, TRIES * max(number, ROWS), ROWS):
        prompts = [sample.prompts[i % len(sample.prompts)] for i in range(start, start + ROWS)]
        rows = [[tokenizer.bos_id, *tokenizer.encode(prompt)] for prompt in prompts]
        key = jax.random.fold_in(jax.random.key(sample.seed), start)
        for prompt, ids in zip(prompts, generator(model.variables, *pad_prompts(rows), key)):
            text = prompt + tokenizer.decode(ids)
            if len(ids) < sample.max_new_tokens and text and found < number:
                found += 1
                yield {"text": text, "prompt": prompt}
        if found == number:
            return


def write(workdir: Path, file: Path, sample: SampleConfig, number: int) -> int:
    """Writes the texts; returns how many there are.

    Raises:
        ConfigError: the file is there, the folder has no tokenizer, or no text ends by itself.
        CheckpointError: there is no usable checkpoint.
    """
    if file.exists():
        raise ConfigError(f"{file} is there already; remove it to have texts sampled anew")
    tokenizer = load(Workdir(workdir).tokenizer)
    model = open_run(workdir, vocabulary=tokenizer.fingerprint)
    records = list(written(model, tokenizer, sample, number))
    if not records:
        raise ConfigError(
            f"no text of {workdir} ended within {sample.max_new_tokens} tokens; raise "
            "--max_new_tokens"
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))
    return len(records)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m jgpt.class_texts", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--workdir", type=Path, required=True, help="folder of a run of jgpt.main")
    parser.add_argument("--file", type=Path, help=f"to write; WORKDIR/{FILE_NAME} by default")
    parser.add_argument("--number", type=positive, default=200, help="texts")
    parser.add_argument(
        "--prompt", action="append", help="what texts of the class begin with, in turn"
    )
    parser.add_argument("--max_new_tokens", type=positive, default=256, help="of a text, at most")
    parser.add_argument(
        "--temperature", type=float, default=1.0, help="1 for the model's own distribution"
    )
    parser.add_argument("--seed", type=int, default=0, help="of sampling")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    logging.set_verbosity(logging.WARNING)
    if jax.default_backend() == "cpu":
        keep_freed_buffers()
    file = options.file or options.workdir / FILE_NAME
    try:
        sample = dataclasses.replace(
            SampleConfig(top_p=1.0),
            prompts=tuple(options.prompt or ("",)),
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            seed=options.seed,
        )
        count = write(options.workdir, file, sample, options.number)
    except (ConfigError, CheckpointError, ValueError) as error:
        return refuse(error)
    print(f"{file}: {count:,} texts")
    return 0


if __name__ == "__main__":
    sys.exit(main())
