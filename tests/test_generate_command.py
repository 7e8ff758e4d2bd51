"""Stop strings in a stream of pieces."""

import pytest

from jgpt.generate import until_stop


@pytest.mark.parametrize(
    "pieces,stops,expected",
    [
        (["ab", "cd"], [], "abcd"),
        (["a", "b。", "c"], ["。"], "ab"),
        (["x<", "e", "nd>y"], ["<end>"], "x"),
        (["x<", "e", "nx"], ["<end>"], "x<enx"),
        (["abc"], ["c", "b"], "a"),
        ([], ["z"], ""),
    ],
)
def test_text_ends_before_the_first_stop(pieces, stops, expected):
    assert "".join(until_stop(iter(pieces), stops)) == expected


def test_without_stops_nothing_waits():
    assert list(until_stop(iter(["a", "b"]), [])) == ["a", "b", ""]
