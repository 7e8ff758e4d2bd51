"""Exact and near-duplicate removal; the first of a group of equal texts stays.

Near-duplicates by MinHash (Broder 1997) over character 5-grams with banded locality-sensitive
hashing (Indyk & Motwani 1998; Leskovec et al., Mining of Massive Datasets, section 3.4). All
hashing is fixed 64-bit arithmetic: results do not depend on the process, the platform or Python's
`hash()`.
"""

import hashlib

import numpy as np

NUM_HASHES = 128
SHINGLE = 5
_CHUNK = 512  # shingles hashed at a time: 512 KiB, which stays in the processor's cache


def shingle_hashes(text: str, size: int = SHINGLE) -> np.ndarray:
    """[n] uint64 distinct hashes of the character `size`-grams of `text`.

    White space is left out; a text shorter than `size` is one shingle.
    """
    codes = np.frombuffer("".join(text.split()).encode("utf-32-le"), dtype="<u4").astype(np.uint64)
    size = max(1, min(size, len(codes)))
    if not len(codes):
        return np.zeros(0, np.uint64)
    hashes = np.zeros(len(codes) - size + 1, np.uint64)
    for offset in range(size):
        hashes = _mix(hashes ^ codes[offset : offset + len(hashes)])
    return np.unique(hashes)


def _mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele et al. 2014): every input bit moves every output bit."""
    values = (values + np.uint64(0x9E3779B97F4A7C15)).astype(np.uint64)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


_MULTIPLIERS = _mix(np.arange(NUM_HASHES, dtype=np.uint64)) | np.uint64(1)


def minhash(hashes: np.ndarray) -> np.ndarray:
    """[NUM_HASHES] uint32 signature; the share of equal entries estimates Jaccard similarity."""
    signature = np.full(NUM_HASHES, np.uint64(2**64 - 1))
    for start in range(0, len(hashes), _CHUNK):
        chunk = hashes[start : start + _CHUNK, None] * _MULTIPLIERS
        signature = np.minimum(signature, (chunk ^ (chunk >> np.uint64(32))).min(axis=0))
    return (_mix(signature) >> np.uint64(32)).astype(np.uint32)


def bands_for(threshold: float) -> int:
    """Number of bands, a divisor of NUM_HASHES, that finds a pair at `threshold` 19 times in 20.

    With b bands of r rows a pair of similarity s shares a band with probability 1 - (1 - s^r)^b.
    The fewest such bands: more only bring more candidates to compare.
    """
    for bands in (1, 2, 4, 8, 16, 32, 64, NUM_HASHES):
        if 1 - (1 - threshold ** (NUM_HASHES // bands)) ** bands >= 0.95:
            return bands
    return NUM_HASHES


class ExactDuplicates:
    """Remembers texts by a 128-bit hash."""

    def __init__(self):
        self._seen: set[bytes] = set()

    def is_duplicate(self, text: str) -> bool:
        """Whether this text was asked about before; remembers it."""
        digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
        if digest in self._seen:
            return True
        self._seen.add(digest)
        return False


class NearDuplicates:
    """Remembers signatures (512 bytes a document) and the buckets of their bands.

    Args:
        threshold: estimated Jaccard similarity of 5-gram sets from which a text is a duplicate.
    """

    def __init__(self, threshold: float):
        self.threshold = threshold
        self._bands = bands_for(threshold)
        self._signatures: list[np.ndarray] = []
        self._buckets: dict[tuple[int, bytes], list[int]] = {}

    def is_duplicate(self, text: str) -> bool:
        """Whether a kept text is at least this similar; remembers the text if none is."""
        signature = minhash(shingle_hashes(text))
        data, width = signature.tobytes(), signature.nbytes // self._bands
        keys = [(start, data[start : start + width]) for start in range(0, len(data), width)]
        candidates = {index for key in keys for index in self._buckets.get(key, ())}
        for index in candidates:
            if np.mean(self._signatures[index] == signature) >= self.threshold:
                return True
        for key in keys:
            self._buckets.setdefault(key, []).append(len(self._signatures))
        self._signatures.append(signature)
        return False
