"""Questions as an extractor reads them, and what it answered: places, texts, metrics and records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

from finetune.data.span_rows import SpanRow
from finetune.evaluation.span_metrics import compute_span_metrics, rule_of, span_samples
from finetune.evaluation.span_search import SpanAnswers
from finetune.models.span_windows import QuestionTooLongError, SpanWindow, SpanWindows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STRIDE = 128  # defaults of --stride and --max_answer_length, for models that were not trained here
MAX_ANSWER_LENGTH = 30


@dataclass(frozen=True)
class SpanSettings:
    """How passages are read.

    Attributes:
        max_length: longest window, in tokens.
        stride: tokens of the passage that two windows share.
        max_answer_length: longest answer, in tokens.
    """

    max_length: int
    stride: int = STRIDE
    max_answer_length: int = MAX_ANSWER_LENGTH


@dataclass
class EncodedQuestions:
    """Questions and their windows.

    Attributes:
        windows: of each row.
        too_long: rows that are left out, since the question leaves no room for the passage, with the reason.
    """

    settings: SpanSettings
    rows: list[SpanRow] = field(default_factory=list)
    windows: list[list[SpanWindow]] = field(default_factory=list)
    too_long: list[tuple[SpanRow, str]] = field(default_factory=list)

    @classmethod
    def of(
        cls, tokenizer: PreTrainedTokenizerBase, rows: Sequence[SpanRow], settings: SpanSettings
    ) -> EncodedQuestions:
        """Tokenize questions and passages."""
        encoded = cls(settings)
        make_windows = SpanWindows(tokenizer, settings.max_length, settings.stride)
        for row in rows:
            try:
                made = make_windows(row.question, row.context)
            except QuestionTooLongError as error:
                encoded.too_long.append((row, str(error)))
            else:
                encoded.rows.append(row)
                encoded.windows.append(made)
        return encoded

    def chosen(
        self, outputs: Sequence[SpanAnswers], may_be_none: bool
    ) -> tuple[list[tuple[int, int] | None], list[str]]:
        """Return the characters of the answer to each row, None for none, and its text."""
        best = [answers.choose(may_be_none) for answers in outputs]
        places = [None if one is None else (one.start, one.end) for one in best]
        pairs = zip(self.rows, places, strict=True)
        return places, ["" if place is None else row.context[slice(*place)] for row, place in pairs]

    def metrics(self, outputs: Sequence[SpanAnswers], may_be_none: bool) -> dict[str, Any]:
        """Compute the metrics of answers, see `compute_span_metrics`; {} without rows.

        Also `loss` in nats, the mean over windows, where it was measured; `windows`, `left_out` (questions
        that are too long), `max_answer_length` and `samples` for the page.
        """
        if not self.rows:
            return {}
        places, texts = self.chosen(outputs, may_be_none)
        losses = [loss for answers in outputs for loss in answers.losses]
        return {
            **compute_span_metrics(self.rows, texts, may_be_none),
            **({"loss": fmean(losses)} if losses else {}),
            "windows": sum(map(len, self.windows)), "left_out": len(self.too_long),
            "max_answer_length": self.settings.max_answer_length,
            "samples": span_samples(self.rows, texts, places),
        }  # fmt: skip

    def records(self, outputs: Sequence[SpanAnswers], may_be_none: bool) -> Iterator[dict[str, Any]]:
        """Yield the rows of predictions.jsonl; `prediction` is "" for no answer."""
        places, texts = self.chosen(outputs, may_be_none)
        rule = rule_of(self.rows) if self.rows else None
        for row, place, text, answers in zip(self.rows, places, texts, outputs, strict=True):
            assert rule is not None
            chosen = answers.choose(may_be_none)
            yield {
                "id": row.id, "group": row.group, "question": row.question, "answers": row.texts,
                "prediction": text, "start": place and place[0], "end": place and place[1],
                "score": round(answers.probability(chosen, may_be_none), 6),
                "exact_match": rule.exact_match(text, row.texts), "f1": rule.overlap(text, row.texts),
            }  # fmt: skip
        for row, reason in self.too_long:
            yield {
                "id": row.id,
                "group": row.group,
                "question": row.question,
                "answers": row.texts,
                "error": reason,
            }
