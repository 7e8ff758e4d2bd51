"""Training or validation, by the text alone.

A document belongs to the validation side when the 64-bit hash of its cleaned text, as a fraction of
2**64, lies below `data.validation_fraction`: identical texts are never on both sides, whatever
their order, source or process.
"""

import hashlib


def text_hash(data: bytes) -> int:
    """64-bit hash of a text in UTF-8, the same everywhere."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def validation_bound(fraction: float) -> int:
    """Texts whose hash is below this are kept for validation."""
    return int(fraction * 2**64)


def is_validation(text: str, fraction: float) -> bool:
    """Whether a text is kept for validation."""
    return text_hash(text.encode()) < validation_bound(fraction)
