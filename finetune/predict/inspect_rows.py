"""Parts that the inspections of datasets of rows share: lengths, duplicates, and what was found in words."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from statistics import median
from typing import Any, Protocol, TypeVar

from finetune.data.bad_rows import summarize_problems
from finetune.predict.inspect_exam import ROWS_SHOWN, table


class InspectedRow(Protocol):
    """A row with a name and a hash of what the model reads."""

    @property
    def id(self) -> str:
        """Name for messages and reports."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hash of what the model reads."""
        ...


Row = TypeVar("Row", bound=InspectedRow)


def quantiles(lengths: Sequence[int]) -> dict[str, Any]:
    """Return median, 90 % and maximum; zeros without any."""
    counts = sorted(lengths) or [0]
    return {"median": median(counts), "p90": counts[int(len(counts) * 0.9)], "longest": counts[-1]}


def duplicates(
    splits: Mapping[str, Sequence[Row]], meaning: Callable[[Row], Hashable]
) -> dict[str, list[list[str]]]:
    """Group the ids of rows that a model reads as the same.

    Args:
        meaning: what is to be learnt from a row: label, spans, answers.

    Returns:
        `same_within` one split, `same_across` several, `contradict`: with other meanings.
    """
    groups: dict[str, list[tuple[str, Row]]] = defaultdict(list)
    for split, rows in splits.items():
        for row in rows:
            groups[row.fingerprint].append((split, row))
    found: dict[str, list[list[str]]] = {"same_within": [], "same_across": [], "contradict": []}
    for group in groups.values():
        ids = [f"{split}/{row.id}" for split, row in group]
        if max(Counter(split for split, _ in group).values()) > 1:
            found["same_within"].append(ids)
        if len({split for split, _ in group}) > 1:
            found["same_across"].append(ids)
        if len({meaning(row) for _, row in group}) > 1:
            found["contradict"].append(ids)
    return found


def joined(groups: Sequence[Sequence[str]], sign: str = "=") -> list[str]:
    """Return groups of ids as lines."""
    return [f" {sign} ".join(group) for group in groups]


def check_lines(checks: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    """Return a table of (name, what was found), then each that found something; unusable rows come first."""
    lines = table(["檢查", "筆數"], [[name, len(found)] for name, found in checks])
    for name, found in checks:
        if found:
            shown = summarize_problems(list(found)) if name == checks[0][0] else found[:ROWS_SHOWN]
            more = f"（前 {ROWS_SHOWN} 筆，全部見 --json）" if len(found) > ROWS_SHOWN else ""
            lines += [f"{name}{more}：", *(f"  - {row}" for row in shown), ""]
    return lines
