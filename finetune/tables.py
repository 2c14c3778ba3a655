"""Rows of a csv, json, jsonl or parquet file as dicts, with the line each came from. Text stays text.

csv is read by Python's own reader in strict mode: pandas turns the option `NA` into nothing and shifts the
columns of a row with one field too many, both without a word.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path


def read_table(file: Path, problems: list[str], required: Sequence[str] = ()) -> Iterator[tuple[int, dict]]:
    """(line, row) of each row that can be read; what cannot adds `file:line: reason` to `problems`.

    Args:
        file: UTF-8, with or without a BOM. The line is counted from 1 and, in csv, includes the header.
        required: columns a csv must have.
    """
    reader = _READERS.get(file.suffix.lower())
    if reader is None:
        problems.append(f"{file}：不認得 {file.suffix or '沒有副檔名'} 檔，要 {'、'.join(SUFFIXES)}")
        return
    try:
        yield from reader(file, problems, required)
    except UnicodeDecodeError as error:
        problems.append(
            f"{file}：不是 UTF-8（位元組 {error.start} 起讀不懂）。"
            f"若是 Big5，先轉：iconv -f BIG5 -t UTF-8 {file.name}"
        )
    except OSError as error:
        problems.append(f"{file}：讀不到（{error.strerror or error}）")


def _csv_rows(file: Path, problems: list[str], required: Sequence[str]) -> Iterator[tuple[int, dict]]:
    csv.field_size_limit(1 << 24)
    with file.open(encoding="utf-8-sig", newline="") as stream:
        rows = csv.reader(stream, strict=True)
        try:
            header = [name.strip() for name in next(rows, [])]
            if not header:
                problems.append(f"{file}：空的檔案")
                return
            if missing := set(required) - set(header):
                problems.append(
                    f"{file}:1：少了欄位 {'、'.join(sorted(missing))}，有的是 {'、'.join(header)}"
                )
                return
            if repeated := [name for name, count in Counter(header).items() if count > 1]:
                problems.append(f"{file}:1：欄位 {'、'.join(repeated)} 出現兩次")
                return
            start = rows.line_num + 1
            for row in rows:
                if not row:
                    pass  # a blank line
                elif len(row) != len(header):
                    problems.append(
                        f"{file}:{start}：有 {len(row)} 欄，標題列是 {len(header)} 欄（選項含逗號要加引號）"
                    )
                else:
                    yield start, dict(zip(header, row, strict=True))
                start = rows.line_num + 1
        except csv.Error as error:
            problems.append(f"{file}:{rows.line_num}：CSV 格式錯誤（{error}；引號沒有成對？）")


def _jsonl_rows(file: Path, problems: list[str], _) -> Iterator[tuple[int, dict]]:
    empty = True
    with file.open(encoding="utf-8-sig") as stream:
        for line, text in enumerate(stream, 1):
            if not text.strip():
                continue
            empty = False
            try:
                row = json.loads(text)
            except (ValueError, RecursionError) as error:
                problems.append(f"{file}:{line}：不是 JSON（{error}）")
                continue
            yield line, row
    if empty:
        problems.append(f"{file}：空的檔案")


def _json_rows(file: Path, problems: list[str], _) -> Iterator[tuple[int, dict]]:
    try:
        rows = json.loads(file.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        problems.append(f"{file}：不是 JSON（{error}）")
        return
    if isinstance(rows, dict):
        rows = rows.get("data")
    if not isinstance(rows, list):
        problems.append(f"{file}：應該是一串題目 [ {{…}}, {{…}} ]")
    elif not rows:
        problems.append(f"{file}：空的檔案")
    else:
        yield from enumerate(rows, 1)


def _parquet_rows(file: Path, problems: list[str], _) -> Iterator[tuple[int, dict]]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(file).to_pylist()
    except pyarrow.ArrowException as error:
        problems.append(f"{file}：不是 parquet（{error}）")
        return
    yield from enumerate(rows, 1)


_READERS = {".csv": _csv_rows, ".jsonl": _jsonl_rows, ".json": _json_rows, ".parquet": _parquet_rows}
SUFFIXES = tuple(_READERS)
