"""Spans of tagged texts as records: objects of JSON, and the rows of predictions.jsonl."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypedDict

from finetune.data.tag_schemes import TagSet
from finetune.data.tagged import TaggedRow
from finetune.data.text_units import Span
from finetune.evaluation.tagging import Tagging, predicted_spans, text_spans
from finetune.models.unit_tokens import EncodedText


class Entity(TypedDict):
    """A span of a text.

    Attributes:
        start, end: characters of the text, `end` excluded.
        text: what stands there.
        score: the lowest probability among its tags.
    """

    start: int
    end: int
    label: str
    text: str
    score: float


def entities_of(text: str, encoded: EncodedText, tagging: Tagging, tags: TagSet) -> list[Entity]:
    """Return the spans that the tags of a text write."""
    return [
        Entity(
            start=span.start, end=span.end, label=span.label, text=text[span.start : span.end],
            score=round(float(tagging.probabilities[units.start : units.stop].min()), 6),
        )
        for span, units in text_spans(text, encoded.units, tagging.tags, tags)
    ]  # fmt: skip


def as_object(text: str, span: Span) -> dict[str, Any]:
    """Return a gold span of a text, or one without a score, as an object like `Entity`."""
    return {"start": span.start, "end": span.end, "label": span.label, "text": text[span.start : span.end]}


def tag_records(
    rows: Sequence[TaggedRow], encoded: Sequence[EncodedText], taggings: Sequence[Tagging], tags: TagSet
) -> Iterator[dict[str, Any]]:
    """Yield the rows of predictions.jsonl: the text, the gold spans and those of the model."""
    for row, parts, tagging in zip(rows, encoded, taggings, strict=True):
        entities: list[Any] = [*entities_of(row.text, parts, tagging, tags)]
        if tags.plain and row.tokens:
            spans = predicted_spans(row, parts.units, tagging.tags, tags)
            entities = [as_object(row.text, span) for span in spans]
        yield {
            "id": row.id, "text": row.text,
            "true_entities": [as_object(row.text, span) for span in row.spans],
            "entities": entities,
        }  # fmt: skip
