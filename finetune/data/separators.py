"""Separators of the cells of a text file: a comma, a tab, or those of programs of other countries."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Sequence

from finetune.data.headers import known_names, names_without_header

NAMES = {",": "逗號", "\t": "定位字元", ";": "分號", "|": "直線 |"}
DECLARED = re.compile(r'"?sep=(.)"?[\r\n]*')  # Excel's own first line
LEADING = 6  # records among which the header must be


def separator_of(lines: Sequence[str], usual: str) -> tuple[str, bool]:
    """Return the separator of the cells, and whether the first line only declares it.

    Args:
        lines: the first ones of the file.
        usual: the separator that the file's name promises. Another is taken where the usual one finds no
            columns, or none with a usual name.
    """
    if lines and (declared := DECLARED.fullmatch(lines[0])):
        return declared[1], True
    tables = {mark: _table(lines, mark) for mark in dict.fromkeys((usual, *NAMES))}
    scores = {mark: _score(table) for mark, table in tables.items()}
    best = max(scores, key=lambda mark: scores[mark])  # the first of equals
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
    """Return the cells of lines that are not blank."""
    rows = csv.reader(lines, delimiter=mark)
    try:
        return [row for row in rows if any(cell.strip() for cell in row)]
    except csv.Error:
        return [line.rstrip("\r\n").split(mark) for line in lines if line.strip()]


def _score(table: list[list[str]]) -> tuple[int, int, bool]:
    """Return the usual names in the best of the first records, the width, and whether all are that wide."""
    if not table:
        return 0, 0, False
    width, count = Counter(map(len, table)).most_common(1)[0]
    names = (
        max(known_names(row) for row in table[:LEADING] if len(row) > 1)
        if width > 1 and any(len(row) > 1 for row in table[:LEADING])
        else max(map(known_names, table[:1]))
    )
    return names, width, count == len(table)
