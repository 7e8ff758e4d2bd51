"""Packers keep every token once and in order, whatever the lengths."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jgpt.data.packing import (
    BestFitPacker,
    Segment,
    decode_rows,
    encode_rows,
    extend_sums,
    make_packer,
    subset_of_largest_sum,
)
from jgpt.data.transforms import document_segment, rows_to_arrays

PACKINGS = ("best_fit", "split", "none")
lengths_lists = st.lists(st.integers(1, 70), max_size=60)


def documents(lengths, rng):
    """Segments of so many positions, each with tokens of its own and some characters."""
    return [
        Segment(rng.integers(10, 60_000, size + 1).astype(np.int32), int(rng.integers(0, 200)))
        for size in lengths
    ]


def pack(packing, length, segments, open_rows=4):
    packer = make_packer(packing, length, open_rows)
    for segment in segments:
        packer.add(segment)
    packer.flush()
    return list(packer.ready)


@pytest.mark.parametrize("packing", PACKINGS)
@settings(max_examples=40, deadline=None)
@given(lengths=lengths_lists, seed=st.integers(0, 2**32 - 1))
def test_every_position_appears_once_and_in_order(packing, lengths, seed):
    """Rejoining the pieces of each document by their order gives its (input, target) pairs back."""
    rng = np.random.default_rng(seed)
    segments = documents(lengths, rng)
    rows = pack(packing, 16, segments)
    pieces = [piece for row in rows for piece in row]
    assert sum(piece.size for piece in pieces) == sum(lengths)
    assert all(sum(piece.size for piece in row) <= 16 for row in rows)
    assert sum(piece.characters for piece in pieces) == sum(s.characters for s in segments)
    for document in segments:
        own = [piece for piece in pieces if np.shares_memory(piece.tokens, document.tokens)]
        assert np.array_equal(np.concatenate([p.tokens[:-1] for p in own]), document.tokens[:-1])
        assert np.array_equal(np.concatenate([p.tokens[1:] for p in own]), document.tokens[1:])


@settings(max_examples=40, deadline=None)
@given(lengths=lengths_lists, seed=st.integers(0, 2**32 - 1))
def test_best_fit_cuts_no_document_that_fits_in_a_row(lengths, seed):
    segments = documents(lengths, np.random.default_rng(seed))
    pieces = [piece for row in pack("best_fit", 32, segments) for piece in row]
    for document in segments:
        own = [piece for piece in pieces if np.shares_memory(piece.tokens, document.tokens)]
        assert len(own) == -(-document.size // 32)
        assert all(piece.size == 32 for piece in own[:-1])


@settings(max_examples=20, deadline=None)
@given(lengths=lengths_lists, seed=st.integers(0, 2**32 - 1))
def test_split_leaves_room_in_the_last_row_only(lengths, seed):
    rows = pack("split", 16, documents(lengths, np.random.default_rng(seed)))
    sizes = [sum(piece.size for piece in row) for row in rows]
    assert all(size == 16 for size in sizes[:-1])
    tokens = np.concatenate([p.tokens[:-1] for row in rows for p in row]) if rows else []
    expected = documents(lengths, np.random.default_rng(seed))
    assert np.array_equal(tokens, np.concatenate([d.tokens[:-1] for d in expected] or [[]]))


def test_none_gives_every_document_rows_of_its_own():
    rows = pack("none", 16, documents([5, 16, 40], np.random.default_rng(0)))
    assert [[piece.size for piece in row] for row in rows] == [[5], [16], [16], [16], [8]]


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=9), room=st.integers(40, 60))
def test_the_chosen_subset_is_the_best_of_all(sizes, room):
    sums = []
    for known in range(1, len(sizes) + 1):  # as documents come one by one
        extend_sums(sums, sizes[:known], room)
    chosen = subset_of_largest_sum(sums, sizes)
    assert chosen[0] == 0 and chosen == sorted(set(chosen))
    subsets = itertools.chain.from_iterable(
        itertools.combinations(range(1, len(sizes)), n) for n in range(len(sizes))
    )
    sums = [sizes[0] + sum(sizes[index] for index in subset) for subset in subsets]
    assert sum(sizes[index] for index in chosen) == max(s for s in sums if s <= room)


def test_best_fit_takes_the_oldest_and_what_fills_its_row():
    packer = BestFitPacker(100, open_rows=4)
    for segment in documents([60, 70, 50, 40], np.random.default_rng(1)):
        packer.add(segment)
    assert [[p.size for p in row] for row in packer.ready] == [[60, 40]]
    assert [row[0].size for row in packer.open] == [70, 50]


def test_best_fit_lets_no_more_wait_than_allowed():
    packer = BestFitPacker(100, open_rows=3)
    for segment in documents([51, 52, 53, 54, 55, 56], np.random.default_rng(2)):
        packer.add(segment)
    assert [row[0].size for row in packer.open] == [52, 53, 54, 55, 56]
    assert [row[0].size for row in packer.ready] == [51]


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_restored_packer_goes_on_as_if_never_stopped(packing):
    rng = np.random.default_rng(3)
    segments = documents(rng.integers(1, 60, 300), rng)
    whole, broken = (make_packer(packing, 32, 8) for _ in range(2))
    for number, segment in enumerate(segments):
        whole.add(segment)
        broken.add(segment)
        if number % 7 == 0:
            ready, open_rows = broken.snapshot()
            states = [json.loads(json.dumps(encode_rows(rows))) for rows in (ready, open_rows)]
            broken = make_packer(packing, 32, 8)
            broken.restore(*map(decode_rows, states))
    assert_same_rows(whole.ready, broken.ready)
    assert_same_rows(whole.open, broken.open)


def assert_same_rows(left, right):
    assert [[p.characters for p in row] for row in left] == [
        [p.characters for p in row] for row in right
    ]
    for a, b in zip((p for r in left for p in r), (p for r in right for p in r), strict=True):
        assert np.array_equal(a.tokens, b.tokens)


def test_a_snapshot_is_not_touched_by_what_follows():
    rng = np.random.default_rng(4)
    packer = BestFitPacker(64, open_rows=4)
    for segment in documents([20, 30, 40], rng):
        packer.add(segment)
    snapshot = packer.snapshot()
    before = json.dumps([encode_rows(rows) for rows in snapshot])
    for segment in documents([20, 10, 33, 12, 60], rng):
        packer.add(segment)
    assert json.dumps([encode_rows(rows) for rows in snapshot]) == before


def test_rows_of_large_vocabularies_survive_the_state():
    rows = [[Segment(np.array([1, 2**17, 3], np.int32), 4)], []]
    decoded = decode_rows(encode_rows(rows))
    assert decoded[1] == []
    assert decoded[0][0].tokens.tolist() == [1, 2**17, 3]


def test_best_fit_wastes_less_than_two_percent():
    """On lengths like the microworld's (100 to 280 characters) and like novels cut at 256."""
    rng = np.random.default_rng(5)
    for lengths in (
        rng.normal(85, 20, 20_000).clip(30, 200).astype(int),
        np.exp(rng.normal(8, 1.2, 1500)).clip(20, 40_000).astype(int),
    ):
        packer = make_packer("best_fit", 256, 64)
        for size in lengths:
            packer.add(Segment(np.zeros(size + 1, np.int32), 0))
        packer.flush()
        waste = 1 - lengths.sum() / (256 * len(packer.ready))
        assert waste < 0.02, waste


