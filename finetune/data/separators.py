"""What separates the cells of a text file: a comma, a tab, or what a program of another country writes."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Sequence

from finetune.data.headers import known_names, names_without_header

NAMES = {",": "逗號", "\t": "定位字元", ";": "分號", "|": "直線 |"}
TOLD = re.compile(r'"?sep=(.)"?[\r\n]*')  # Excel's own first line
LEADING = 6  # records among which the header is


def separator_of(lines: Sequence[str], usual: str) -> tuple[str, bool]:
    """What separates the cells, and whether the first line only tells that.

    Args:
        lines: the first ones of the file.
        usual: what the file's name promises. Another is taken where the usual one finds no columns, or not
            those that have a name.
    """
    if lines and (told := TOLD.fullmatch(lines[0])):
        return told[1], True
    tables = {mark: _table(lines, mark) for mark in dict.fromkeys((usual, *NAMES))}
    scores = {mark: _score(table) for mark, table in tables.items()}
    best = max(scores, key=scores.get)  # the first of equals
    if best != usual and scores[best][0] > scores[usual][0]:
        return best, False
    if (
        scores[usual][1] < 2
        and scores[best][1] > 1
        and scores[best][2]
        and names_without_header(tables[best])
    ):
        return best, False
    return usual, False


def _table(lines: Sequence[str], mark: str) -> list[list[str]]:
    rows = csv.reader(lines, delimiter=mark)
    try:
        return [row for row in rows if any(cell.strip() for cell in row)]
    except csv.Error:
        return [line.rstrip("\r\n").split(mark) for line in lines if line.strip()]


def _score(table: list[list[str]]) -> tuple[int, int, bool]:
    """Names of columns in the best of the first records, cells of a usual one, whether all have as many."""
    if not table:
        return 0, 0, False
    width, count = Counter(map(len, table)).most_common(1)[0]
    names = (
        max(known_names(row) for row in table[:LEADING] if len(row) > 1)
        if width > 1 and any(len(row) > 1 for row in table[:LEADING])
        else max(map(known_names, table[:1]))
    )
    return names, width, count == len(table)
