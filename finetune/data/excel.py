"""Rows of an Excel workbook, as in a csv that Excel saves of it: every cell is text."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.data.bad_rows import Rows, Unreadable
from finetune.data.headers import known_names, rows_of
from finetune.runtime.errors import listed
from finetune.runtime.file_types import SAVE

if TYPE_CHECKING:
    import openpyxl

LARGEST = 1 << 28  # bytes, unpacked: all texts are held in memory
LEADING = 6  # rows among which the header must be


def sheets_of(file: Path) -> list[str]:
    """Return the names of the sheets that hold anything."""
    try:
        with _Workbook(file) as book:
            return [name for name in book.sheetnames if _first_rows(book, name)]
    except _NotExcelError:
        return []  # reported when the file is read


def read_excel(file: Path, required: Sequence[Sequence[str]] = (), part: str = "") -> Rows:
    """Read the rows of a sheet.

    Args:
        required: see `tables.read_table`.
        part: its name; "" takes the only one whose columns have usual names, or the only one there is.
    """
    try:
        with _Workbook(file) as book:
            filled = {name: rows for name in book.sheetnames if (rows := _first_rows(book, name))}
            fitting = [name for name, rows in filled.items() if any(known_names(row) > 1 for row in rows)]
            chosen = [part] if part else fitting if len(fitting) == 1 else list(filled)
            if not chosen:
                yield 0, Unreadable("空的檔案")
            elif len(chosen) > 1:
                yield 0, Unreadable(f"有幾張工作表：{listed(chosen)}；把要用的那張{SAVE}")
            else:
                yield from rows_of(_cells(book, chosen[0]), str(file), required)
    except _NotExcelError as error:
        yield 0, Unreadable(error)


class _NotExcelError(ValueError):
    """A workbook cannot be read; the reason in Chinese."""


class _Workbook:
    """Context of an open workbook.

    Raises:
        _NotExcelError: it is none, or too large.
    """

    def __init__(self, file: Path):
        import zipfile

        import openpyxl

        try:
            with zipfile.ZipFile(file) as packed:
                size = sum(member.file_size for member in packed.infolist())
            if size > LARGEST:
                raise _NotExcelError(f"太大（解開有 {size / 1e6:,.0f} MB）；{SAVE}")
            self._book = openpyxl.load_workbook(file, read_only=True, data_only=True)
        except _NotExcelError:
            raise
        except Exception as error:  # a damaged file raises any of a dozen errors
            raise _NotExcelError(
                f"不是 Excel 的 .xlsx，或檔案不完整（{type(error).__name__}）；{SAVE}"
            ) from error

    def __enter__(self) -> openpyxl.Workbook:
        return self._book

    def __exit__(self, *error: object) -> None:
        self._book.close()


def _first_rows(book: openpyxl.Workbook, name: str) -> list[list[str]]:
    """Return the first rows of a sheet that hold anything."""
    return [row for _, row in islice(_cells(book, name), LEADING) if any(cell.strip() for cell in row)]


def _cells(book: openpyxl.Workbook, name: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (line, cells) of each row of a sheet.

    Raises:
        _NotExcelError: the sheet is damaged.
    """
    sheet = book[name]
    if not hasattr(sheet, "iter_rows"):  # a chart
        return
    sheet.reset_dimensions()  # the size noted in the file may be wrong by millions of empty cells
    width = 0
    try:
        for line, row in enumerate(sheet.iter_rows(values_only=True), 1):
            width = max(width, len(row))  # empty cells at the end are left out
            yield line, [*map(_text, row), *[""] * (width - len(row))]
    except Exception as error:
        raise _NotExcelError(
            f"不是 Excel 的 .xlsx，或檔案不完整（{type(error).__name__}）；{SAVE}"
        ) from error


def _text(value: object) -> str:
    """Return a cell as Excel shows it: 1 and not 1.0, TRUE and not True."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        return value.date().isoformat()
    return str(value)