def test_arrays_of_a_batch():
    """Two documents in a row, a full row and an empty one: every field, by hand."""
    first = document_segment([11, 12], characters=7, bos_id=2, eos_id=3)
    second = document_segment([13], characters=5, bos_id=2, eos_id=3)
    arrays = rows_to_arrays([[first, second], []], length=6, pad_id=0)
    assert arrays["inputs"].tolist() == [[2, 11, 12, 2, 13, 0], [0] * 6]
    assert arrays["targets"].tolist() == [[11, 12, 3, 13, 3, 0], [0] * 6]
    assert arrays["positions"].tolist() == [[0, 1, 2, 0, 1, 0], [0] * 6]
    assert arrays["segment_ids"].tolist() == [[1, 1, 1, 2, 2, 0], [0] * 6]
    assert arrays["characters"].tolist() == [[0, 0, 7, 0, 5, 0], [0] * 6]
    assert arrays["loss_weights"].tolist() == [[1, 1, 1, 1, 1, 0], [0] * 6]
    assert arrays["loss_weights"].dtype == np.float32
    assert all(arrays[name].dtype == np.int32 for name in arrays if name != "loss_weights")


@pytest.mark.parametrize("packing", PACKINGS)
def test_no_target_crosses_a_document(packing):
    """With bos and eos around every document, a target after eos would be the next one's bos."""
    rng = np.random.default_rng(6)
    segments = [
        document_segment(rng.integers(10, 99, n), characters=n, bos_id=2, eos_id=3)
        for n in rng.integers(0, 50, 100)
    ]
    arrays = rows_to_arrays(pack(packing, 24, segments), 24, pad_id=0)
    used = arrays["segment_ids"] > 0
    assert not (arrays["inputs"][used] == 3).any()
    assert not (arrays["targets"][used] == 2).any()
    assert (arrays["targets"] == 3).sum() == len(segments)
    starts = arrays["positions"][:, 1:] == 0
    changes = arrays["segment_ids"][:, 1:] != arrays["segment_ids"][:, :-1]
    assert np.array_equal((starts & used[:, 1:]), (changes & used[:, 1:]))
    assert arrays["characters"].sum() == sum(s.characters for s in segments)
