"""A look at labelled texts before a model is fine-tuned on them: classes, splits, texts that stand twice or
contradict one another, lengths, rows that cannot be used.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from statistics import median

from finetune.data.bad_rows import abridged
from finetune.data.columns import LABELS, LOOKED, find_columns
from finetune.data.data_files import data_file, data_files
from finetune.data.labelled import Labelled, LabelledDataset, read_labelled
from finetune.data.question_columns import looks_asked
from finetune.predict.inspect_exam import ROWS_SHOWN, table
from finetune.runtime.console import as_json, print_result
from finetune.runtime.errors import UserError
from finetune.runtime.file_types import is_readable

# Names of a label column that a text to read has no use for: news has a `category`, and is text all the same.
TELLING = {*LABELS} - {"category", "class", "類別", "分類"}


def holds_labels(source: str, text_column: str = "") -> bool:
    """True for a local file or folder of texts with a column of labels, and of no questions.

    Args:
        text_column: that of the texts; "" finds it.
    """
    path = Path(source).expanduser()
    files = data_files(path) if path.is_dir() else data_file(path) if is_readable(path) else []
    for file in files:
        rows = [row for _, row in islice(file.rows(), LOOKED) if isinstance(row, dict)]
        if not rows:
            continue
        there = {str(name).strip().lower() for row in rows for name in row}
        if not there & TELLING or any(map(looks_asked, rows)):
            return False
        try:
            return bool(find_columns(rows, text_column, "", False, source).texts)
        except UserError:
            return False
    return False


def show_labels_report(source: str, in_json: bool, text_column: str = "", label_column: str = "") -> int:
    """--inspect: prints what was found. Returns the exit code, 2 when rows are unusable.

    Args:
        text_column, label_column: as in `labels.read_labelled`.

    Raises:
        UserError: what `labels.read_labelled` cannot read at all.
    """
    columns = {"text_column": text_column, "label_column": label_column}
    found = inspect_labels(read_labelled(source, **columns, on_bad_rows="skip", flag="--inspect"))
    print_result(as_json(found) if in_json else as_text(found))
    return 2 if found["unusable"] else 0


def inspect_labels(catalogue: LabelledDataset) -> dict:
    """Everything that can be said without a model. Rows are named by their ids, or file and line."""
    rows = {split or "all": some for split, some in catalogue.rows.items()}
    names = catalogue.names
    return {
        "origin": catalogue.origin,
        "rows": len(catalogue),
        "text_column": list(filter(None, (catalogue.text_column, catalogue.pair_column))),
        "label_column": list(catalogue.label_columns),
        "multi_label": catalogue.multi,
        "unusable": catalogue.skipped,
        "classes": {
            name: {split: sum(place in row.labels for row in some) for split, some in rows.items()}
            for place, name in enumerate(names)
        },
        "splits": {split: len(some) for split, some in rows.items()},
        "characters": _lengths([row for some in rows.values() for row in some]),
        **_twice(rows),
    }


def _lengths(rows: Sequence[Labelled]) -> dict:
    """Characters of a row's texts together."""
    counts = sorted(len(row.text) + len(row.pair) for row in rows)
    return {"median": median(counts), "p90": counts[int(len(counts) * 0.9)], "longest": counts[-1]}


def _twice(rows: dict[str, list[Labelled]]) -> dict:
    """Groups of ids whose texts are the same: within one split, across several, with other labels."""
    groups: dict[str, list[tuple[str, Labelled]]] = defaultdict(list)
    for split, some in rows.items():
        for row in some:
            groups[row.fingerprint].append((split, row))
    found: dict[str, list[list[str]]] = {"same_within": [], "same_across": [], "contradict": []}
    for group in groups.values():
        ids = [f"{split}/{row.id}" for split, row in group]
        if max(Counter(split for split, _ in group).values()) > 1:
            found["same_within"].append(ids)
        if len({split for split, _ in group}) > 1:
            found["same_across"].append(ids)
        if len({row.labels for _, row in group}) > 1:
            found["contradict"].append(ids)
    return found


def as_text(found: dict) -> str:
    """What was found, as tables for the screen (they are Markdown too)."""
    splits, several = list(found["splits"]), "（一列可有零到多個）" if found["multi_label"] else ""
    columns = (
        f"文字欄 {' 與 '.join(found['text_column'])}，標籤欄 {'、'.join(found['label_column'])}{several}"
    )
    lines = [f"分類資料 {found['origin']}：{found['rows']} 列，{len(found['classes'])} 類", columns, ""]
    lines += table(["類別", *splits], [[name, *counts.values()] for name, counts in found["classes"].items()])
    length = found["characters"]
    most = f"九成以下 {length['p90']}，最長 {length['longest']} 個字"
    lines += [f"一列的長度：中位數 {length['median']:g}，{most}", ""]
    checks = [
        ("用不了的列", found["unusable"]),
        ("同一部分裡重複的文字", [" = ".join(group) for group in found["same_within"]]),
        ("跨部分重複的文字（訓練與測驗會互相洩題）", [" = ".join(group) for group in found["same_across"]]),
        ("文字相同、標籤不同", [" ≠ ".join(group) for group in found["contradict"]]),
    ]
    lines += table(["檢查", "筆數"], [[name, len(some)] for name, some in checks])
    for name, some in checks:
        if some:
            listed = abridged(some) if name == checks[0][0] else some[:ROWS_SHOWN]
            more = f"（前 {ROWS_SHOWN} 筆，全部見 --json）" if len(some) > ROWS_SHOWN else ""
            lines += [f"{name}{more}：", *(f"  - {row}" for row in listed), ""]
    return "\n".join(lines).rstrip()
