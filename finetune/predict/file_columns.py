"""Columns of a file of --input: which it has, its texts, and those that are copied into the output."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from finetune.data.bad_rows import Rows, Unreadable
from finetune.data.label_columns import LOOKED, column_names
from finetune.data.tables import read_table
from finetune.predict.row_handler import Record, Row, is_text, storable_text
from finetune.runtime.strict_json import too_long


def columns_of(rows: Rows) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the first rows, and every column that a row of a file has, in the order they come."""
    first: list[dict[str, Any]] = []
    columns: dict[str, None] = {}
    for _, row in rows:
        if isinstance(row, dict):
            columns |= dict.fromkeys(map(str, row))
            first += [row] if len(first) < LOOKED else []
    return first, list(columns)


def trained_columns(source: str, columns: object) -> str:
    """Return the columns of the training data, where a file's first row has them; else ""."""
    names = column_names(str(columns or ""))
    if not names or not Path(source).is_file():
        return ""
    first = next((row for _, row in read_table(Path(source)) if isinstance(row, dict)), {})
    return ",".join(names) if {*names} <= {*first} else ""


def copied_columns(
    file_columns: Iterable[str], taken: Collection[str], shown: Iterable[str]
) -> dict[str, str]:
    """Return the columns of the file that are copied: the name in the output -> its own.

    Args:
        taken: columns of the record; a column of the same name is copied as input_….
        shown: columns of the file that the record shows by their own name, beside id.
    """
    copied = {f"input_{name}" if name in taken else name: name for name in file_columns}
    for name in ("id", "ID", *shown):
        copied.pop(f"input_{name}" if name in taken else name, None)
    return copied


def copy_of(row: Row, copied: dict[str, str]) -> Record:
    """Return the cells of a row that are copied."""
    values = row if isinstance(row, dict) else {}
    return {name: storable_text(values[column]) for name, column in copied.items() if column in values}


def text_of(row: Row, column: str) -> str:
    """Return the text of a column. Raises ValueError with the reason why there is none."""
    if isinstance(row, Unreadable):
        raise ValueError(row)
    if not isinstance(row, dict):
        raise ValueError(f"應該是一個物件，得到 {type(row).__name__}")
    value = row.get(column)
    if value is not None and not isinstance(value, (str, int, float)):
        raise ValueError(f"{column} 應該是文字，得到 {type(value).__name__}")
    if value is None or value != value or not str(value).strip():  # NaN is not itself
        raise ValueError(f"{column} 是空的" if column in row else f"沒有 {column} 欄")
    if not is_text(str(value)):
        raise ValueError("有落單的代理字元（surrogate），不是合法的 UTF-8")
    if reason := too_long(str(value)):
        raise ValueError(f"{column} {reason}")
    return str(value)
