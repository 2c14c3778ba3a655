"""Inspect tagged texts before training (--inspect): labels, splits, duplicates, lengths, bad rows."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

from finetune.data import conll
from finetune.data.cells import is_blank
from finetune.data.data_files import data_file, data_files
from finetune.data.label_columns import LOOKED, TEXTS
from finetune.data.tag_schemes import UNTYPED
from finetune.data.tagged import TaggedDataset, TaggedOptions, TaggedRow, read_tagged
from finetune.data.tagged_columns import SPANS, TAGS, TOKENS, as_object, cell_value, is_spans, is_tokens
from finetune.data.tagged_files import file_rows, in_columns
from finetune.predict.inspect_exam import table
from finetune.predict.inspect_rows import check_lines, duplicates, joined, quantiles
from finetune.runtime.console import as_json, print_result
from finetune.runtime.file_types import is_readable


def holds_tags(source: str, label_column: str = "") -> bool:
    """Return True for a local file or folder of texts with spans, or of tokens with a tag each.

    Args:
        label_column: column of the tags; "" looks for one of the usual names.
    """
    path = Path(source).expanduser()
    extra = (*conll.SUFFIXES, ".txt")
    files = (
        data_files(path, extra=conll.SUFFIXES)
        if path.is_dir()
        else data_file(path)
        if path.is_file() and is_readable(path, *extra)
        else []
    )
    for file in files:
        if in_columns(file):
            return True
        rows = [_object(row) for _, row in islice(file_rows(file), LOOKED)]
        if any(rows):
            return any(_is_tagged(row, label_column) for row in rows)
    return False


def _object(row: object) -> dict[str, Any]:
    try:
        return as_object(row)
    except ValueError:
        return {}


def _is_tagged(row: dict[str, Any], label_column: str) -> bool:
    """Return whether a row has a text and spans, or tokens and as many tags."""
    cells = {str(name).strip().lower(): cell for name, cell in row.items() if not is_blank(cell)}
    names = [label_column.strip().lower()] if label_column else [*SPANS, *TAGS]
    marks = [value for name in names if (value := cell_value(cells.get(name)))]
    if any(name in cells for name in TEXTS) and any(map(_is_place, marks)):
        return True
    tokens = [cell_value(cells[name]) for name in TOKENS if is_tokens(cells.get(name))]
    return any(
        isinstance(tags, list) and isinstance(words, list) and len(tags) == len(words)
        for tags in marks
        for words in tokens
    )


def _is_place(value: object) -> bool:
    """Return whether spans name places: neither the turns of a conversation nor a list of labels does."""
    if not is_spans(value):
        return False
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return bool({*value[0]} & {"start", "start_offset", "start_char", "startOffset", "begin"})
    return bool(value)


def show_tags_report(source: str, in_json: bool, text_column: str = "", label_column: str = "") -> int:
    """Print the inspection of tagged texts. Returns the exit code, 2 when rows are unusable.

    Args:
        text_column, label_column: as in `tagged.read_tagged`.

    Raises:
        UserError: what `tagged.read_tagged` cannot read at all.
    """
    options = TaggedOptions(text_column, label_column)
    dataset = read_tagged(source, None, options, on_bad_rows="skip", flag="--inspect", learn=False)
    inspection = inspect_tags(dataset)
    print_result(as_json(inspection) if in_json else format_tag_inspection(inspection))
    return 2 if inspection["unusable"] else 0


def inspect_tags(dataset: TaggedDataset) -> dict[str, Any]:
    """Inspect tagged texts without a model. Rows are named by their ids, or file and line."""
    splits = {split or "all": rows for split, rows in dataset.rows.items() if rows}
    every = [row for rows in splits.values() for row in rows]
    counts = {
        split: Counter(span.label for row in rows for span in row.spans) for split, rows in splits.items()
    }
    trained = counts.get("train", Counter())
    return {
        "origin": dataset.origin,
        "rows": len(dataset),
        "text_column": dataset.text_column,
        "label_column": dataset.label_column,
        "scheme": dataset.scheme,
        "tags": len(dataset.names),
        "remarks": dict(dataset.remarks),
        "unusable": dataset.skipped,
        "splits": {split: len(rows) for split, rows in splits.items()},
        "without_spans": {split: sum(not row.spans for row in rows) for split, rows in splits.items()},
        "labels": {label: {split: of[label] for split, of in counts.items()} for label in dataset.labels},
        "untrained": [label for label in dataset.labels if "train" in counts and not trained[label]],
        "characters": quantiles([len(row.text) for row in every]),
        "span_characters": quantiles([span.end - span.start for row in every for span in row.spans]),
        **duplicates(splits, _written_spans),
    }


def _written_spans(row: TaggedRow) -> tuple[tuple[str, str], ...]:
    """Return the spans of a row as texts and labels, whatever white space stands between them."""
    return tuple((row.text[span.start : span.end], span.label) for span in row.spans)


def format_tag_inspection(inspection: dict[str, Any]) -> str:
    """Format an inspection as tables for the screen (they are Markdown too)."""
    splits = list(inspection["splits"])
    kinds = len(inspection["labels"])
    lines = [f"標註資料 {inspection['origin']}：{inspection['rows']} 句，{kinds} 種標籤"]
    if inspection["text_column"]:
        lines.append(f"文字欄 {inspection['text_column']}，標記欄 {inspection['label_column']}")
    scheme = "一字一個（不分頭尾）" if inspection["scheme"] == "plain" else inspection["scheme"]
    lines.append(f"標記的寫法：{scheme}，模型要分 {inspection['tags']} 種標記")
    lines += [f"{remark}（{count} 句）" for remark, count in inspection["remarks"].items()] + [""]
    shown = {label: "（不分類型）" if label == UNTYPED else label for label in inspection["labels"]}
    rows: list[list[Any]] = [[shown[label], *of.values()] for label, of in inspection["labels"].items()]
    rows += [
        ["句數", *inspection["splits"].values()],
        ["沒有標記的句子", *inspection["without_spans"].values()],
    ]
    lines += table(["標籤", *splits], rows)
    for title, key in (("一句的長度", "characters"), ("一個標記的長度", "span_characters")):
        of = inspection[key]
        lines.append(f"{title}：中位數 {of['median']:g}，九成以下 {of['p90']}，最長 {of['longest']} 個字")
    lines.append("")
    checks = [
        ("用不了的列", inspection["unusable"]),
        ("訓練資料裡沒有的標籤", inspection["untrained"]),
        ("同一部分裡重複的文字", joined(inspection["same_within"])),
        (
            "跨部分重複的文字（訓練與測驗會互相洩題）",
            joined(inspection["same_across"]),
        ),
        ("文字相同、標記不同", joined(inspection["contradict"], "≠")),
    ]
    return "\n".join([*lines, *check_lines(checks)]).rstrip()
