"""Inspect questions about passages before training (--inspect): splits, lengths, duplicates, bad rows."""

from __future__ import annotations

from collections import defaultdict
from itertools import islice
from pathlib import Path
from typing import Any

from finetune.data.answer_spans import SpanOptions, read_spans
from finetune.data.data_files import data_file, data_files
from finetune.data.headers import LOOKED
from finetune.data.question_columns import looks_like_question
from finetune.data.row_dataset import RowDataset
from finetune.data.span_columns import find_span_columns
from finetune.data.span_rows import SpanParser, SpanRow, is_nested
from finetune.evaluation.span_metrics import rule_of
from finetune.predict.inspect_exam import table
from finetune.predict.inspect_rows import check_lines, duplicates, joined, quantiles
from finetune.runtime.console import as_json, print_result
from finetune.runtime.errors import UserError
from finetune.runtime.file_types import is_readable


def holds_spans(source: str, text_column: str = "", label_column: str = "") -> bool:
    """Return True for a local file or folder of passages, questions and answers without options.

    Args:
        text_column, label_column: columns of passages and answers; "" finds them.
    """
    path = Path(source).expanduser()
    files = data_files(path) if path.is_dir() else data_file(path) if is_readable(path) else []
    for file in files:
        rows = [row for _, row in islice(file.rows(nested=True), LOOKED) if isinstance(row, dict)]
        if not rows:
            continue
        if any(map(is_nested, rows)):
            return True
        if any(map(looks_like_question, rows)):
            return False
        names = list(dict.fromkeys(str(name) for row in rows for name in row))
        try:
            columns = find_span_columns(names, text_column, label_column)
        except UserError:
            return False
        parser = SpanParser(columns)
        return 2 * sum(_is_answered_within(row, parser) for row in rows) > len(rows)
    return False


def _is_answered_within(row: dict[str, Any], parser: SpanParser) -> bool:
    """Return whether the answers of a row stand in its passage."""
    try:
        return any(isinstance(found, SpanRow) and found.answers for found in parser(row, ""))
    except ValueError:
        return False


def show_spans_report(source: str, in_json: bool, text_column: str = "", label_column: str = "") -> int:
    """Print the inspection of questions about passages. Returns the exit code, 2 when rows are unusable.

    Args:
        text_column, label_column: columns of passages and answers, see `answer_spans.SpanOptions`.

    Raises:
        UserError: what `answer_spans.read_spans` cannot read at all.
    """
    dataset = read_spans(source, None, SpanOptions(text_column, label_column), "skip", "--inspect")
    inspection = inspect_spans(dataset)
    print_result(as_json(inspection) if in_json else format_span_inspection(inspection))
    return 2 if inspection["unusable"] else 0


def inspect_spans(dataset: RowDataset[SpanRow]) -> dict[str, Any]:
    """Inspect questions about passages without a model. Rows are named by their ids, or file and line."""
    splits = {split or "all": rows for split, rows in dataset.rows.items()}
    rows = [row for part in splits.values() for row in part]
    return {
        "origin": dataset.origin,
        "questions": len(dataset),
        "rule": rule_of(rows).title,
        "splits": {
            split: {
                "questions": len(part), "articles": len({row.group for row in part}),
                "passages": len({row.context for row in part}),
                "unanswerable": sum(not row.answers for row in part),
                "several_answers": sum(len(row.texts) > 1 for row in part),
            }
            for split, part in splits.items()
        },
        "characters": {
            "context": quantiles([len(row.context) for row in rows]),
            "question": quantiles([len(row.question) for row in rows]),
            "answer": quantiles([len(text) for row in rows for text in row.texts]),
        },
        "remarks": dict(dataset.remarks),
        "unusable": dataset.skipped,
        **duplicates(splits, lambda row: tuple(sorted(row.texts))),
        "passages_across": _passages_across(splits),
    }  # fmt: skip


def _passages_across(splits: dict[str, list[SpanRow]]) -> list[list[str]]:
    """Group the ids of passages that stand in several splits."""
    passages: dict[str, dict[str, str]] = defaultdict(dict)  # passage -> split -> an id
    for split, rows in splits.items():
        for row in rows:
            passages[row.context].setdefault(split, row.id)
    return [
        [f"{split}/{name}" for split, name in places.items()]
        for places in passages.values()
        if len(places) > 1
    ]


def format_span_inspection(inspection: dict[str, Any]) -> str:
    """Format an inspection as tables for the screen (they are Markdown too)."""
    lines = [
        f"文章問答 {inspection['origin']}：{inspection['questions']} 題",
        f"計分規則：{inspection['rule']}（由問題的文字判斷）",
        "",
    ]
    head = ["部分", "題數", "文章", "段落", "沒有答案", "幾個答案"]
    rows = [[split, *map(str, counts.values())] for split, counts in inspection["splits"].items()]
    lines += table(head, rows)
    titles = {"context": "段落", "question": "問題", "answer": "答案"}
    rows = [
        [titles[name], f"{one['median']:g}", str(one["p90"]), str(one["longest"])]
        for name, one in inspection["characters"].items()
    ]
    lines += table(["長度（字）", "中位數", "九成以下", "最長"], rows)
    lines += [f"{remark}：{count} 題" for remark, count in inspection["remarks"].items()]
    lines += [""] if inspection["remarks"] else []
    checks = [
        ("用不了的列", inspection["unusable"]),
        ("同一部分裡重複的題目", joined(inspection["same_within"])),
        (
            "跨部分重複的題目（訓練與測驗會互相洩題）",
            joined(inspection["same_across"]),
        ),
        ("題目相同、答案不同", joined(inspection["contradict"], "≠")),
        ("跨部分的同一段文章", joined(inspection["passages_across"])),
    ]
    return "\n".join([*lines, *check_lines(checks)]).rstrip()
