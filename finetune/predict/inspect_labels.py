"""Inspect labelled texts before training (--inspect): classes, splits, duplicates, lengths, bad rows."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from finetune.data.data_files import data_file, data_files
from finetune.data.label_columns import LABELS, LOOKED, find_label_columns
from finetune.data.labelled import LabelledDataset, LabelledOptions, read_labelled
from finetune.data.question_columns import looks_like_question
from finetune.predict.inspect_exam import table
from finetune.predict.inspect_rows import check_lines, duplicates, joined, quantiles
from finetune.runtime.console import as_json, print_result
from finetune.runtime.errors import UserError
from finetune.runtime.file_types import is_readable

# Names that only a label column has: news has a `category` too, and is text for pre-training.
UNAMBIGUOUS_LABELS = {*LABELS} - {"category", "class", "類別", "分類"}


def holds_labels(source: str, text_column: str = "") -> bool:
    """Return True for a local file or folder of texts with a column of labels, and of no questions.

    Args:
        text_column: column of the texts; "" finds it.
    """
    path = Path(source).expanduser()
    files = data_files(path) if path.is_dir() else data_file(path) if is_readable(path) else []
    for file in files:
        rows = [row for _, row in islice(file.rows(), LOOKED) if isinstance(row, dict)]
        if not rows:
            continue
        columns = {str(name).strip().lower() for row in rows for name in row}
        if not columns & UNAMBIGUOUS_LABELS or any(map(looks_like_question, rows)):
            return False
        try:
            return bool(find_label_columns(rows, text_column, "", False, source).texts)
        except UserError:
            return False
    return False


def show_labels_report(source: str, in_json: bool, text_column: str = "", label_column: str = "") -> int:
    """Print the inspection of labelled texts. Returns the exit code, 2 when rows are unusable.

    Args:
        text_column, label_column: as in `labelled.read_labelled`.

    Raises:
        UserError: what `labelled.read_labelled` cannot read at all.
    """
    options = LabelledOptions(text_column, label_column)
    inspection = inspect_labels(read_labelled(source, None, options, on_bad_rows="skip", flag="--inspect"))
    print_result(as_json(inspection) if in_json else format_label_inspection(inspection))
    return 2 if inspection["unusable"] else 0


def inspect_labels(dataset: LabelledDataset) -> dict[str, Any]:
    """Inspect labelled texts without a model. Rows are named by their ids, or file and line."""
    splits = {split or "all": rows for split, rows in dataset.rows.items()}
    return {
        "origin": dataset.origin,
        "rows": len(dataset),
        "text_column": list(filter(None, (dataset.text_column, dataset.pair_column))),
        "label_column": list(dataset.label_columns),
        "multi_label": dataset.multi,
        "unusable": dataset.skipped,
        "classes": {
            name: {split: sum(index in row.labels for row in rows) for split, rows in splits.items()}
            for index, name in enumerate(dataset.names)
        },
        "splits": {split: len(rows) for split, rows in splits.items()},
        "characters": quantiles([len(row.text) + len(row.pair) for rows in splits.values() for row in rows]),
        **duplicates(splits, lambda row: row.labels),
    }


def format_label_inspection(inspection: dict[str, Any]) -> str:
    """Format an inspection as tables for the screen (they are Markdown too)."""
    splits, several = list(inspection["splits"]), "（一列可有零到多個）" if inspection["multi_label"] else ""
    texts, labels = " 與 ".join(inspection["text_column"]), "、".join(inspection["label_column"])
    columns = f"文字欄 {texts}，標籤欄 {labels}{several}"
    lines = [
        f"分類資料 {inspection['origin']}：{inspection['rows']} 列，{len(inspection['classes'])} 類",
        columns,
        "",
    ]
    lines += table(
        ["類別", *splits], [[name, *counts.values()] for name, counts in inspection["classes"].items()]
    )
    length = inspection["characters"]
    most = f"九成以下 {length['p90']}，最長 {length['longest']} 個字"
    lines += [f"一列的長度：中位數 {length['median']:g}，{most}", ""]
    checks = [
        ("用不了的列", inspection["unusable"]),
        ("同一部分裡重複的文字", joined(inspection["same_within"])),
        (
            "跨部分重複的文字（訓練與測驗會互相洩題）",
            joined(inspection["same_across"]),
        ),
        ("文字相同、標籤不同", joined(inspection["contradict"], "≠")),
    ]
    return "\n".join([*lines, *check_lines(checks)]).rstrip()
