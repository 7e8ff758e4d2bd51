"""The unit every corpus is made of."""

from __future__ import annotations

from typing import NamedTuple


class Document(NamedTuple):
    """One text with what is known about it.

    Attributes:
      text: the whole text.
      id: names the document within its source, e.g. ``microworld/0/123``.
      kind: what sort of text it is; empty where the source does not say.
      answer: the checkable answer, or None where there is nothing to check.
      prompt: the part of ``text`` that is given when the answer is asked for
        (``text.startswith(prompt)``; the rest is the response that holds the answer), or None.
    """

    text: str
    id: str = ""
    kind: str = ""
    answer: str | None = None
    prompt: str | None = None
