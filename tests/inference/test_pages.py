"""No page is lost, and none belongs to two rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jgpt.inference.pages import OutOfPages, PageTable


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 40)), max_size=12))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_every_page_has_one_place(steps):
    """0 tokens stands for the end of a row."""
    pages = PageTable.empty(8, 4, 3)
    for row, tokens in steps:
        before = pages
        try:
            pages = pages.grown(row, tokens) if tokens else pages.released(row)
        except OutOfPages:
            assert -(-tokens // 4) - len(before.rows[row]) > len(before.free)
        assert sorted(pages.free + sum(pages.rows, ())) == list(range(8))
        if tokens and pages is not before:
            assert len(pages.rows[row]) == -(-tokens // 4)
            assert pages.rows[row][: len(before.rows[row])] == before.rows[row]


def test_the_table_has_minus_one_where_no_page_is():
    pages = PageTable.empty(5, 4, 2).grown(1, 9).grown(0, 1)
    np.testing.assert_array_equal(pages.table(4), [[3, -1, -1, -1], [0, 1, 2, -1]])
    with pytest.raises(ValueError, match="3 pages"):
        pages.table(2)
    with pytest.raises(OutOfPages, match="row 0 needs 2 more"):
        pages.grown(0, 9)
