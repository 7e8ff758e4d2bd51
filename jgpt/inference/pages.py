"""Which pages of a pool each row has: plain values, on the host, changed by making new ones.

`PageTable.table` is what `jgpt.layers.cache.allot` takes. Pages are the same for all layers.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np


class OutOfPages(Exception):
    """The pool has fewer free pages than a row needs."""


@dataclass(frozen=True)
class PageTable:
    """Free pages, and those of each row in the order of their tokens."""

    page_size: int
    free: tuple[int, ...]
    rows: tuple[tuple[int, ...], ...]

    @classmethod
    def empty(cls, num_pages: int, page_size: int, num_rows: int) -> "PageTable":
        return cls(page_size, tuple(range(num_pages)), ((),) * num_rows)

    def grown(self, row: int, tokens: int) -> "PageTable":
        """With pages for `tokens` tokens in `row`, those that it has included.

        Raises:
            OutOfPages: there are not enough; nothing has changed then.
        """
        missing = -(-tokens // self.page_size) - len(self.rows[row])
        if missing <= 0:
            return self
        if missing > len(self.free):
            raise OutOfPages(
                f"row {row} needs {missing} more pages for {tokens} tokens and {len(self.free)} "
                "are free; release a row or make a larger pool"
            )
        pages = self.rows[row] + self.free[:missing]
        return self._with(row, pages, self.free[missing:])

    def released(self, row: int) -> "PageTable":
        """With all pages of `row` free again."""
        return self._with(row, (), self.free + self.rows[row])

    def table(self, columns: int) -> np.ndarray:
        """[B, columns] int32, -1 where a row has no page.

        Raises:
            ValueError: a row has more pages than that.
        """
        longest = max(map(len, self.rows), default=0)
        if longest > columns:
            raise ValueError(f"a row has {longest} pages and the table {columns} columns")
        made = np.full((len(self.rows), columns), -1, np.int32)
        for line, pages in zip(made, self.rows):
            line[: len(pages)] = pages
        return made

    def _with(self, row: int, pages: tuple[int, ...], free: tuple[int, ...]) -> "PageTable":
        rows = (*self.rows[:row], pages, *self.rows[row + 1 :])
        return dataclasses.replace(self, free=free, rows=rows)
