"""The embedded corpus: a small world told in Japanese, generated, never stored in the package."""

from jgpt.data.microworld import recogniser
from jgpt.data.microworld.checking import check_answer
from jgpt.data.microworld.generator import DEFAULT_SIZE, KINDS, document, documents
from jgpt.data.microworld.world import WORLD

__all__ = ["DEFAULT_SIZE", "KINDS", "WORLD", "check_answer", "document", "documents", "recogniser"]
