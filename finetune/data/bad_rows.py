"""Rows that cannot be read: the reason in the place of the row, and a list of them that a person can read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from finetune.runtime.console import log

SHOWN = 10  # rows that are listed with one kind of reason; the others are counted
KINDS_SHOWN = 20  # of reasons
VARIES = re.compile(r"「[^」]*」|'[^']*'|\d+")  # what differs between two rows that are wrong alike


class Unreadable(str):
    """Why a row cannot be read, in Chinese; in the place of the row."""


Rows = Iterator[tuple[int, "dict | Unreadable"]]


def where(file: Path, line: int) -> str:
    return f"{file}:{line}" if line else str(file)


def kind_of(problem: str) -> str:
    """What is the same in `file:line：reason` of rows that are wrong in the same way."""
    return VARIES.sub("…", problem.partition("：")[2])


def abridged(problems: Sequence[str]) -> list[str]:
    """`file:line：reason` of each: of one kind at most SHOWN, in the order they came, then how many more."""
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    listed = []
    for problem in problems:
        kind = kind_of(problem)
        counts[kind] += 1
        first.setdefault(kind, problem)
        if counts[kind] <= SHOWN and len(first) <= KINDS_SHOWN:
            listed.append(problem)
    for number, (kind, count) in enumerate(counts.items()):
        if number < KINDS_SHOWN and count > SHOWN:
            listed.append(f"另有 {count - SHOWN} 列也是：{first[kind].partition('：')[2]}")
    if rest := sum(list(counts.values())[KINDS_SHOWN:]):
        listed.append(f"另有 {rest} 列是別的原因")
    return listed


def too_many(problems: Sequence[str], read: int, unit: str = "列") -> list[str]:
    """The lines of an error: bad rows, how many there are, how many could be read, the way out."""
    total = f"讀到 {read} {unit}，共 {len(problems)} 列有問題；加上 --on_bad_rows skip 可略過它們"
    return [*abridged(problems), total]


_told: set[object] = set()


def say_once(key: object, message: str) -> None:
    """Says what is the same for many files, or for every reading of a file, the first time only."""
    if key not in _told:
        _told.add(key)
        log(message)


def forget_told() -> None:
    """A new run says everything anew."""
    _told.clear()
