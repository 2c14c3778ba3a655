"""Texts in the rows of a file: which column holds them, and what it says in a row."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from finetune.data.bad_rows import Rows, Unreadable, log_once, where
from finetune.data.label_columns import LOOKED, column_names, find_texts
from finetune.data.tables import read_table
from finetune.data.text_lines import read_lines
from finetune.runtime.errors import UserError
from finetune.runtime.file_types import suffix_of

TEXT = "text"  # the column of rows that are texts themselves


def read_text_rows(file: Path, text_column: str) -> Rows:
    """Yield (line, row) of a file; the lines of a .txt and the items of a list of texts are rows of TEXT.

    Args:
        text_column: value of --text_column; where it is given, a .txt is a table.
    """
    if suffix_of(file) == ".txt" and not text_column:
        yield from read_lines(file)
        return
    for line, row in read_table(file):
        is_plain = isinstance(row, str) and not isinstance(row, Unreadable)
        yield line, {TEXT: row} if is_plain else row


def find_text_column(file: Path, text_column: str, flag: str) -> str:
    """Return the column of the texts of a file: --text_column, else the obvious one.

    Args:
        flag: the flag that named the file, for messages.

    Raises:
        UserError: no row that can be read; a column that is not there, or cannot be found; a pair.
    """
    rows = [row for _, row in islice(read_text_rows(file, text_column), LOOKED) if isinstance(row, dict)]
    if not rows:
        first = islice(read_text_rows(file, text_column), 1)
        problems = [f"{where(file, line)}：{row}" for line, row in first]
        raise UserError(problems or f"{flag} {file}：空的檔案")
    if len(column_names(text_column)) > 1:
        raise UserError(f"--text_column {text_column}：一列只有一個向量，只能給一欄")
    columns = list(dict.fromkeys(str(name) for row in rows for name in row))
    found = find_texts(columns, text_column, f"{flag} {file}")
    if len(found) > 1:
        pair = "、".join(found)
        raise UserError(f"{flag} {file}：{pair} 是一對句子，一列只有一個向量；用 --text_column 選其中一欄")
    texts = [name for name in columns if any(isinstance(row.get(name), str) for row in rows)]
    if not text_column and len([name for name in texts if name.lower() != "id"]) > 1:
        log_once((str(file), found[0]), f"{flag} {file}：讀 {found[0]} 欄（要別的欄就用 --text_column）")
    return found[0]
