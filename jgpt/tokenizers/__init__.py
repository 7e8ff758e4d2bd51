"""Tokenizers behind one interface: SentencePiece, bytes, words, and Hugging Face files."""

from jgpt.tokenizers.base import CHAT_MARKERS, TextStream, Tokenizer, safe_truncate
from jgpt.tokenizers.store import TRAINABLE_KINDS, build, load, train
from jgpt.tokenizers.utf8 import ByteMask

__all__ = [
    "CHAT_MARKERS",
    "TRAINABLE_KINDS",
    "ByteMask",
    "TextStream",
    "Tokenizer",
    "build",
    "load",
    "safe_truncate",
    "train",
]
