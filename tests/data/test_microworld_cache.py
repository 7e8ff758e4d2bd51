"""The cache of generated documents: the same documents, at speed, and damage is noticed."""

from __future__ import annotations

import os
import pickle
import random
import time

import pytest

from jgpt.data import microworld
from jgpt.data.microworld import cache

SIZE = 3_000


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> str:
    return cache.ensure(tmp_path_factory.mktemp("cache"), size=SIZE, seed=4)


def test_the_cache_holds_the_generated_documents(path):
    cached = cache.open(path)
    assert len(cached) == SIZE
    assert list(cached) == list(microworld.documents(0, SIZE, seed=4))


def test_reading_at_random_equals_reading_in_order(path):
    cached = cache.open(path)
    for index in random.Random(1).sample(range(SIZE), 300):
        assert cached[index] == microworld.document(index, seed=4)
    assert cached[-1] == cached[SIZE - 1]
    assert cached[10:13] == [cached[10], cached[11], cached[12]]
    with pytest.raises(IndexError, match=str(SIZE)):
        cached[SIZE]


def test_it_travels_to_other_processes_as_its_path(path):
    cached = pickle.loads(pickle.dumps(cache.open(path)))
    assert cached[17] == microworld.document(17, seed=4)


def test_a_good_cache_is_used_again(path):
    before = os.stat(path).st_mtime_ns
    assert cache.ensure(os.path.dirname(path), size=SIZE, seed=4) == path
    assert os.stat(path).st_mtime_ns == before


def test_size_seed_and_source_are_part_of_the_name(tmp_path, monkeypatch):
    names = {cache.cache_path(tmp_path, 10, 0), cache.cache_path(tmp_path, 11, 0)}
    names.add(cache.cache_path(tmp_path, 10, 1))
    monkeypatch.setattr(cache, "source_hash", lambda: "f" * 64)
    names.add(cache.cache_path(tmp_path, 10, 0))
    assert len(names) == 4


def _flip(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content[: len(content) // 2],
        lambda content: content[:10],
        lambda content: b"",
        lambda content: content + b"x",
        lambda content: _flip(content, len(content) // 2),
        lambda content: _flip(content, len(content) - 1),
        lambda content: _flip(content, 20),
        lambda content: _flip(content, 0),
        lambda content: _flip(content, 9),
    ],
)
def test_damage_is_noticed_and_repaired(tmp_path, damage):
    path = cache.ensure(tmp_path, size=40)
    with open(path, "rb") as file:
        content = file.read()
    with open(path, "wb") as file:
        file.write(damage(content))
    with pytest.raises(cache.DamagedCacheError, match="cache"):
        cache.open(path)
    assert cache.ensure(tmp_path, size=40) == path
    assert list(cache.open(path)) == list(microworld.documents(0, 40))


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        cache.ensure(tmp_path, size=10)
    assert os.listdir(tmp_path) == []


def test_two_processes_write_the_same_file(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_CHUNK", 20)
    alone = cache.ensure(tmp_path / "one", size=50)
    together = cache.ensure(tmp_path / "two", size=50, workers=2)
    with open(alone, "rb") as one, open(together, "rb") as two:
        assert one.read() == two.read()
    assert list(cache.open(alone)) == list(microworld.documents(0, 50))  # chunks joined rightly


def test_generating_and_reading_are_fast_enough(path):
    begin = time.process_time()
    size = sum(len(document.text.encode()) for document in microworld.documents(0, 2_000))
    assert size / (time.process_time() - begin) > 2e6
    cached = cache.open(path)
    begin = time.process_time()
    characters = sum(len(document.text) for document in cached)
    seconds = time.process_time() - begin
    assert 2.5 * characters / seconds > 50e6  # UTF-8 takes between 2.5 and 3 bytes each
