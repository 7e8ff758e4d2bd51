"""`python -m jgpt.convert extend_vocabulary`: options, and what is printed."""

import argparse
from pathlib import Path

from jgpt import tokenizers
from jgpt.interop.description import InteropError
from jgpt.interop.vocabulary import METHODS, NewRows, extend_vocabulary, tokens_per_character


def add_options(command: argparse.ArgumentParser) -> None:
    """The options of the subcommand."""
    default = NewRows()
    command.add_argument("--folder", required=True, type=Path, help="Hugging Face folder")
    command.add_argument("--target", required=True, type=Path, help="folder to write")
    command.add_argument(
        "--tokenizer", default="", help="whose pieces are added; only pads the vocabulary if unset"
    )
    command.add_argument("--limit", type=int, default=0, help="pieces to add at most; 0: all")
    command.add_argument("--multiple", type=int, default=1, help="of which the rows are a multiple")
    command.add_argument(
        "--rows", default=default.method, choices=METHODS, help="how new rows begin"
    )
    command.add_argument("--noise", type=float, default=default.noise, help="standard deviations")
    command.add_argument("--seed", type=int, default=default.seed)
    command.add_argument(
        "--text", type=Path, help="UTF-8 file to count tokens per character on, before and after"
    )


def run(options: argparse.Namespace) -> int:
    """Writes the folder and reports.

    Raises:
        ConfigError: one line that says what to correct.
    """
    texts = _lines(options.text) if options.text else []
    growth = extend_vocabulary(
        options.folder,
        options.target,
        tokenizers.load(options.tokenizer) if options.tokenizer else None,
        rows=NewRows(options.rows, options.noise, options.seed),
        limit=options.limit,
        multiple=options.multiple,
    )
    print(f"{options.target}: {growth.rows[0]:,} rows have become {growth.rows[1]:,}")
    print(f"{len(growth.added):,} new tokens; {' '.join(growth.added[:20])}")
    if growth.left_out:
        print(
            f"{len(growth.left_out):,} pieces are out of the reach of this tokenizer's rules: "
            f"{' '.join(growth.left_out[:10])}"
        )
    if texts:
        rate = tokens_per_character(growth, texts)
        saved = 1 - rate["after"] / rate["before"]
        print(f"tokens per character: {rate['before']:.3f} before, {rate['after']:.3f} after")
        print(f"{saved:.1%} fewer tokens for {sum(map(len, texts)):,} characters")
    return 0


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InteropError(f"--text: {path} cannot be read ({error})") from error
    lines = [line for line in text.split("\n") if line]
    if not lines:
        raise InteropError(f"--text: {path} has no text")
    return lines
