"""A model folder with a larger vocabulary: new rows for a Japanese tokenizer's pieces.

What continual pretraining of Japanese models begins with (Swallow: Fujii et al. 2024, section 3):
the tokenizer learns Japanese pieces, and each new row of the embedding and of the head starts as
the mean of the rows of the tokens that the old tokenizer cuts the piece into. The other tensors go
from file to file unchanged, one at a time.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jgpt import tokenizers
from jgpt.config import ConfigError
from jgpt.interop.description import Field, InteropError
from jgpt.interop.export import complete_or_nothing, write_json
from jgpt.interop.folder import (
    CONFIG_FILE,
    HASHES,
    INDEX_FILE,
    PICKLES,
    Folder,
    open_folder,
    read_json,
)
from jgpt.interop.tensor_files import Shape, write_file
from jgpt.tokenizers import extend, sentencepiece_model
from jgpt.tokenizers.base import METADATA_FILE, Tokenizer
from jgpt.tokenizers.sentencepiece import SentencePieceTokenizer

PIECES, MEAN, RANDOM = "pieces", "mean", "random"
METHODS = (PIECES, MEAN, RANDOM)
_VOCABULARY_AXIS = ("embedding/table", "head/kernel", "head/bias")
"""Our parameters whose tensors in the files have one row per token."""
_CHUNK = 4096
"""Rows."""
_OTHER_FORMS = ("tokenizer.model", "spiece.model", "spm.model", "vocab.json", "merges.txt")
"""Of the tokenizer, stale beside an extended `tokenizer.json`."""


@dataclass(frozen=True)
class NewRows:
    """How rows that were not there begin.

    Attributes:
        method: `pieces`, the mean of the rows of the old spelling; `mean`, that of all rows;
            `random`, normal with the mean and the standard deviation of all rows.
        noise: added, normal, in standard deviations of the table's entries: it tells apart rows
            that begin equal.
        seed: of what is random.
    """

    method: str = PIECES
    noise: float = 0.0
    seed: int = 0

    def __post_init__(self):
        if self.method not in METHODS:
            raise InteropError(f"new rows: {self.method!r} is not one of {', '.join(METHODS)}")
        if self.noise < 0:
            raise InteropError(f"new rows: noise is {self.noise}; it must not be negative")


@dataclass(frozen=True)
class Growth:
    """What was done, for a report.

    Attributes:
        before, after: the tokenizers.
        rows: of the embedding, before and after.
        added: texts of the new tokens.
        left_out: pieces that could not be added.
    """

    before: Tokenizer
    after: Tokenizer
    rows: tuple[int, int]
    added: list[str]
    left_out: list[str]


def grown(
    table: np.ndarray,
    first: int,
    spellings: Sequence[Sequence[int]],
    size: int,
    rows: NewRows,
) -> np.ndarray:
    """A table with new rows; sums in float32.

    Args:
        table: [V, D], or [V], any floating point type; the result has the same.
        first: rows below it stay; those from it on (padding of the vocabulary) are replaced.
        spellings: for each new row from `first` on, the old ids (below `first`) that it replaces.
        size: number of rows of the result; those without a spelling are padding, of `mean`.

    Raises:
        InteropError: `size` leaves no room for what there is.
    """
    if size < max(len(table), first + len(spellings)):
        raise InteropError(
            f"a vocabulary of {len(table)} rows with {len(spellings)} new tokens from {first} on "
            f"does not fit into {size}; a vocabulary is never made smaller"
        )
    mean, deviation, whole_deviation = _moments(table[:first])
    result = np.empty((size, *table.shape[1:]), table.dtype)
    result[:first] = table[:first]
    draw = np.random.default_rng(rows.seed)
    for i in range(first, size):
        spelt = spellings[i - first] if i < first + len(spellings) else ()
        row = mean
        if spelt and rows.method == PIECES:
            row = table[list(spelt)].astype(np.float32).mean(axis=0)
        elif rows.method == RANDOM:
            row = mean + deviation * draw.standard_normal(mean.shape, np.float32)
        if rows.noise:
            row = row + rows.noise * whole_deviation * draw.standard_normal(mean.shape, np.float32)
        result[i] = row.astype(table.dtype)
    return result


def _moments(table: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Mean and standard deviation of each column, and the deviation of all entries.

    A few thousand rows are widened at a time: the table may be the largest tensor there is.
    """
    total = np.zeros(table.shape[1:], np.float64)
    squares = np.zeros(table.shape[1:], np.float64)
    for start in range(0, len(table), _CHUNK):
        part = table[start : start + _CHUNK].astype(np.float64)
        total += part.sum(axis=0)
        squares += (part * part).sum(axis=0)
    mean, second = total / len(table), squares / len(table)
    columns = np.sqrt(np.maximum(second - mean * mean, 0))
    whole = float(np.sqrt(max(second.mean() - mean.mean() ** 2, 0)))
    return mean.astype(np.float32), columns.astype(np.float32), whole


