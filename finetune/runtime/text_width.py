"""Width of texts on a terminal, where a Chinese character takes two columns, and tables aligned by it."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Sequence


def display_width(text: str) -> int:
    """Return the columns a text takes on a terminal."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def align_table(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[list[str]]:
    """Pad every cell to the width of its column.

    Args:
        rows: of equally many cells, the header among them.
        right: indices of the columns that are aligned to the right.
    """
    widths = [max(map(display_width, column)) for column in zip(*rows, strict=True)]
    table = []
    for row in rows:
        gaps = [" " * (width - display_width(cell)) for cell, width in zip(row, widths, strict=True)]
        table.append(
            [
                gap + cell if index in right else cell + gap
                for index, (cell, gap) in enumerate(zip(row, gaps, strict=True))
            ]
        )
    return table
