"""More pieces for an existing tokenizer: those of a Japanese one, behind the ids that it has.

No id changes its meaning. Byte-pair models (SentencePiece or `tokenizer.json`) are given merges
after all of their own, so other text is cut as before; unigram models are given pieces with scores.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import sentencepiece

from jgpt.config import ConfigError
from jgpt.tokenizers import huggingface, sentencepiece_model, store
from jgpt.tokenizers import sentencepiece as sentencepiece_tokenizer
from jgpt.tokenizers.base import Tokenizer
from jgpt.tokenizers.sentencepiece_model import Piece

_SPACE = "▁"
_MOST_ROUNDS = 40
"""Each makes the pieces that two tokens spell; longer ones come nearer by one token a round."""
Split = Callable[[str], list[str]]


@dataclasses.dataclass(frozen=True)
class Extension:
    """
    Attributes:
        tokenizer: the extended one.
        first: the id of the first new token; below it nothing has changed.
        added: the texts of the new tokens, in the order of their ids.
        file: name of the tokenizer's file, with its new `content`.
        left_out: wanted pieces that text cannot produce: the tokenizer's own rules part or rewrite
            them.
    """

    tokenizer: Tokenizer
    first: int
    added: list[str]
    file: str
    content: bytes
    left_out: list[str]


def wanted_pieces(old: Tokenizer, new: Tokenizer, limit: int = 0) -> list[str]:
    """The texts of `new`'s tokens that `old` cuts into several, in the order of their ids.

    Args:
        limit: how many at most; 0 for all.
    """
    special = set(new.special_tokens.values())
    found = []
    for token in range(new.vocab_size):
        data = new.token_bytes(token)
        text = data.decode("utf-8", errors="ignore")
        whole = token not in special and text.encode() == data
        if whole and text.strip() and len(spelling(old, text)) > 1:
            found.append(text)
    found = list(dict.fromkeys(found))
    return found[:limit] if limit else found


def spelling(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a piece inside a text (here after a line break), where no space is put before it."""
    line, both = tokenizer.encode("\n"), tokenizer.encode(f"\n{text}")
    ids = both[len(line) :] if both[: len(line)] == line else tokenizer.encode(text)
    prefixed = len(ids) > 1 and tokenizer.token_bytes(ids[0]) == b" " and text[0] != " "
    return ids[1:] if prefixed else ids


def extend(
    folder: Path, wanted: Sequence[str], scores: Mapping[str, float] | None = None
) -> Extension:
    """The tokenizer of a model's folder with more pieces.

    Args:
        folder: of a model, with a `tokenizer.json` or a SentencePiece model.
        wanted: texts of the pieces.
        scores: their log-probabilities, which a unigram model needs.

    Raises:
        ConfigError: the folder's tokenizer is of another form.
    """
    path = store.find(folder)
    old = store.load(path)
    name = path.name
    if isinstance(old, huggingface.HuggingFaceTokenizer):
        name = huggingface.TOKENIZER_FILE
        file = _JsonFile(json.loads(old.content), old.vocab_size)
    elif isinstance(old, sentencepiece_tokenizer.SentencePieceTokenizer):
        file = _ModelFile(path.read_bytes(), old)
    else:
        raise ConfigError(
            f"{path.name} cannot be extended; the folder needs a tokenizer.json or a SentencePiece "
            "model"
        )
    if file.is_unigram and not all(text in (scores or {}) for text in wanted):
        raise ConfigError(
            f"{path.name} is a unigram model: give a SentencePiece unigram tokenizer, whose pieces "
            "have scores"
        )
    kept = [text for text in wanted if file.spell(text) not in file.known and file.keeps(text)]
    if file.is_unigram:
        entries = [_Entry(text, scores[text]) for text in kept]
    else:
        entries = _by_merges(file, kept)
    content = file.content(entries)
    tokenizer = file.tokenizer(content, old)
    added = [file.text(entry.text) for entry in entries]
    ids = {text: old.vocab_size + i for i, text in enumerate(added)}
    reached = {text for text in wanted if spelling(tokenizer, text) == [ids.get(text)]}
    return Extension(
        tokenizer=tokenizer,
        first=old.vocab_size,
        added=added,
        file=name,
        content=content,
        left_out=[text for text in wanted if text not in reached],
    )


@dataclasses.dataclass(frozen=True)
class _Entry:
    """A new entry in the file's own spelling: of a unigram model with a score, else perhaps made by
    a merge."""

    text: str
    score: float = 0.0
    pair: tuple[str, str] | None = None


def _by_merges(file: Any, wanted: Sequence[str]) -> list[_Entry]:
    """Entries with which byte-pair encoding arrives at every piece as one token.

    In rounds: a piece that the tokenizer so far cuts into two becomes their merge. Where all pieces
    that are left are cut into more, the merge of the first two tokens of each, an entry of its own,
    brings them nearer.
    """
    characters = dict.fromkeys(map(file.spell, "".join(wanted)))
    entries = [] if file.is_byte_level else [_Entry(c) for c in characters if c not in file.known]
    waiting = sorted(wanted, key=len)
    for _ in range(_MOST_ROUNDS):
        split = file.splitter(entries)
        cut = {text: split(text) for text in waiting}
        waiting = [text for text in waiting if len(cut[text]) > 1]
        if not waiting:
            break
        ready = [text for text in waiting if len(cut[text]) == 2] or waiting
        pairs = dict.fromkeys(tuple(cut[text][:2]) for text in ready)
        made = file.known | {entry.text for entry in entries}
        pairs = [pair for pair in pairs if "".join(pair) not in made]
        if not pairs:
            break
        entries += [_Entry(left + right, pair=(left, right)) for left, right in pairs]
    return entries


