"""Evaluate a saved tagger on tagged texts: `--exam tagged.jsonl --report DIR`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from finetune.cli.inference_args import InferenceArgs, required
from finetune.data.tagged import TaggedDataset, TaggedOptions, TaggedRow, read_tagged
from finetune.evaluation.tag_records import tag_records
from finetune.evaluation.tagging import compute_metrics
from finetune.predict.file_columns import trained_columns
from finetune.predict.row_exam import Measured, run_row_exam
from finetune.predict.tagger import TaggerPredictor
from finetune.runtime import hub
from finetune.runtime.errors import UserError, listed

if TYPE_CHECKING:
    from finetune.runtime.distributed import Distributed


def run_tagger_exam(flags: InferenceArgs, predictor: TaggerPredictor, world: Distributed) -> None:
    """Tag the texts; write metrics, predictions and a report page.

    Raises:
        UserError: no tagged texts, no such split, no label that the model knows.
    """
    dataset = _read_texts(flags, predictor)
    known = {*predictor.tags.labels}
    if not known & {*dataset.labels} and dataset.labels:
        raise UserError(
            f"--exam {flags.exam}：標籤 {listed(dataset.labels)} 模型一個也沒有，"
            f"它的是 {listed(predictor.tags.labels)}"
        )

    def measure(rows: Sequence[TaggedRow]) -> Measured:
        encoded, taggings = predictor.taggings([row.text for row in rows], world, rows)
        metrics = compute_metrics(rows, encoded, taggings, predictor.tags)
        unknown = Counter(span.label for row in rows for span in row.spans if span.label not in known)
        notes = []
        if unknown:
            names = "、".join(f"{name} {count}" for name, count in unknown.most_common(10))
            notes.append(f"有 {unknown.total()} 個標記的標籤是模型沒有的（{names}），都算漏掉")
        return Measured(metrics, tag_records(rows, encoded, taggings, predictor.tags), notes)

    run_row_exam(flags, predictor, world, "tag", measure, dataset)


def _read_texts(flags: InferenceArgs, predictor: TaggerPredictor) -> TaggedDataset:
    """Read the tagged texts of --exam, from the columns that the flags or the run card name."""
    source = required(flags.exam)
    hub.prepare_for(source)
    trained = predictor.card.flags if predictor.card else {}
    options = TaggedOptions(
        flags.text_column or trained_columns(source, trained.get("text_column")),
        flags.label_column or trained_columns(source, trained.get("label_column")),
    )
    revision = flags.revision if "revision" in flags.given else None
    try:
        return read_tagged(source, revision, options, flags.on_bad_rows, "--exam", learn=False)
    except UserError as error:
        needed = (
            f"{predictor.name} 是序列標註模型，只會標註：--exam 要有標記的文字（entities，或 tokens 與 tags）"
        )
        raise UserError([*error.problems, needed]) from error
