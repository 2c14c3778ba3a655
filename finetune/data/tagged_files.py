"""Rows of files of tagged text: of columns, of tables, and of JSON that is one row alone."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from finetune.data import conll
from finetune.data.bad_rows import Rows
from finetune.data.data_files import DataFile
from finetune.data.encodings import UnknownEncodingError, open_text
from finetune.data.label_columns import TEXTS
from finetune.data.tagged_columns import TOKENS
from finetune.runtime.errors import UserError
from finetune.runtime.file_types import suffix_of

LARGEST_ROW = 1 << 20  # bytes of a file that may be one row


def in_columns(file: DataFile) -> bool:
    """Return whether a file has a token and its tag a line."""
    return not file.part and conll.is_columns(file.path)


def file_rows(file: DataFile, text_column: str = "", label_column: str = "") -> Rows:
    """Return the rows of a file with their lines.

    Args:
        text_column, label_column: values of the flags: of a file of columns numbers from 1.

    Raises:
        UserError: a file of columns, and the name of one.
    """
    if in_columns(file):
        for flag, name in (("--text_column", text_column), ("--label_column", label_column)):
            if name and not (name.isdecimal() and int(name)):
                raise UserError(
                    f"{flag} {name}：{file.path} 一行一個字、沒有欄名，欄位請寫第幾欄（1 是第一欄）"
                )
        return conll.read_columns(file.path, int(text_column or 0), int(label_column or 0))
    if not file.part and suffix_of(file.path) in (".json", ".jsonl") and file.path.is_file():
        stat = file.path.stat()
        if row := _lone_row(file.path, stat.st_size, stat.st_mtime_ns):
            return iter([(1, row)])
    return file.rows()


@lru_cache(maxsize=8)
def _lone_row(file: Path, size: int, changed: int) -> dict[str, Any] | None:
    """Return the row of a JSON file that is one object with a text, whose lists are no rows; else None.

    Args:
        size, changed: of the file, so that what is remembered holds for it as it is.
    """
    if not 0 < size <= LARGEST_ROW:
        return None
    try:
        with open_text(file) as stream:
            value = json.load(stream)
    except (UnknownEncodingError, OSError, EOFError, ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    data = value.get("data")
    fields = data if isinstance(data, dict) else value  # Label Studio
    texts = [fields[name] for name in TEXTS if isinstance(fields.get(name), str)]
    tokens = [
        cell
        for name in TOKENS
        if isinstance(cell := fields.get(name), list) and cell and all(isinstance(item, str) for item in cell)
    ]
    lists = [cell for cell in value.values() if isinstance(cell, list)]
    # {"text": [...], "label": [...]} are columns of many rows; of tokens and tags one row
    is_row = bool(texts) or (bool(tokens) and any(len(cell) == len(tokens[0]) for cell in lists[1:]))
    return value if is_row else None
