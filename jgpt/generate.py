"""Continues text with a trained model: `python -m jgpt.generate --workdir=DIR --prompt=TEXT`.

Text appears as it is written, whole characters only. Without --prompt a new document is started.
What a flag does not say, the run's own `sample` settings do.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from absl import app, flags, logging

from jgpt.config import ConfigError, ModelConfig, SampleConfig
from jgpt.evals.writing import make_generator, stream_text
from jgpt.interop.adapted import open_run
from jgpt.malloc import keep_freed_buffers
from jgpt.tokenizers import Tokenizer, load
from jgpt.training.state_files import CheckpointError
from jgpt.training.workdir import Workdir
from jgpt.typing import PyTree

WORKDIR = flags.DEFINE_string("workdir", None, "folder of a run of jgpt.main", required=True)
PROMPT = flags.DEFINE_string("prompt", "", "text to continue; none starts a document")
NUM_SAMPLES = flags.DEFINE_integer("num_samples", 1, "texts, one after the other", lower_bound=1)
STOP = flags.DEFINE_multi_string("stop", [], "text that ends a sample; may be given several times")
CHUNK = flags.DEFINE_integer("chunk", 8, "tokens between two looks of the stream", lower_bound=1)

SETTINGS = {
    "max_new_tokens": flags.DEFINE_integer("max_new_tokens", None, "at most"),
    "temperature": flags.DEFINE_float("temperature", None, "0 is greedy"),
    "top_k": flags.DEFINE_integer("top_k", None, "only the k likeliest; 0 for all"),
    "top_p": flags.DEFINE_float("top_p", None, "only the likeliest that make up this mass"),
    "min_p": flags.DEFINE_float("min_p", None, "only those at least so likely, to the likeliest"),
    "repetition_penalty": flags.DEFINE_float("repetition_penalty", None, "above 1: repeat less"),
    "seed": flags.DEFINE_integer("seed", None, "of sampling"),
}
"""Flags of the same names as fields of `SampleConfig`."""

CACHE_SETTINGS = {
    "kind": flags.DEFINE_enum("cache_kind", None, ["slots", "pages"], "how past tokens are kept"),
    "dtype": flags.DEFINE_enum(
        "cache_dtype", None, ["model", "float32", "bfloat16", "int8"], "of their keys and values"
    ),
    "page_size": flags.DEFINE_integer("page_size", None, "tokens of a page", lower_bound=1),
}
"""Flags of fields of `CacheConfig`."""


def parse(argv: Sequence[str]) -> list[str]:
    """Flags; a wrong one ends the process with one line."""
    try:
        rest = flags.FLAGS(argv)
        if rest[1:]:
            raise ValueError(f"{rest[1]!r} is no flag; put a text with blanks into quotes")
    except (flags.Error, ValueError) as error:
        sys.exit(refuse(error))
    return rest


def refuse(error: Exception) -> int:
    """Says what is wrong in one line, and gives the exit status for it."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return 2


def sample_config(config: SampleConfig) -> SampleConfig:
    """The run's settings with those of the flags in their place."""

    def given(settings: dict[str, flags.FlagHolder]) -> dict:
        return {name: flag.value for name, flag in settings.items() if flag.value is not None}

    cache = dataclasses.replace(config.cache, **given(CACHE_SETTINGS))
    return dataclasses.replace(config, cache=cache, **given(SETTINGS))


def until_stop(pieces: Iterator[str], stops: Sequence[str]) -> Iterator[str]:
    """`pieces` up to the first of `stops`; what may become one waits until it is known."""
    longest = max(map(len, stops), default=1)
    held = ""
    for piece in pieces:
        held += piece
        found = [place for stop in stops if (place := held.find(stop)) >= 0]
        if found:
            yield held[: min(found)]
            return
        safe = len(held) - longest + 1
        if safe > 0:
            yield held[:safe]
            held = held[safe:]
    yield held


@dataclass(frozen=True)
class Model:
    """A trained model, ready to write."""

    tokenizer: Tokenizer
    config: ModelConfig
    variables: PyTree
    apply: Callable[..., Any]
    """`models.apply` of it, with its adapters where it has some"""
    sample: SampleConfig
    """the run's own settings"""
    notes: tuple[str, ...]
    """what a user should be told about the checkpoint"""


def load_model(workdir: Path) -> Model:
    """The newest intact checkpoint of a run, with its tokenizer, its base and its adapters.

    Raises:
        ConfigError, CheckpointError: the folder has no usable tokenizer or checkpoint.
    """
    if not workdir.is_dir():
        raise ConfigError(f"--workdir {str(workdir)!r} is not there; train a model first")
    tokenizer = load(Workdir(workdir).tokenizer)
    found = open_run(workdir, vocabulary=tokenizer.fingerprint)
    config = found.config
    return Model(
        tokenizer, config.model, found.variables, found.apply(), config.sample, found.notes
    )


def write(model: Model, show: Callable[[str], None]) -> None:
    """Hands the text that the flags ask for to `show`, piece by piece."""
    sample = sample_config(model.sample)
    generator = make_generator(model.config, sample, model.tokenizer, CHUNK.value, model.apply)
    for number in range(NUM_SAMPLES.value):
        key = jax.random.fold_in(jax.random.key(sample.seed), number)
        pieces = stream_text(generator, model.tokenizer, model.variables, PROMPT.value, key)
        show(PROMPT.value)
        for piece in until_stop(pieces, STOP.value):
            show(piece)
        show("\n" if number + 1 == NUM_SAMPLES.value else "\n\n")


def show(text: str) -> None:
    """Writes to standard output at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def main(_: Sequence[str]) -> int:
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.ERROR)
    if jax.default_backend() == "cpu":
        keep_freed_buffers()
    try:
        model = load_model(Path(WORKDIR.value))
        for note in model.notes:
            print(note, file=sys.stderr)
        write(model, show)
    except (ConfigError, CheckpointError, ValueError) as error:
        return refuse(error)
    return 0


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
