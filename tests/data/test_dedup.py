"""Near-duplicates are found by their Jaccard similarity, and hashing is the same everywhere."""

import subprocess
import sys

import numpy as np
import pytest

from jgpt.data.dedup import (
    NUM_HASHES,
    SHINGLE,
    ExactDuplicates,
    NearDuplicates,
    bands_for,
    minhash,
    shingle_hashes,
)


def random_text(rng, size):
    return "".join(map(chr, rng.integers(0x3042, 0x3094, size)))


def edited(rng, text, changes):
    letters = list(text)
    for place in rng.choice(len(text), changes, replace=False):
        letters[place] = chr(0x4E00 + int(rng.integers(0, 5000)))
    return "".join(letters)


def jaccard(left, right):
    a, b = (
        {text[i : i + SHINGLE] for i in range(len(text) - SHINGLE + 1)} for text in (left, right)
    )
    return len(a & b) / len(a | b)


def test_signatures_estimate_the_jaccard_similarity():
    """Against the exact similarity of shingle sets, within four standard deviations."""
    rng = np.random.default_rng(0)
    for changes in (0, 3, 10, 30, 100):
        text = random_text(rng, 800)
        other = edited(rng, text, changes)
        exact = jaccard(text, other)
        estimate = np.mean(minhash(shingle_hashes(text)) == minhash(shingle_hashes(other)))
        assert abs(estimate - exact) <= 4 * np.sqrt(exact * (1 - exact) / NUM_HASHES) + 1e-9


def test_minhash_entries_are_uniform_and_independent():
    """A poor hash family would repeat its choice of shingle over the entries of a signature."""
    rng = np.random.default_rng(1)
    signatures = np.stack([minhash(shingle_hashes(random_text(rng, 50))) for _ in range(200)])
    similarities = (signatures[:100] == signatures[100:]).mean()
    assert similarities < 0.001
    half = edited(rng, text := random_text(rng, 400), 20)
    agreement = minhash(shingle_hashes(text)) == minhash(shingle_hashes(half))
    runs = np.diff(agreement.astype(int)) != 0
    assert runs.mean() > 0.2


def test_near_duplicates_are_found_and_others_kept():
    rng = np.random.default_rng(2)
    seen = NearDuplicates(0.7)
    texts = [random_text(rng, 500) for _ in range(50)]
    assert not any(seen.is_duplicate(text) for text in texts)
    close = [edited(rng, text, 8) for text in texts]
    assert all(jaccard(a, b) > 0.8 for a, b in zip(texts, close, strict=True))
    assert sum(seen.is_duplicate(text) for text in close) == 50
    far = [edited(rng, text, 60) for text in texts]
    assert all(jaccard(a, b) < 0.5 for a, b in zip(texts, far, strict=True))
    assert not any(seen.is_duplicate(text) for text in far)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 0.95])
def test_bands_find_a_pair_at_the_threshold(threshold):
    bands = bands_for(threshold)
    rows = NUM_HASHES // bands
    assert NUM_HASHES % bands == 0
    assert 1 - (1 - threshold**rows) ** bands >= 0.95


def test_white_space_and_short_texts():
    assert np.array_equal(shingle_hashes("あいうえおか"), shingle_hashes("あい うえ\nおか"))
    assert len(shingle_hashes("")) == 0
    assert len(shingle_hashes("あい")) == 1
    assert len(shingle_hashes("あああああああ")) == 1


def test_exact_duplicates():
    seen = ExactDuplicates()
    assert [seen.is_duplicate(t) for t in ("春", "夏", "春", "春 ")] == [False, False, True, False]


def test_hashes_do_not_depend_on_the_process():
    """Python's own hash() differs from process to process."""
    code = (
        "from jgpt.data.dedup import *; from jgpt.data.split import text_hash; "
        "print(minhash(shingle_hashes('春の朝、町を歩いた')).tolist(), text_hash('春'.encode()))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(p for p in sys.path if p)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
