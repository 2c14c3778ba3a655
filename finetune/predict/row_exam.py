"""Evaluate a saved model on rows with right answers: `--exam FILE --split test --report DIR`.

The classifier, the tagger, the extractor and the encoder-decoder share what is here: which rows are
evaluated, what is written, and what is printed. Each brings its reader and a function that measures rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from finetune.cli.inference_args import InferenceArgs
from finetune.data.exam import SPLITS
from finetune.data.question import seeded_hash
from finetune.data.row_dataset import DatasetRow
from finetune.predict.exam_output import log_page, summary_lines, target_folder
from finetune.predict.predictor import LocalPredictor
from finetune.reports import classification, report, row_report
from finetune.reports.classification import title_of
from finetune.runtime.console import print_result
from finetune.runtime.errors import UserError

if TYPE_CHECKING:
    from finetune.runtime.distributed import Distributed


class EvaluatedDataset(Protocol):
    """Rows by official split, as `data.row_dataset.RowDataset` and `data.labelled.LabelledDataset` hold them.

    Attributes:
        skipped: rows left out, each with the reason.
        unit: what a row is called in messages: 句, 題, 列.
    """

    @property
    def rows(self) -> Mapping[str, Sequence[Any]]:
        """Rows by split."""
        ...

    @property
    def origin(self) -> str:
        """Where they come from, in words."""
        ...

    @property
    def skipped(self) -> Sequence[str]:
        """Reasons of the rows left out."""
        ...

    @property
    def unit(self) -> str:
        """What a row is called in messages."""
        ...


@dataclass
class Measured:
    """What the evaluation of some rows found.

    Args:
        metrics: values of JSON, see the `compute_metrics` of the task.
        records: rows of predictions.jsonl.
        notes: sentences that must stand beside every figure.
    """

    metrics: dict[str, Any]
    records: Iterable[dict[str, Any]]
    notes: Sequence[str] = ()


Measure = Callable[[Sequence[Any]], Measured]


def run_row_exam(
    flags: InferenceArgs, predictor: LocalPredictor, world: Distributed, task: str, measure: Measure,
    dataset: EvaluatedDataset,
) -> None:  # fmt: skip
    """Measure the rows of --split; write metrics, predictions and a report page, and print the outcome.

    Collective: every rank measures, rank 0 writes and prints.

    Args:
        task: `classify`, or a task of `row_report.MODULES`.
        measure: called with the rows, on every rank.
        dataset: all rows of --exam.

    Raises:
        UserError: no such split.
    """
    split, rows = select_rows(flags, dataset)
    measured = measure(rows)
    if not world.is_main:
        return
    notes = list(measured.notes)
    if dataset.skipped:
        notes.append(f"有 {len(dataset.skipped)} 列無法讀取，沒有列入（--on_bad_rows skip）")
    counted = f"{title_of(split)} {len(rows)} {dataset.unit}"
    facts = {"模型": predictor.name, "資料": dataset.origin, "題目": counted}
    if card := predictor.card:
        facts |= {"底模": card.base_model, "訓練資料": card.dataset}
    metrics = {split: measured.metrics}
    if task == "classify":
        page = report.Report(facts, {}, {}, notes=notes, labels=metrics)
        lines = classification.verdict(metrics)
    else:
        page = report.Report(facts, {}, {}, notes=notes, task=task, metrics=metrics)
        lines = row_report.verdict(task, metrics)
    folder = target_folder(flags)
    report.write(folder, page)
    row_report.write_predictions(folder / "predictions.jsonl", measured.records)
    record = {"facts": facts, "notes": notes, split: measured.metrics}
    for line in summary_lines(flags, folder, [*lines, *notes], record):
        print_result(line)
    log_page(folder)


def select_rows(flags: InferenceArgs, dataset: EvaluatedDataset) -> tuple[str, list[DatasetRow]]:
    """Return the name of the split of --split, and its rows: at most --exam_limit, always the same ones.

    A file without splits is one.

    Raises:
        UserError: no such split.
    """
    splits = {name: rows for name, rows in dataset.rows.items() if rows}
    name = "all" if flags.split == "all" or set(splits) <= {""} else SPLITS[flags.split]
    if name == "all":
        rows = [row for part in splits.values() for row in part]
    elif name in splits:
        rows = list(splits[name])
    else:
        known = "、".join(f"{part or '不分'}（{len(rows)} {dataset.unit}）" for part, rows in splits.items())
        raise UserError(f"--split {flags.split}：這份資料沒有這一部分，有的是 {known}；或用 all")
    if flags.exam_limit:
        rows = sorted(rows, key=lambda row: seeded_hash(0, row.fingerprint))[: flags.exam_limit]
    return name, rows
