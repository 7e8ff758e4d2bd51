"""Texts of a model's own, to be kept in mind: `python -m jgpt.class_texts --workdir=runs/base`.

They are drawn from the model as it is, before it is taught something new, and mixed into that
training as a source `class_texts:FILE` (prior preservation, docs/forgetting.md). The same seed
gives the same texts. One that the limit of tokens cuts off is left out: its end would be learned.
"""

import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import app, flags, logging

from jgpt.command_line import refuse
from jgpt.config import ConfigError, SampleConfig
from jgpt.evals.writing import make_generator
from jgpt.inference.generate import pad_prompts
from jgpt.interop.adapted import Model, open_run
from jgpt.malloc import keep_freed_buffers
from jgpt.tokenizers import Tokenizer, load
from jgpt.training.state_files import CheckpointError
from jgpt.training.workdir import Workdir, write_text

WORKDIR = flags.DEFINE_string("workdir", None, "folder of a run of jgpt.main", required=True)
FILE = flags.DEFINE_string("file", "", "JSONL to write; WORKDIR/class_texts.jsonl by default")
NUMBER = flags.DEFINE_integer("number", 200, "texts", lower_bound=1)
PROMPTS = flags.DEFINE_multi_string("prompt", [], "what texts of the class begin with, in turn")
LONGEST = flags.DEFINE_integer("max_new_tokens", 256, "of a text, at most", lower_bound=1)
TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "1 for the model's own distribution")
SEED = flags.DEFINE_integer("seed", 0, "of sampling")

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


def main(_: Sequence[str]) -> int:
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    if jax.default_backend() == "cpu":
        keep_freed_buffers()
    workdir = Path(WORKDIR.value)
    file = Path(FILE.value) if FILE.value else workdir / FILE_NAME
    try:
        sample = dataclasses.replace(
            SampleConfig(top_p=1.0),
            prompts=tuple(PROMPTS.value) or ("",),
            max_new_tokens=LONGEST.value,
            temperature=TEMPERATURE.value,
            seed=SEED.value,
        )
        count = write(workdir, file, sample, NUMBER.value)
    except (ConfigError, CheckpointError, ValueError) as error:
        return refuse(error)
    print(f"{file}: {count:,} texts")
    return 0


if __name__ == "__main__":
    sys.exit(app.run(main))
