"""Windows over rows that are longer than a model: consecutive parts that overlap."""

from __future__ import annotations

from collections.abc import Sequence


def windows(count: int, size: int, overlap: int) -> list[range]:
    """Return ranges of at most `size` that cover range(count); each shares `overlap` places with the next.

    The last one ends where the row does, and may share more.

    Raises:
        ValueError: windows that would never end: `overlap` is not below `size`.
    """
    if not 0 <= overlap < size:
        raise ValueError(f"overlap {overlap} of windows of {size}")
    if count <= size:
        return [range(count)]
    starts = list(range(0, count - size, size - overlap))
    return [range(start, start + size) for start in [*starts, count - size]]


def best_window(ranges: Sequence[range], place: int) -> int:
    """Return the number of the window in which a place has the most context: farthest from both ends.

    The first of equals. An end where the row itself ends counts as well as any other place.
    """
    last = ranges[-1].stop

    def context(number: int) -> float:
        window = ranges[number]
        before = place - window.start if window.start else last
        after = window.stop - 1 - place if window.stop < last else last
        return min(before, after)

    return max((n for n, window in enumerate(ranges) if place in window), key=context)