def extend_vocabulary(
    source: str | Path,
    target: str | Path,
    new: Tokenizer | None,
    *,
    rows: NewRows | None = None,
    limit: int = 0,
    multiple: int = 1,
) -> Growth:
    """Writes a model folder whose tokenizer knows the pieces of another one besides.

    Ids keep their meaning; shards, types and all other files are kept.

    Args:
        source: a model folder.
        target: the folder to write; it must not exist.
        new: a tokenizer whose pieces are added; None to pad the vocabulary only.
        rows: how the new rows begin.
        limit: pieces to add at most, the first in the order of `new`'s ids; 0 for all.
        multiple: the number of rows becomes a multiple of it (128 for a tensor-parallel TPU).

    Raises:
        InteropError: the folder is damaged, or has fewer rows than its tokenizer ids.
        ConfigError: the folder's tokenizer cannot be extended.
    """
    folder = open_folder(source)
    rows = rows or NewRows()
    before = tokenizers.load(folder.path)
    old_size = folder.model.vocab_size
    if before.vocab_size > old_size:
        raise InteropError(
            f"{folder.path}: the tokenizer has {before.vocab_size} ids, the model {old_size} rows"
        )
    if multiple < 1:
        raise InteropError(f"multiple is {multiple}; it must be at least 1")
    extension = _extension(folder, before, new, limit)
    added = extension.added if extension else []
    size = max(old_size, before.vocab_size + len(added))
    size = -(-size // multiple) * multiple
    first = before.vocab_size if added else old_size
    spellings = [extend.spelling(before, text) for text in added]
    with complete_or_nothing(Path(target)) as partial:
        _write_tensors(partial, folder, first, spellings, size, rows)
        _copy_files(partial, folder, extension)
        write_json(partial / CONFIG_FILE, {**folder.config, _size_field(folder): size})
    return Growth(
        before=before,
        after=extension.tokenizer if extension else before,
        rows=(old_size, size),
        added=added,
        left_out=extension.left_out if extension else [],
    )


def _extension(
    folder: Folder, before: Tokenizer, new: Tokenizer | None, limit: int
) -> extend.Extension | None:
    if new is None:
        return None
    wanted = extend.wanted_pieces(before, new, limit)
    if not wanted:
        raise ConfigError("the tokenizer has no piece that the folder's does not have already")
    return extend.extend(folder.path, wanted, _scores(new))


def _scores(new: Tokenizer) -> dict[str, float] | None:
    """Log-probabilities of the pieces of a SentencePiece unigram model."""
    if not isinstance(new, SentencePieceTokenizer):
        return None
    if sentencepiece_model.kind(new.model) != sentencepiece_model.UNIGRAM:
        return None
    pieces = sentencepiece_model.pieces(new.model)
    return {piece.text.replace("▁", " "): piece.score for piece in pieces}


def _size_field(folder: Folder) -> str:
    """Their name for the vocabulary's size."""
    return next(
        row.theirs
        for row in folder.family.settings
        if isinstance(row, Field) and row.ours == "vocab_size"
    )


def _tables(folder: Folder) -> list[str]:
    """Names of the tensors with a row per token.

    Raises:
        InteropError: the model has others, which this does not know.
    """
    size = folder.model.vocab_size
    named = {ours: row.theirs for row in folder.family.tensors for ours in row.ours}
    names = {named[ours] for ours in _VOCABULARY_AXIS if ours in named}
    found = [n for n in folder.files if n in names or folder.family.optional_prefix + n in names]
    for name in found:
        if folder.entry(name).shape[0] != size:
            raise InteropError(f"{name} has {folder.entry(name).shape[0]} rows instead of {size}")
    if not found:
        raise InteropError(f"{folder.path}: no embedding with one row per token is known in it")
    return found


def _write_tensors(
    target: Path,
    folder: Folder,
    first: int,
    spellings: Sequence[Sequence[int]],
    size: int,
    rows: NewRows,
) -> None:
    tables = _tables(folder)

    def value(name: str) -> np.ndarray:
        array = folder.view(name)
        return grown(array, first, spellings, size, rows) if name in tables else array

    total = 0
    for file in {id(file): file for file in folder.files.values()}.values():
        shapes = {
            name: Shape((size, *e.shape[1:]) if name in tables else e.shape, e.dtype)
            for name, e in file.entries.items()
        }
        write_file(target / file.path.name, shapes, value, file.metadata)
        total += sum(shape.size for shape in shapes.values())
    if (folder.path / INDEX_FILE).is_file():
        index = read_json(folder.path / INDEX_FILE)
        metadata = {**index.get("metadata", {}), "total_size": total}
        write_json(target / INDEX_FILE, {**index, "metadata": metadata})


def _copy_files(target: Path, folder: Folder, extension: extend.Extension | None) -> None:
    """The small files; of the tokenizer, only the extended form."""
    skipped = [*PICKLES, *HASHES, "*.safetensors", CONFIG_FILE, INDEX_FILE]
    if extension:
        skipped += [name for name in (*_OTHER_FORMS, METADATA_FILE) if name != extension.file]
    for path in sorted(folder.path.iterdir()):
        if path.is_file() and not any(path.match(pattern) for pattern in skipped):
            shutil.copyfile(path, target / path.name)
    if extension:
        (target / extension.file).write_bytes(extension.content)


def tokens_per_character(growth: Growth, texts: Sequence[str]) -> Mapping[str, float]:
    """`before` and `after`: tokens over characters of the texts.

    Raises:
        ConfigError: there is no text.
    """
    characters = sum(map(len, texts))
    if not characters:
        raise ConfigError("there is no text to measure on")
    return {
        name: sum(map(len, tokenizer.encode_batch(texts))) / characters
        for name, tokenizer in (("before", growth.before), ("after", growth.after))
    }
