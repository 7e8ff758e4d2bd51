"""Compares a candidate's answer with a document's."""

from __future__ import annotations

import re
import unicodedata

from jgpt.data.document import Document
from jgpt.data.microworld.world import WORLD

_ANSWER_MARK = "【答え】"
_LIST = re.compile(r"、([^、。「」]+?)を(二つ|三つ|四つ|五つ)挙げてください")
_NUMBERS = {"二つ": 2, "三つ": 3, "四つ": 4, "五つ": 5}
_ENDINGS = ("です", "でした", "だ", "である")


def normalise(answer: str) -> str:
    """An answer without what does not matter: width, blanks, quotes, the closing です and 。"""
    text = _bare(answer)
    for ending in _ENDINGS:
        if text.endswith(ending) and len(text) > len(ending):
            return text.removesuffix(ending)
    return text


def _bare(answer: str) -> str:
    text = unicodedata.normalize("NFKC", answer)
    return re.sub(r"[\s「」,]", "", text).rstrip("。.!")


def final_answer(response: str) -> str:
    """The answer within a response: what follows the last 【答え】, if any, in its line."""
    return response.rpartition(_ANSWER_MARK)[2].strip().partition("\n")[0]


def _lists_members(candidate: str, category: str, number: int) -> bool:
    named = [item for item in candidate.split("、") if item]
    return len(named) == number == len(set(named)) and set(named) <= set(WORLD.members[category])


def check_answer(document: Document, candidate: str) -> bool:
    """Whether a candidate answers the document's question.

    Args:
      document: one with an answer.
      candidate: a bare answer, or a response that ends in 【答え】 and the answer.

    Where the instruction asks for any three things of a category, any three do.

    Raises:
      ValueError: the document has no answer to compare with.
    """
    if document.answer is None:
        raise ValueError(f"document {document.id!r}: kind {document.kind!r} has no answer to check")
    given = normalise(final_answer(candidate))
    asked = _LIST.search(document.prompt or "")
    if asked and asked.group(1) in WORLD.members:
        return _lists_members(given, asked.group(1), _NUMBERS[asked.group(2)])
    if document.answer.endswith("。"):  # a whole sentence: its ending is what was asked for
        return _bare(final_answer(candidate)) == _bare(document.answer)
    return given == normalise(document.answer)
