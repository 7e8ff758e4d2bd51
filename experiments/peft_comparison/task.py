"""The task that is taught: the embedded world's instructions whose answers are one of a few.

A small model learns in a minute which particle is missing, when a plant flowers, how long a word
is or what a thing belongs to; sums, prices and whole sentences it does not, and where every method
answers none rightly nothing can be compared.
"""

import json
from collections import Counter
from pathlib import Path

from jgpt.data.tasks import MicroworldConversations

LOOKED_AT = 100_000
"""Documents of the embedded world, of which one in ten is an instruction."""
ANSWERS = 30
"""Commonest answers that are kept, of at most four characters."""
LONGEST = 4


def write(path: Path) -> None:
    """Writes the questions with their answers, a JSON record a line."""
    documents = MicroworldConversations(LOOKED_AT, "instruction")
    records = [json.loads(d.text) for d in map(documents.__getitem__, range(LOOKED_AT)) if d]
    short = [r for r in records if len(r.get("answer") or "-" * (LONGEST + 1)) <= LONGEST]
    common = {answer for answer, _ in Counter(r["answer"] for r in short).most_common(ANSWERS)}
    kept = [r for r in short if r["answer"] in common]
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in kept))
