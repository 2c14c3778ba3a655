"""Sentences for the report of a tagger: which spans it found, missed and added."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finetune.data.tag_schemes import UNTYPED
from finetune.data.tagged import TaggedRow
from finetune.data.text_units import Span

SAMPLES = 20
FAULTY = 15  # of them with a mistake, where there are so many
LONGEST = 240  # characters of a sentence that are shown


def samples_of(rows: Sequence[TaggedRow], found: Sequence[Sequence[Span]]) -> list[dict[str, Any]]:
    """Return sentences with the marks of the gold and of the model, see reports/row_report.py.

    Those with a mistake come first, in the order of the rows, then right ones that have a span.
    """
    pairs = [(row, tuple(spans)) for row, spans in zip(rows, found, strict=True)]
    faulty = [pair for pair in pairs if {*pair[0].spans} != {*pair[1]}]
    right = [pair for pair in pairs if pair[0].spans and {*pair[0].spans} == {*pair[1]}]
    chosen = faulty[: SAMPLES - min(len(right), SAMPLES - FAULTY)]
    return [_sample(row, spans) for row, spans in [*chosen, *right[: SAMPLES - len(chosen)]]]


def _sample(row: TaggedRow, found: Sequence[Span]) -> dict[str, Any]:
    """Return one sentence: what is right there, and what the model says."""
    gold, predicted = {*row.spans}, {*found}
    differences = sorted((gold | predicted) - (gold & predicted))
    start, end = _shown_part(row.text, differences[0].start if differences else 0)
    lines = [
        {"label": "正解", "pieces": _pieces(row.text, sorted(gold), predicted, "missed", (start, end))},
        {"label": "模型", "pieces": _pieces(row.text, sorted(predicted), gold, "extra", (start, end))},
    ]
    return {"title": row.id, "lines": lines if differences else lines[1:]}


def _shown_part(text: str, place: int) -> tuple[int, int]:
    """Return (start, end) of the part of a text that is shown: all of it, or around a place."""
    if len(text) <= LONGEST:
        return 0, len(text)
    start = max(0, min(place - LONGEST // 3, len(text) - LONGEST))
    return start, start + LONGEST


def _pieces(
    text: str, spans: Sequence[Span], others: set[Span], look: str, part: tuple[int, int]
) -> list[list[str]]:
    """Return [text, mark, look] of each piece; spans that `others` has too are right, else of `look`."""
    start, end = part
    pieces, done = ([["…", "", ""]] if start else []), start
    for span in spans:
        if span.end <= start or span.start >= end:
            continue
        first, last = max(span.start, start), min(span.end, end)
        if done < first:
            pieces.append([text[done:first], "", ""])
        mark = "" if span.label == UNTYPED else span.label
        pieces.append([text[first:last], mark, "right" if span in others else look])
        done = last
    if done < end:
        pieces.append([text[done:end], "", ""])
    return pieces + ([["…", "", ""]] if end < len(text) else [])
