"""Rows that cannot be read: a reason in place of the row, and a readable list of reasons."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from finetune.runtime.console import log

SHOWN = 10  # rows listed for one kind of reason; the others are counted
KINDS_SHOWN = 20  # kinds of reasons listed
VARIES = re.compile(r"「[^」]*」|'[^']*'|\d+")  # the part of a reason that differs between rows of one kind


class Unreadable(str):
    """The reason why a row cannot be read, in Chinese; it stands in place of the row."""


Rows = Iterator[tuple[int, "dict[Any, Any] | Unreadable"]]


def where(file: Path, line: int) -> str:
    """Return `file:line`, or the file alone where the line is 0."""
    return f"{file}:{line}" if line else str(file)


def fault_of(problem: str) -> str:
    """Return the part of `file:line：reason` that rows with the same fault share."""
    return VARIES.sub("…", problem.partition("：")[2])


def summarize_problems(problems: Sequence[str]) -> list[str]:
    """Return `file:line：reason` of each row, at most SHOWN of one kind, then the number of the others."""
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    listed = []
    for problem in problems:
        kind = fault_of(problem)
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


def bad_rows_report(problems: Sequence[str], read: int, unit: str = "列") -> list[str]:
    """Return the lines of an error: bad rows, their number, how many were read, and the flag to skip them."""
    total = f"讀到 {read} {unit}，共 {len(problems)} 列有問題；加上 --on_bad_rows skip 可略過它們"
    return [*summarize_problems(problems), total]


_logged: set[object] = set()


def log_once(key: object, message: str) -> None:
    """Log a message that is the same for many files, or for every reading of a file, only once."""
    if key not in _logged:
        _logged.add(key)
        log(message)


def reset_log_once() -> None:
    """Forget the messages logged so far: a new run logs them anew."""
    _logged.clear()
