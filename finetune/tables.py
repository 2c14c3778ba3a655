"""Rows of a csv, tsv, json, jsonl or parquet file as dicts, one at a time, with the line each came from; and
answers written in the same formats. Text stays text.

csv is read by Python's own reader in strict mode: pandas turns the option `NA` into nothing and shifts the
columns of a row with one field too many, both without a word. tsv is csv with tabs: quotes count there too.
A text in csv or tsv that a spreadsheet would run as a formula is written with a ' before it; the other
formats hold every text as it is.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from .disk import whole_file
from .errors import listed
from .strictness import LONGEST, Lines, Metered, NoJson, TooLong, decode, items, twice_named

DELIMITERS = {".csv": ",", ".tsv": "\t"}
BLOCK = 1024  # rows of parquet at a time
# What begins a formula: to Excel = + - @, in East Asian locales their full-width forms too, and a tab or CR
# before them (OWASP, CSV injection). `-5` and `+1.5e3` are numbers.
FORMULA = re.compile(r"[=+\-@＝＋－＠\t\r]")
NUMBER = re.compile(r"[+\-＋－]?(\d+\.?\d*|\.\d+)([eE][+\-]?\d+)?")
NOT_UTF8 = re.compile("[\udc80-\udcff]")  # what `surrogateescape` makes of a byte that is no UTF-8


class Unreadable(str):
    """Why a row cannot be read, in Chinese; in the place of the row. `encoding`: it is not UTF-8."""

    encoding = False


Rows = Iterator[tuple[int, "dict | Unreadable"]]


def read_table(file: Path, required: Sequence[Sequence[str]] = ()) -> Rows:
    """(line, row) of each row, in constant memory; Unreadable in the place of a row that cannot be read, with
    line 0 where it is the file itself.

    Args:
        file: UTF-8, with or without a BOM. The line is counted from 1; in csv and tsv the header is one.
        required: columns a csv or tsv must have, each by any one of its names.
    """
    reader = _READERS.get(file.suffix.lower())
    if reader is None:
        yield 0, Unreadable(f"不認得 {file.suffix or '沒有副檔名'} 檔，要 {'、'.join(SUFFIXES)}")
        return
    if file.exists() and not file.is_file():  # a pipe would be waited for, a device never ends
        yield 0, Unreadable("不是一般的檔案")
        return
    try:
        yield from reader(file, required)
    except OSError as error:
        yield 0, Unreadable(f"讀不到（{error.strerror or _one_line(error)}）")


def _encoding_problem(file: Path) -> Unreadable:
    problem = Unreadable(
        "不是 UTF-8，可能是 Big5。用 Excel 另存新檔選「CSV UTF-8」，"
        f"或 iconv -f BIG5 -t UTF-8 {file.name} > 新檔{file.suffix}"
    )
    problem.encoding = True
    return problem


def _csv_rows(file: Path, required: Sequence[Sequence[str]]) -> Rows:
    csv.field_size_limit(LONGEST)
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        kind, delimiter = file.suffix[1:].upper(), DELIMITERS[file.suffix.lower()]
        lines = Lines(stream)
        rows = csv.reader(lines, strict=True, delimiter=delimiter)
        try:
            header = [name.strip() for name in next(rows, [])]
            if problem := _header_problem(file, header, required):
                yield (1 if header else 0), problem
                return
            while True:
                start = lines.number + 1
                try:
                    row = next(rows)
                except StopIteration:
                    return
                except TooLong as error:
                    yield lines.number, Unreadable(error)
                    continue
                except csv.Error as error:  # the reader starts afresh on the next line
                    span = _lines_of(start, lines.number)
                    yield start, Unreadable(f"{kind} 格式錯誤（{error}；引號沒有成對？{span}）")
                    continue
                if not row:
                    pass  # a blank line
                elif any(map(NOT_UTF8.search, row)):
                    yield start, _encoding_problem(file)
                elif len(row) != len(header):
                    mark, span = "逗號" if delimiter == "," else "定位字元", _lines_of(start, lines.number)
                    counts = f"有 {len(row)} 欄，標題列是 {len(header)} 欄"
                    yield start, Unreadable(f"{counts}（內容含{mark}要加引號{span}）")
                else:
                    yield start, dict(zip(header, row, strict=True))
        except TooLong as error:
            yield lines.number, Unreadable(error)
        except csv.Error as error:
            yield lines.number, Unreadable(f"{kind} 格式錯誤（{error}；引號沒有成對？）")


def _lines_of(start: int, end: int) -> str:
    """A quote that is not closed takes the lines after it along: which."""
    return f"；第 {start} 到 {end} 行讀成了一列，看看引號" if end > start else ""


def _header_problem(file: Path, header: list[str], required: Sequence[Sequence[str]]) -> Unreadable | None:
    if not header:
        return Unreadable("空的檔案")
    if any(map(NOT_UTF8.search, header)):
        return _encoding_problem(file)
    if missing := [names[0] for names in required if not set(names) & set(header)]:
        return Unreadable(f"少了欄位 {'、'.join(missing)}，有的是 {listed(header)}")
    if len(header) > len({*header}):
        return Unreadable(twice_named(header))
    return None


def _jsonl_rows(file: Path, _) -> Rows:
    empty = True
    with file.open(encoding="utf-8-sig", errors="surrogateescape") as stream:
        lines = Lines(stream)
        while True:
            try:
                text = next(lines)
            except StopIteration:
                break
            except TooLong as error:
                empty = False
                yield lines.number, Unreadable(error)
                continue
            if not text.strip():
                continue
            empty = False
            if NOT_UTF8.search(text):
                yield lines.number, _encoding_problem(file)
                continue
            try:
                row = decode(text)
            except NoJson as error:
                row = Unreadable(error)
            yield lines.number, row
    if empty:
        yield 0, Unreadable("空的檔案")


def _json_rows(file: Path, _) -> Rows:
    import ijson

    with file.open("rb") as stream:
        if stream.read(3) != b"\xef\xbb\xbf":  # a BOM
            stream.seek(0)
        number = 0
        try:
            for number, row in enumerate(items(Metered(stream)), 1):  # noqa: B007
                yield number, Unreadable(row) if isinstance(row, NoJson) else row
        except (ijson.JSONError, ValueError) as error:
            where = f"第 {number + 1} 筆起" if number else ""
            invalid = "UTF8" in str(error) or isinstance(error, UnicodeDecodeError)
            said = f"不是 JSON（{_one_line(error)}）" if isinstance(error, ijson.JSONError) else str(error)
            problem = _encoding_problem(file) if invalid else Unreadable(where + said)
            yield number and number + 1, problem
            return
    if not number:
        yield 0, Unreadable("空的檔案，或不是一串資料 [ {…}, {…} ]")


def _one_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _parquet_rows(file: Path, _) -> Rows:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(file) as source:
            if len(names := source.schema_arrow.names) > len({*names}):
                yield 0, Unreadable(twice_named(names))
                return
            for batch in source.iter_batches(batch_size=BLOCK):
                for row in _parquet_block(batch):
                    number += 1
                    yield number, row
    except pyarrow.ArrowException as error:
        yield number and number + 1, Unreadable(f"不是 parquet（{_one_line(error)}）")
        return
    if not number:
        yield 0, Unreadable("空的檔案")


def _parquet_block(batch) -> Iterator[dict | Unreadable]:
    """Its rows, if need be one by one: Python has no date after 9999, and text may be no UTF-8."""
    try:
        yield from batch.to_pylist()
    except (OverflowError, ValueError) as error:
        if len(batch) == 1:
            yield Unreadable(f"有讀不出的值（{_one_line(error)}）")
            return
        for number in range(len(batch)):
            yield from _parquet_block(batch.slice(number, 1))


_READERS = {
    ".csv": _csv_rows, ".tsv": _csv_rows, ".jsonl": _jsonl_rows, ".json": _json_rows,
    ".parquet": _parquet_rows,
}  # fmt: skip
SUFFIXES = tuple(_READERS)


# ---- writing -----------------------------------------------------------------------------------------------


def write_table(
    file: Path, records: Iterable[dict], columns: dict[str, str], suffix: str, for_excel: bool = True
) -> None:
    """Writes records, in constant memory, in the format that `suffix` names; the file is there once it is
    whole.

    Args:
        columns: name -> "whole", "text", "list" of texts, "numbers" (a list) or "scores" (text -> number). In
            csv and tsv, what is no text or number stands as JSON, and a text that begins like a formula has a
            ' before it, which a spreadsheet takes for the sign of a text.
        for_excel: csv and tsv begin with a BOM, without which Excel does not take them for UTF-8; programs
            that are to read them may trip over one.
    """
    if suffix in DELIMITERS:
        encoding = "utf-8-sig" if for_excel else "utf-8"
        _write_csv(file, records, columns, encoding, DELIMITERS[suffix])
    else:
        _WRITERS[suffix](file, records, columns)


def _write_csv(
    file: Path, records: Iterable[dict], columns: dict[str, str], encoding: str, delimiter: str
) -> None:
    def cell(value):
        if isinstance(value, str):
            return f"'{value}" if FORMULA.match(value) and not NUMBER.fullmatch(value) else value
        return json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else value

    with whole_file(file, encoding=encoding, newline="") as stream:
        rows = csv.writer(stream, delimiter=delimiter)
        rows.writerow(map(cell, columns))
        rows.writerows([cell(record.get(name)) for name in columns] for record in records)


def _write_jsonl(file: Path, records: Iterable[dict], columns: dict[str, str]) -> None:
    with whole_file(file) as stream:
        for record in records:
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")


def _write_json(file: Path, records: Iterable[dict], columns: dict[str, str]) -> None:
    with whole_file(file) as stream:
        stream.write("[")
        for number, record in enumerate(records):
            stream.write((",\n" if number else "\n") + json.dumps(record, ensure_ascii=False))
        stream.write("\n]\n")


def _write_parquet(file: Path, records: Iterable[dict], columns: dict[str, str]) -> None:
    import pyarrow
    import pyarrow.parquet

    kinds = {
        "whole": pyarrow.int64(),
        "text": pyarrow.string(),
        "list": pyarrow.list_(pyarrow.string()),
        "numbers": pyarrow.list_(pyarrow.float64()),
        "scores": pyarrow.map_(pyarrow.string(), pyarrow.float64()),
    }
    schema = pyarrow.schema([(name, kinds[kind]) for name, kind in columns.items()])

    def plain(record: dict) -> dict:
        return {name: _arrow(value, columns[name]) for name, value in record.items()}

    with whole_file(file, "wb") as stream, pyarrow.parquet.ParquetWriter(stream, schema) as writer:
        block: list[dict] = []
        for record in records:
            block.append(plain(record))
            if len(block) == BLOCK:
                writer.write_table(pyarrow.Table.from_pylist(block, schema))
                block = []
        writer.write_table(pyarrow.Table.from_pylist(block, schema))


def _arrow(value: object, kind: str) -> object:
    if value is None:
        return None
    return list(value.items()) if kind == "scores" else str(value) if kind == "text" else value


_WRITERS: dict[str, Callable[[Path, Iterable[dict], dict[str, str]], None]] = {
    ".jsonl": _write_jsonl, ".json": _write_json, ".parquet": _write_parquet,
}  # fmt: skip
