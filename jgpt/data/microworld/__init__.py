"""The embedded corpus: a small world told in Japanese, generated, never stored in the package.

``document(index, seed)`` gives any document of the corpus by itself; ``cache`` keeps generated
documents in a file; ``WORLD`` holds what is true in the world; ``recogniser`` says whether a
sentence is well formed in it; ``check_answer`` compares an answer with a document's.
See ``docs/microworld.md``.
"""

from jgpt.data.microworld import cache, recogniser
from jgpt.data.microworld.checking import check_answer
from jgpt.data.microworld.generator import DEFAULT_SIZE, KINDS, document, documents, kind_of
from jgpt.data.microworld.world import WORLD

__all__ = [
    "DEFAULT_SIZE",
    "KINDS",
    "WORLD",
    "cache",
    "check_answer",
    "document",
    "documents",
    "kind_of",
    "recogniser",
]
