"""Evaluate a saved extractor on questions with answers: `--exam FILE --split test --report DIR`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from finetune.cli.inference_args import InferenceArgs, required
from finetune.data.answer_spans import read_spans
from finetune.data.span_rows import SpanRow
from finetune.evaluation.span_metrics import add_span_baselines
from finetune.predict.extractor import ExtractorPredictor, columns_for
from finetune.predict.row_exam import Measured, run_row_exam
from finetune.runtime import hub
from finetune.runtime.errors import UserError

if TYPE_CHECKING:
    from finetune.runtime.distributed import Distributed


def run_extractor_exam(flags: InferenceArgs, predictor: ExtractorPredictor, world: Distributed) -> None:
    """Answer the questions; write metrics, predictions and a report page.

    Raises:
        UserError: no questions about passages, no such split, no question that fits.
    """
    source = required(flags.exam)
    hub.prepare_for(source)
    revision = flags.revision if "revision" in flags.given else None
    try:
        options = columns_for(flags, predictor.card, source)
        dataset = read_spans(source, revision, options, flags.on_bad_rows, "--exam")
    except UserError as error:
        needed = (
            f"{predictor.name} 是抽取式問答模型：--exam 要有文章、問題與答案（SQuAD、DRCD 的 json，或 csv）"
        )
        raise UserError([*error.problems, needed]) from error

    def measure(rows: Sequence[SpanRow]) -> Measured:
        return _measure(rows, predictor, world, source)

    run_row_exam(flags, predictor, world, "span", measure, dataset)


def _measure(
    rows: Sequence[SpanRow], predictor: ExtractorPredictor, world: Distributed, source: str
) -> Measured:
    """Answer questions and compute the metrics. Collective. Raises UserError: no question fits."""
    encoded = predictor.encode(rows)
    if not encoded.rows:
        raise UserError(f"--exam {source}：沒有一題放得下；{encoded.too_long[0][1]}")
    outputs = predictor.search(encoded, world)
    metrics = encoded.metrics(outputs, predictor.may_be_none)
    add_span_baselines(metrics, encoded.rows, encoded.chosen(outputs, predictor.may_be_none)[1])
    return Measured(metrics, encoded.records(outputs, predictor.may_be_none))
