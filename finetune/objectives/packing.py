"""Documents of unequal length into rows of one length, with little left empty."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence


def pack(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Which documents share a row: best-fit decreasing (arXiv:2404.10830, section 3.2). No document is cut.

    Args:
        lengths: of the documents, each at most `size`.

    Returns:
        indices of the documents of each row.
    """
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (room left, row), sorted
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = bisect_left(free, (lengths[index], -1))  # the fullest row that still has room
        if place == len(free):
            rows.append([])
            room, row = size, len(rows) - 1
        else:
            room, row = free.pop(place)
        rows[row].append(index)
        insort(free, (room - lengths[index], row))
    return rows