class _ModelFile:
    """A SentencePiece model to be extended."""

    def __init__(self, model: bytes, old: sentencepiece_tokenizer.SentencePieceTokenizer):
        added = [(token.id, token.content, token.special) for token in old.added]
        self._model = sentencepiece_model.extended(model, added, old.vocab_size)
        pieces = sentencepiece_model.pieces(self._model)
        self.known = {piece.text for piece in pieces}
        self.is_byte_level = False
        kind = sentencepiece_model.kind(model)
        if kind not in (sentencepiece_model.UNIGRAM, sentencepiece_model.BPE):
            raise ConfigError("a SentencePiece model of words or characters cannot be extended")
        self.is_unigram = kind == sentencepiece_model.UNIGRAM
        plain = sentencepiece_model.without_dummy_prefix(self._model)
        self._plain = sentencepiece.SentencePieceProcessor(model_proto=plain)
        self._lowest = min(piece.score for piece in pieces)

    def spell(self, text: str) -> str:
        return text.replace(" ", _SPACE)

    def text(self, spelt: str) -> str:
        return spelt.replace(_SPACE, " ")

    def keeps(self, text: str) -> bool:
        return self._plain.normalize(text) == self.spell(text) and _SPACE not in text

    def splitter(self, entries: Sequence[_Entry]) -> Split:
        model = sentencepiece_model.without_dummy_prefix(self.content(entries))
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        return lambda text: processor.encode(text, out_type=str)

    def content(self, entries: Sequence[_Entry]) -> bytes:
        """Scores of merges fall from the lowest there is: they come after all others."""
        scores = (
            entry.score if self.is_unigram else self._lowest - 1 - rank
            for rank, entry in enumerate(entries)
        )
        pieces = [Piece(entry.text, score) for entry, score in zip(entries, scores)]
        return sentencepiece_model.with_pieces(self._model, pieces)

    def tokenizer(
        self, content: bytes, old: sentencepiece_tokenizer.SentencePieceTokenizer
    ) -> Tokenizer:
        return old.with_model(content)


class _JsonFile:
    """A `tokenizer.json` to be extended."""

    def __init__(self, values: dict[str, Any], size: int):
        self._values = values
        self._size = size
        model = values["model"]
        self.is_unigram = isinstance(model["vocab"], list)
        if not self.is_unigram and "merges" not in model:
            raise ConfigError("a tokenizer.json of words or word pieces cannot be extended")
        decoders = [decoder["type"] for decoder in huggingface.decoders(values)]
        self.is_byte_level = decoders == ["ByteLevel"]
        names = (name for name, _ in model["vocab"]) if self.is_unigram else model["vocab"]
        self.known = {*names, *(token["content"] for token in values["added_tokens"])}
        self._library = self._build(values)

    def _build(self, values: dict[str, Any]) -> Any:
        return huggingface.library(values | {"post_processor": None})

    def spell(self, text: str) -> str:
        if self.is_byte_level:
            return huggingface.byte_level_name(text.encode())
        return text.replace(" ", _SPACE)

    def text(self, spelt: str) -> str:
        if self.is_byte_level:
            return huggingface.byte_level_bytes(spelt).decode("utf-8", errors="replace")
        return spelt.replace(_SPACE, " ")

    def keeps(self, text: str) -> bool:
        """Whether the file's rules leave a text whole; spaces before it are another matter."""
        normalizer, cutter = self._library.normalizer, self._library.pre_tokenizer
        normalized = normalizer.normalize_str(text) if normalizer else text
        parts = cutter.pre_tokenize_str(normalized) if cutter else [(normalized, None)]
        spelt = self.spell(text)
        return len(parts) == 1 and parts[0][0] in (spelt, _SPACE + spelt) and _SPACE not in text

    def splitter(self, entries: Sequence[_Entry]) -> Split:
        values = self._extended(entries)
        model = self._build(values).model
        return lambda text: [token.value for token in model.tokenize(self.spell(text))]

    def content(self, entries: Sequence[_Entry]) -> bytes:
        return json.dumps(self._extended(entries), ensure_ascii=False, indent=1).encode()

    def _extended(self, entries: Sequence[_Entry]) -> dict[str, Any]:
        model = dict(self._values["model"])
        if self.is_unigram:
            filling = {t["id"]: t["content"] for t in self._values["added_tokens"]}
            model["vocab"] = [
                *model["vocab"],
                *(
                    [filling.get(i, f"<unused_{i}>"), self._lowest()]
                    for i in range(len(model["vocab"]), self._size)
                ),
                *([entry.text, entry.score] for entry in entries),
            ]
        else:
            ids = {entry.text: self._size + i for i, entry in enumerate(entries)}
            model["vocab"] = {**model["vocab"], **ids}
            merges = [list(entry.pair) for entry in entries if entry.pair]
            old_form = bool(model["merges"]) and isinstance(model["merges"][0], str)
            model["merges"] = model["merges"] + (
                [" ".join(pair) for pair in merges] if old_form else merges
            )
        return self._values | {"model": model}

    def _lowest(self) -> float:
        return min(score for _, score in self._values["model"]["vocab"])

    def tokenizer(self, content: bytes, old: huggingface.HuggingFaceTokenizer) -> Tokenizer:
        return huggingface.HuggingFaceTokenizer(content, old.roles)
