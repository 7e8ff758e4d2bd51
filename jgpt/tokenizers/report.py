"""How many tokens each tokenizer makes of the same text, as a table, a JSON file and a plot."""

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rich.console
import rich.table

from jgpt.tokenizers.base import Tokenizer


@dataclasses.dataclass(frozen=True)
class Fertility:
    """One tokenizer on one text: code points and UTF-8 bytes of the raw text against its tokens.

    Attributes:
        name: label of the tokenizer.
        vocabulary: its number of ids.
        tokens_per_character, characters_per_token, bytes_per_token: over the whole text.
        unk_share: share of the tokens that are unk.
        megabytes_per_second: 10^6 bytes encoded per second of processor time, that is, on one core.
    """

    name: str
    vocabulary: int
    tokens_per_character: float
    characters_per_token: float
    bytes_per_token: float
    unk_share: float
    megabytes_per_second: float


def measure(name: str, tokenizer: Tokenizer, texts: Sequence[str]) -> Fertility:
    """Encodes `texts` and counts.

    Raises:
        ValueError: there is no character in `texts`.
    """
    characters = sum(map(len, texts))
    if not characters:
        raise ValueError("there is no text to measure tokenizers on")
    size = sum(len(text.encode("utf-8", errors="ignore")) for text in texts)
    tokenizer.encode_batch(texts[:1])
    started = time.process_time()
    batches = tokenizer.encode_batch(texts)
    seconds = time.process_time() - started
    tokens = sum(map(len, batches))
    unknown = sum(ids.count(tokenizer.unk_id) for ids in batches) if tokenizer.emits_unk else 0
    return Fertility(
        name=name,
        vocabulary=tokenizer.vocab_size,
        tokens_per_character=tokens / characters,
        characters_per_token=characters / tokens,
        bytes_per_token=size / tokens,
        unk_share=unknown / tokens,
        megabytes_per_second=size / 1e6 / max(seconds, 1e-9),
    )


_COLUMNS = {
    "vocabulary": ("Vocab", "{:,}"),
    "tokens_per_character": ("Tok/char", "{:.3f}"),
    "characters_per_token": ("Char/tok", "{:.2f}"),
    "bytes_per_token": ("Bytes/tok", "{:.2f}"),
    "unk_share": ("Unknown", "{:.1%}"),
    "megabytes_per_second": ("MB/s", "{:.1f}"),
}


def table(rows: Sequence[Fertility]) -> rich.table.Table:
    """The rows, as given, for a terminal."""
    shown = rich.table.Table("Tokenizer")
    for heading, _ in _COLUMNS.values():
        shown.add_column(heading, justify="right")
    for row in rows:
        cells = [form.format(getattr(row, field)) for field, (_, form) in _COLUMNS.items()]
        shown.add_row(row.name, *cells)
    return shown


def write(rows: Sequence[Fertility], texts: Sequence[str], folder: str | Path) -> None:
    """Writes `report.json` and `fertility.png` into `folder`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    values = {
        "documents": len(texts),
        "characters": sum(map(len, texts)),
        "bytes": sum(len(text.encode("utf-8", errors="ignore")) for text in texts),
        "tokenizers": [dataclasses.asdict(row) for row in rows],
    }
    text = json.dumps(values, ensure_ascii=False, indent=1) + "\n"
    (folder / "report.json").write_text(text, encoding="utf-8")
    plot(rows, folder / "fertility.png")


def plot(rows: Sequence[Fertility], path: str | Path) -> None:
    """Bars of tokens per character and bytes per token.

    A tokenizer that loses text to unk is drawn grey, and does not set the scale.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.2 + 0.35 * len(rows)), layout="constrained", dpi=110)
    panels = figure.subplots(1, 2, sharey=True)
    _bars(panels[0], rows, "tokens_per_character", "Tokens per character (fewer is shorter)")
    _bars(panels[1], rows, "bytes_per_token", "Bytes per token (more is shorter)")
    panels[0].set_yticks(range(len(rows)), [f"{row.name} ({row.vocabulary:,})" for row in rows])
    panels[0].invert_yaxis()
    figure.savefig(path)


def _bars(axes: Any, rows: Sequence[Fertility], field: str, heading: str) -> None:
    values = [getattr(row, field) for row in rows]
    lossless = [value for row, value in zip(rows, values, strict=True) if not row.unk_share]
    limit = 1.3 * max(lossless or values)
    colors = ["#b5b5b5" if row.unk_share else "#3b6ea5" for row in rows]
    axes.barh(range(len(rows)), values, color=colors)
    for i, (row, value) in enumerate(zip(rows, values, strict=True)):
        note = f", {row.unk_share:.0%} unknown" if row.unk_share else ""
        inside = value > 0.85 * limit
        axes.annotate(
            f"{value:.2f}{note}",
            (min(value, limit), i),
            xytext=(-4 if inside else 4, 0),
            textcoords="offset points",
            ha="right" if inside else "left",
            va="center",
        )
    axes.set_xlim(0, limit)
    axes.set_xlabel(heading)
    axes.spines[["top", "right"]].set_visible(False)


def show(rows: Sequence[Fertility], texts: Sequence[str]) -> None:
    """Prints the table, with what it was measured on."""
    console = rich.console.Console()
    console.print(table(rows))
    characters = sum(map(len, texts))
    console.print(f"{len(texts):,} documents, {characters:,} characters; MB/s on one core")
