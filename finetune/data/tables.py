"""Tables: rows of a file of any usual kind as dicts, one at a time; writing answers in five of the formats.

Each row comes with the line it was on. Text stays text. A text in csv or tsv that a spreadsheet would run as
a formula is written with a ' before it; the other formats hold every text as it is.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from finetune.data.bad_rows import Rows, Unreadable
from finetune.data.columnar import read_arrow, read_parquet
from finetune.data.delimited import read_delimited, read_plain
from finetune.data.encodings import BROKEN_PACK, UnknownEncodingError, open_bytes
from finetune.data.excel import read_excel
from finetune.data.headers import clean_name
from finetune.data.json_files import read_json
from finetune.runtime import git_lfs
from finetune.runtime.errors import UserError
from finetune.runtime.file_types import CONVERSION_HINTS, READABLE, suffix_of
from finetune.runtime.files import atomic_open
from finetune.runtime.strict_json import dumps, duplicate_keys_message

DELIMITERS = {".csv": ",", ".tsv": "\t"}
BLOCK = 1024  # rows written to parquet at a time
# The start of a formula: to Excel = + - @, in East Asian locales their full-width forms too, and a tab or CR
# before them (OWASP, CSV injection). `-5` and `+1.5e3` are numbers.
FORMULA = re.compile(r"[=+\-@＝＋－＠\t\r]")
NUMBER = re.compile(r"[+\-＋－]?(\d+\.?\d*|\.\d+)([eE][+\-]?\d+)?")
SIGNS = (  # the first bytes of files, whatever their name
    (b"\x1f\x8b", ".gzip"), (b"\x89PNG", ".png"), (b"\xff\xd8\xff", ".png"), (b"PAR1", ".parquet"),
    (b"ARROW1", ".arrow"), (b"\xff\xff\xff\xff", ".arrow"), (b"%PDF", ".pdf"), (b"\xd0\xcf\x11\xe0", ".xls"),
    (b"\x28\xb5\x2f\xfd", ".zst"), (b"Rar!", ".rar"), (b"7z\xbc\xaf", ".7z"),
)  # fmt: skip


def read_table(
    file: Path, required: Sequence[Sequence[str]] = (), part: str = "", nested: bool = False
) -> Rows:
    """Yield (line, row) of each row, in constant memory.

    A row that cannot be read is replaced by Unreadable, with line 0 where it is the file itself.

    Args:
        file: its kind is in READABLE or .txt, maybe packed (.gz, .bz2, .xz). The line is counted from 1; a
            header is one.
        required: columns a csv, tsv or sheet must have, each by any one of its names.
        part: the sheet of a workbook, or the name of a list in a JSON object; "" is the only one, or all.
        nested: see `json_files.read_json`.

    Raises:
        UserError: the file breaks off after some rows.
    """
    if file.exists() and not file.is_file():  # a pipe would be waited for, a device never ends
        yield 0, Unreadable("不是一般的檔案")
        return
    if git_lfs.is_pointer(file):
        yield 0, Unreadable(git_lfs.pointer_problem(file))
        return
    number, line = 0, 0
    try:
        for line, row in _reader(file, required, part, nested):
            number += 1
            yield line, row if isinstance(row, str) or _has_clean_names(row) else _with_clean_names(row)
    except UnknownEncodingError as error:
        yield 0, Unreadable(error)
    except BROKEN_PACK as error:
        if number:
            raise UserError(f"{file}：壓縮檔在第 {line + 1} 行中斷，不完整；前面讀到 {number} 列") from None
        yield 0, Unreadable(f"不是 {file.suffix} 檔，或檔案不完整（{type(error).__name__}）")
    except OSError as error:
        yield 0, Unreadable(f"讀不到（{error.strerror or error or type(error).__name__}）")


def _reader(file: Path, required: Sequence[Sequence[str]], part: str, nested: bool) -> Rows:
    """Return the rows of a file by the reader for its kind."""
    suffix = suffix_of(file)
    if suffix in (*READABLE, ".txt"):
        suffix = _suffix_by_content(file, suffix)
    if suffix in CONVERSION_HINTS:
        hint = CONVERSION_HINTS[suffix]
        return iter([(0, Unreadable(hint if suffix == suffix_of(file) else f"其實{hint}"))])
    if suffix in DELIMITERS:
        return read_delimited(file, DELIMITERS[suffix], required)
    readers: dict[str, Callable[[], Rows]] = {
        ".json": lambda: read_json(file, part, nested),
        ".jsonl": lambda: read_json(file, part, nested),
        ".parquet": lambda: read_parquet(file),
        ".arrow": lambda: read_arrow(file),
        ".xlsx": lambda: read_excel(file, required, part),
        ".txt": lambda: read_plain(file, required),
    }
    if suffix in readers:
        return readers[suffix]()
    described = f"{suffix} 檔" if suffix else "沒有副檔名的檔案"
    return iter([(0, Unreadable(f"不認得 {described}，要 {'、'.join(READABLE)}"))])


def _suffix_by_content(file: Path, suffix: str) -> str:
    """Return the kind of a file by its first bytes, else by its name."""
    try:
        with open_bytes(file) as stream:
            first = stream.read(512)
    except BROKEN_PACK:
        return suffix
    if first.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html")):
        return ".html"
    if first.startswith(b"PK\x03\x04"):
        is_workbook = suffix == ".xlsx" or b"xl/" in first or b"[Content_Types]" in first
        return ".xlsx" if is_workbook else ".zip"
    return next((kind for sign, kind in SIGNS if first.startswith(sign)), suffix)


_clean_names: set[object] = set()  # column names known to be clean


def _has_clean_names(row: object) -> bool:
    """Return whether the column names of a row need no cleaning."""
    if not isinstance(row, dict) or row.keys() <= _clean_names:
        return True
    clean = {name for name in row if not isinstance(name, str) or clean_name(name) == name}
    if len(_clean_names) < 10_000:
        _clean_names.update(clean)
    return row.keys() <= clean


def _with_clean_names(row: dict) -> dict | Unreadable:
    """Return a row of JSON or parquet with its column names cleaned as those of a header."""
    names = [clean_name(name) if isinstance(name, str) else name for name in row]
    if len({*names}) < len(names):
        return Unreadable(duplicate_keys_message(names))
    return dict(zip(names, row.values(), strict=True))


# ---- writing -----------------------------------------------------------------------------------------------


def write_table(
    file: Path, records: Iterable[dict], columns: dict[str, str], suffix: str, for_excel: bool = True
) -> None:
    """Write records, in constant memory, in the format of `suffix`; the file appears once it is complete.

    Args:
        columns: name -> "whole", "number", "text", "truth" (a bool), "list" of texts, "numbers", "scores"
            (text -> number) or "spans" (objects with start, end, label, text and score). In csv and tsv, a
            value that is no text or number is written as JSON, and a text that begins like a formula has a
            ' before it, which a spreadsheet takes for the sign of a text.
        for_excel: csv and tsv begin with a BOM, without which Excel does not read them as UTF-8; other
            programs may not expect one.
    """
    if suffix in DELIMITERS:
        encoding = "utf-8-sig" if for_excel else "utf-8"
        _write_csv(file, records, columns, encoding, DELIMITERS[suffix])
    else:
        _WRITERS[suffix](file, records, columns)


def _write_csv(
    file: Path, records: Iterable[dict], columns: dict[str, str], encoding: str, delimiter: str
) -> None:
    """Write a csv or tsv."""

    def cell(value: Any) -> Any:
        if isinstance(value, str):
            return f"'{value}" if FORMULA.match(value) and not NUMBER.fullmatch(value) else value
        return dumps(value) if isinstance(value, (list, dict, bool)) else value

    with atomic_open(file, encoding=encoding, newline="") as stream:
        writer = csv.writer(stream, delimiter=delimiter)
        writer.writerow(map(cell, columns))
        writer.writerows([cell(record.get(name)) for name in columns] for record in records)


def _write_jsonl(file: Path, records: Iterable[dict], columns: dict[str, str]) -> None:
    """Write JSON lines."""
    with atomic_open(file) as stream:
        for record in records:
            stream.write(dumps(record) + "\n")


def _write_json(file: Path, records: Iterable[dict], columns: dict[str, str]) -> None:
    """Write an array of objects."""
    with atomic_open(file) as stream:
        stream.write("[")
        for number, record in enumerate(records):
            stream.write((",\n" if number else "\n") + dumps(record))
        stream.write("\n]\n")


def _write_parquet(file: Path, records: Iterable[dict], columns: dict[str, str]) -> None:
    """Write parquet."""
    import pyarrow
    import pyarrow.parquet

    types = {
        "whole": pyarrow.int64(),
        "number": pyarrow.float64(),
        "text": pyarrow.string(),
        "truth": pyarrow.bool_(),
        "list": pyarrow.list_(pyarrow.string()),
        "numbers": pyarrow.list_(pyarrow.float64()),
        "scores": pyarrow.map_(pyarrow.string(), pyarrow.float64()),
        "spans": pyarrow.list_(
            pyarrow.struct(
                [
                    ("start", pyarrow.int64()), ("end", pyarrow.int64()), ("label", pyarrow.string()),
                    ("text", pyarrow.string()), ("score", pyarrow.float64()),
                ]
            )
        ),
    }  # fmt: skip
    schema = pyarrow.schema([(name, types[type_name]) for name, type_name in columns.items()])

    def arrow_record(record: dict) -> dict:
        return {name: _arrow_value(value, columns[name]) for name, value in record.items()}

    with atomic_open(file, "wb") as stream, pyarrow.parquet.ParquetWriter(stream, schema) as writer:
        block: list[dict] = []
        for record in records:
            block.append(arrow_record(record))
            if len(block) == BLOCK:
                writer.write_table(pyarrow.Table.from_pylist(block, schema))
                block = []
        writer.write_table(pyarrow.Table.from_pylist(block, schema))


def _arrow_value(value: Any, kind: str) -> Any:
    """Return a value as pyarrow takes it."""
    if value is None:
        return None
    return list(value.items()) if kind == "scores" else str(value) if kind == "text" else value


_WRITERS: dict[str, Callable[[Path, Iterable[dict], dict[str, str]], None]] = {
    ".jsonl": _write_jsonl, ".json": _write_json, ".parquet": _write_parquet,
}  # fmt: skip
