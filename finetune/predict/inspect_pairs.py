"""Inspect pairs of texts before training (--inspect): splits, lengths, duplicates, bad rows."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from finetune.data.data_files import data_file, data_files
from finetune.data.label_columns import LOOKED
from finetune.data.question_columns import looks_like_question
from finetune.data.text_pairs import (
    PairOptions,
    TextPairDataset,
    find_pair_columns,
    read_text_pairs,
)
from finetune.predict.inspect_exam import table
from finetune.predict.inspect_rows import check_lines, duplicates, joined, quantiles
from finetune.runtime.console import as_json, print_result
from finetune.runtime.errors import UserError
from finetune.runtime.file_types import is_readable


def holds_pairs(source: str, text_column: str = "", label_column: str = "") -> bool:
    """Return True for a local file or folder of pairs of texts, and of no questions.

    A file of questions and answers is one too, unless options stand beside them.
    """
    path = Path(source).expanduser()
    files = data_files(path) if path.is_dir() else data_file(path) if is_readable(path) else []
    for file in files:
        rows = [row for _, row in islice(file.rows(), LOOKED) if isinstance(row, dict)]
        if not rows:
            continue
        if any(map(looks_like_question, rows)):
            return False
        try:
            columns = find_pair_columns(rows, text_column, label_column, source)
        except UserError:
            return False
        if columns.inside or not label_column:
            return True
        cells = [str(row.get(columns.target) or "") for row in rows]
        return len({*cells}) > len(cells) / 2 and median(map(len, cells)) > 1  # texts, not classes
    return False


def show_pairs_report(source: str, in_json: bool, text_column: str = "", label_column: str = "") -> int:
    """Print the inspection of pairs of texts. Returns the exit code, 2 when rows are unusable.

    Raises:
        UserError: what `text_pairs.read_text_pairs` cannot read at all.
    """
    options = PairOptions(text_column, label_column)
    inspection = inspect_pairs(read_text_pairs(source, None, options, on_bad_rows="skip", flag="--inspect"))
    print_result(as_json(inspection) if in_json else format_pair_inspection(inspection))
    return 2 if inspection["unusable"] else 0


def inspect_pairs(dataset: TextPairDataset) -> dict[str, Any]:
    """Inspect pairs of texts without a model. Rows are named by their ids, or file and line."""
    splits = {split or "all": rows for split, rows in dataset.rows.items() if rows}
    whole = [row for rows in splits.values() for row in rows]
    return {
        "origin": dataset.origin,
        "rows": len(dataset),
        "input_columns": list(dataset.columns.source),
        "output_column": dataset.columns.target,
        "unusable": dataset.skipped,
        "splits": {split: len(rows) for split, rows in splits.items()},
        "input_characters": quantiles([len(row.source) for row in whole]),
        "output_characters": quantiles([len(row.target) for row in whole]),
        "copied": [row.id for row in whole if row.source.split() == row.target.split()],
        **duplicates(splits, lambda row: row.target),
    }


def format_pair_inspection(inspection: dict[str, Any]) -> str:
    """Format an inspection as tables for the screen (they are Markdown too)."""
    columns = f"輸入欄 {'＋'.join(inspection['input_columns'])}，輸出欄 {inspection['output_column']}"
    lines = [f"成對的文字 {inspection['origin']}：{inspection['rows']} 列", columns, ""]
    lines += table(["部分", "列數"], [[name, count] for name, count in inspection["splits"].items()])
    shape = [
        [title, f"{length['median']:g}", length["p90"], length["longest"]]
        for title, length in (
            ("輸入", inspection["input_characters"]), ("輸出", inspection["output_characters"]),
        )
    ]  # fmt: skip
    lines += table(["字數", "中位數", "九成以下", "最長"], shape)
    checks = [
        ("用不了的列", inspection["unusable"]),
        ("同一部分裡重複的輸入", joined(inspection["same_within"])),
        ("跨部分重複的輸入（訓練與測驗會互相洩題）", joined(inspection["same_across"])),
        ("輸入相同、輸出不同", joined(inspection["contradict"], "≠")),
        ("輸出與輸入完全相同", inspection["copied"]),
    ]
    return "\n".join([*lines, *check_lines(checks)]).rstrip()
