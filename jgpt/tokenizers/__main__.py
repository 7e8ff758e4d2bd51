"""Trains a tokenizer, or compares several on the same text.

    python -m jgpt.tokenizers train --input=FILES --kind=unigram --vocab_size=8000 --output=FOLDER
    python -m jgpt.tokenizers report --input=FILES --train=unigram:8000,bpe:8000,char,byte

FILES is written like `data.sources`: files, folders or quoted globs (.txt, .jsonl, .jsonl.gz, ...),
or `microworld`.
"""

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from jgpt import tokenizers
from jgpt.config import ConfigError, DataConfig, TokenizerConfig
from jgpt.data import microworld
from jgpt.data.cleaning import clean
from jgpt.data.records import BadRecords
from jgpt.data.sources import parse_sources, read_documents
from jgpt.tokenizers import report

_SEGMENTERS = ("mecab", "sudachi")
_HELD_OUT = 10
"""The report measures on every tenth document, and trains on the others."""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m jgpt.tokenizers", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True)
    default = TokenizerConfig()
    for name in ("train", "report"):
        command = commands.add_parser(name)
        command.add_argument("--input", required=True, help="as data.sources")
        command.add_argument("--field", default="text", help="field of JSONL records")
        command.add_argument("--output", required=name == "train", help="folder to write")
        command.add_argument("--train_megabytes", type=float, default=default.train_megabytes)
    train, compare = commands.choices["train"], commands.choices["report"]
    fields = {field.name: field for field in dataclasses.fields(TokenizerConfig)}
    for name in ("kind", "normalization", "word_segmenter"):
        train.add_argument(
            f"--{name}", default=getattr(default, name), choices=fields[name].metadata["choices"]
        )
    train.add_argument("--vocab_size", type=int, default=default.vocab_size)
    train.add_argument("--character_coverage", type=float, default=default.character_coverage)
    for name in ("byte_fallback", "split_digits", "split_scripts"):
        train.add_argument(
            f"--{name}", default=getattr(default, name), action=argparse.BooleanOptionalAction
        )
    compare.add_argument("--tokenizers", default="", help="comma-separated saved tokenizers")
    compare.add_argument(
        "--train", default="", help="comma-separated KIND:VOCAB_SIZE to train; also mecab, sudachi"
    )
    compare.add_argument("--measure_megabytes", type=float, default=2.0)
    return parser.parse_args(arguments)


def documents(sources: str, field: str) -> Iterator[str]:
    """Cleaned texts of sources written as in `data.sources`, one source after the other.

    Raises:
        DataError: a source that cannot be read.
    """
    config = DataConfig(text_field=field)
    for spec in parse_sources(sources):
        if spec.kind == "microworld":
            found = microworld.documents(0, config.microworld_documents)
        else:
            bad = BadRecords(config.max_bad_records)
            found = clean(read_documents(spec, config, bad), config.cleaning)
        for document in found:
            yield document.text


def train(options: argparse.Namespace) -> None:
    names = [field.name for field in dataclasses.fields(TokenizerConfig)]
    config = TokenizerConfig(**{k: v for k, v in vars(options).items() if k in names})
    tokenizer = tokenizers.train(config, documents(options.input, options.field), None)
    tokenizer.save(options.output)
    print(f"{options.output}: {tokenizer.vocab_size:,} tokens, {tokenizer.fingerprint[:16]}")


def compare(options: argparse.Namespace) -> None:
    configs = [
        _config_of(spec, options.train_megabytes) for spec in options.train.split(",") if spec
    ]
    paths = [path for path in options.tokenizers.split(",") if path]
    if not configs and not paths:
        raise ConfigError("nothing to compare: give --train=unigram:8000,byte or --tokenizers")
    wanted = options.measure_megabytes
    if configs:
        wanted = max(_HELD_OUT * wanted, options.train_megabytes * _HELD_OUT / (_HELD_OUT - 1))
    texts = list(_first_megabytes(documents(options.input, options.field), wanted))
    measured, learned = texts, texts
    if configs and len(texts) >= _HELD_OUT:
        measured = texts[_HELD_OUT - 1 :: _HELD_OUT]
        learned = [text for i, text in enumerate(texts, 1) if i % _HELD_OUT]
    elif configs:
        print(f"fewer than {_HELD_OUT} documents: measured on the text that was trained on")
    measured = list(_first_megabytes(measured, options.measure_megabytes))
    entries = [(name, tokenizers.train(config, learned, None)) for name, config in configs]
    entries += [(Path(path).name, tokenizers.load(path)) for path in paths]
    rows = [report.measure(name, tokenizer, measured) for name, tokenizer in entries]
    report.show(rows, measured)
    if options.output:
        report.write(rows, measured, options.output)
        print(f"{options.output}: report.json, fertility.png")


def _config_of(spec: str, train_megabytes: float) -> tuple[str, TokenizerConfig]:
    """Label and settings of `unigram:8000`, `byte`, `mecab:20000`, ..."""
    kind, _, size = spec.partition(":")
    choices = (*tokenizers.TRAINABLE_KINDS, *_SEGMENTERS)
    if kind not in choices or (size and not size.isdecimal()):
        raise ConfigError(f"--train: {spec!r} is not KIND or KIND:SIZE of {', '.join(choices)}")
    changes = {"kind": kind, "train_megabytes": train_megabytes}
    if size:
        changes["vocab_size"] = int(size)
    if kind in _SEGMENTERS:
        changes |= {"kind": "word", "word_segmenter": kind}
    return kind, TokenizerConfig(**changes)


def _first_megabytes(texts: Iterable[str], megabytes: float) -> Iterator[str]:
    """Whole texts until `megabytes` are reached."""
    sizes, shown = itertools.tee(texts)
    total = itertools.accumulate(len(text.encode("utf-8", errors="ignore")) for text in sizes)
    for text, size in zip(shown, total, strict=True):
        yield text
        if size >= megabytes * 1e6:
            return


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    try:
        {"train": train, "report": compare}[options.command](options)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
