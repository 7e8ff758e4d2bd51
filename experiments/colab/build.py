"""Makes the notebooks: every percent-format `NAME.py` of this folder becomes `NAME.ipynb`.

    python experiments/colab/build.py

Percent format is what jupytext, VS Code and Spyder read: `# %%` begins a cell of code, and
`# %% [markdown]` one of text, whose lines are comments. What is written depends on nothing else, so
that a test can compare. Outputs are left out.
"""

import json
import re
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent
MARK = re.compile(r"^# %%(?P<text> \[markdown\])?$", re.MULTILINE)


class Cell(NamedTuple):
    kind: str
    """code or markdown"""
    source: str


def sources() -> list[Path]:
    """The notebooks' sources."""
    return sorted(path for path in FOLDER.glob("*.py") if MARK.match(path.read_text("utf-8")))


def read_cells(text: str) -> list[Cell]:
    """The cells of a text in percent format.

    Raises:
        ValueError: it begins with something else, or a line of a markdown cell is no comment.
    """
    marks = list(MARK.finditer(text))
    if not marks or text[: marks[0].start()].strip():
        raise ValueError("a notebook begins with '# %%' or '# %% [markdown]'")
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    cells = []
    for mark, end in zip(marks, ends):
        source = text[mark.end() : end].strip("\n")
        if mark["text"]:
            lines = source.split("\n")
            if not all(line.startswith("# ") or line == "#" for line in lines):
                raise ValueError(f"a line of this markdown cell is no comment:\n{source}")
            source = "\n".join(line[2:] for line in lines)
        cells.append(Cell("markdown" if mark["text"] else "code", source))
    return cells


def notebook(cells: list[Cell]) -> str:
    """A notebook's file (nbformat 4.5)."""
    written = []
    for number, cell in enumerate(cells):
        entry = {"cell_type": cell.kind, "id": f"cell-{number}", "metadata": {}}
        if cell.kind == "code":
            entry |= {"execution_count": None, "outputs": []}
        written.append(entry | {"source": cell.source.splitlines(keepends=True)})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    whole = {"cells": written, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, ensure_ascii=False, indent=1) + "\n"


def main() -> None:
    for path in sources():
        target = path.with_suffix(".ipynb")
        target.write_text(notebook(read_cells(path.read_text("utf-8"))), encoding="utf-8")
        print(target.name)


if __name__ == "__main__":
    main()
