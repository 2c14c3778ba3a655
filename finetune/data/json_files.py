"""Rows of JSON files, whatever wrote them.

A `.json` may be an array, JSON lines, or an object around the rows: {"data": […]}, {"train": […], "test":
[…]}, or what pandas writes with each `orient`. A `.jsonl` may be an array too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from finetune.data.bad_rows import Rows, Unreadable, log_once
from finetune.data.encodings import NOT_DECODED, encoding_of, open_text, undecoded
from finetune.data.headers import LOOKED, known_names, names_without_header, shown_row
from finetune.runtime.errors import UserError, listed
from finetune.runtime.strict_json import (
    BoundedLines,
    EndOfJsonError,
    JsonError,
    JsonStream,
    LineTooLongError,
    decode,
)

# usual names of the rows in an object
AROUND = ("data", "rows", "examples", "records", "questions", "items", "instances")
TEXTS = ("text", "content", "sentence")  # names of which a lone list is a column
PASSAGES = ("context", "context_text", "question", "passage", "文章", "問題")  # single in a row
HEAD = 1 << 16  # characters read to tell JSON lines from one value
NO_ROWS = "空的檔案，或不是一串資料 [ {…}, {…} ]"
LARGEST_TABLE = 1 << 28  # bytes of a file whose columns stand one after the other
NESTED = "是 SQuAD 式的巢狀問答（paragraphs 裡有 qas），請先攤成一列一題"


@dataclass
class _Member:
    """The value under one name of an object.

    Attributes:
        kind: records, rows (arrays), values, object or value.
        count: number of items.
        inner: names in an object.
    """

    kind: str
    count: int = 0
    inner: list[str] = field(default_factory=list)


def read_json(file: Path, part: str = "", nested: bool = False) -> Rows:
    """Read the rows of a .json or .jsonl.

    Args:
        part: the name in an object whose rows to read; "" for all.
        nested: rows may be articles as SQuAD nests them; else such a row is its reason, and the last one.
    """
    if _is_json_lines(file):
        yield from _read_lines(file)
        return
    with open_text(file) as stream:
        values = JsonStream(stream)
        sign = values.peek()
        if sign == "[":
            rows = _read_arrays(values)
        elif sign == "{":
            stat = file.stat()
            members = _members(file, stat.st_size, stat.st_mtime_ns)
            if isinstance(members, Unreadable):
                yield from _number_rows(iter([members]), file, nested)
                return
            is_row = nested and _is_question(members)
            rows = _read_values(values) if is_row else _read_object(values, members, part, file)
        else:
            yield (
                0,
                Unreadable(
                    NO_ROWS if not sign or sign in '"-0123456789tfnNI' else f"不是 JSON（開頭是 {sign!r}）"
                ),
            )
            return
        yield from _number_rows(rows, file, nested)


def parts_of(file: Path) -> list[str]:
    """Return the names of an object with several lists of rows, such as {"train": […], "test": […]}."""
    try:
        if _is_json_lines(file):
            return []
        with open_text(file) as stream:
            if JsonStream(stream).peek() != "{":
                return []
        stat = file.stat()
        members = _members(file, stat.st_size, stat.st_mtime_ns)
    except (OSError, ValueError):
        return []  # reported when the file is read
    lists = [] if isinstance(members, Unreadable) else _row_lists(members)
    return lists if len(lists) > 1 else []


def _number_rows(rows: Iterator[Any], file: Path, nested: bool) -> Rows:
    """Yield rows with their numbers, from 1; arrays get column names.

    Raises:
        UserError: the file is no JSON after the first rows: it breaks off, or continues otherwise.
    """
    ahead: list[Any] = []
    failure: JsonError | None = None
    number = 0
    try:
        for row in islice(rows, LOOKED):
            ahead.append(row)
    except JsonError as error:
        failure = error
    names = _names_of_arrays([row for row in ahead if isinstance(row, list)], file)
    try:
        for row in _replay(ahead, failure, rows):
            number += 1
            if isinstance(row, JsonError):
                row = Unreadable(row)
            elif isinstance(row, list) and len(row) == len(names):
                row = dict(zip(names, row, strict=True))
            elif not nested and isinstance(row, dict) and _is_nested(row):
                yield number, Unreadable(NESTED)
                return
            yield number, row
    except JsonError as error:
        if not number:
            yield 0, Unreadable(error)
            return
        breaks = f"檔案在第 {number + 1} 筆中斷，不完整"
        reason = breaks if isinstance(error, EndOfJsonError) else f"第 {number + 1} 筆起讀不下去（{error}）"
        raise UserError(f"{file}：{reason}；前面讀到 {number} 筆") from None
    if not number:
        yield 0, Unreadable(NO_ROWS)


def _replay(ahead: list[Any], failure: JsonError | None, rows: Iterator[Any]) -> Iterator[Any]:
    """Yield the rows read ahead, raise the error met there, if any, and yield the others."""
    yield from ahead
    if failure:
        raise failure
    yield from rows


def _is_nested(row: dict) -> bool:
    """Return whether a row is nested like SQuAD."""
    paragraphs = row.get("paragraphs")
    return isinstance(paragraphs, list) and any(
        isinstance(paragraph, dict) and "qas" in paragraph for paragraph in paragraphs[:1]
    )


def _names_of_arrays(rows: list[list[Any]], file: Path) -> list[str]:
    """Return the columns of rows that are arrays, as pandas writes them with orient="values"."""
    if not rows or any(isinstance(cell, (list, dict)) for cell in rows[0]):
        return []
    names = names_without_header(rows)
    if names:
        log_once(
            (*names, "header"),
            f"{file}：沒有欄位名稱，當作 {','.join(names)}（第一筆是「{shown_row(rows[0])}」）",
        )
    return names


# ---- lines -------------------------------------------------------------------------------------------------


def _is_json_lines(file: Path) -> bool:
    """Return whether a file is JSON lines.

    It is if the first line, or the second one, is an object of its own, and not the only one. A .jsonl is,
    unless it begins with an array of objects or with an object of several lines.
    """
    by_name = ".jsonl" in (suffix.lower() for suffix in file.suffixes[-2:])
    try:
        with open_text(file) as stream:
            head = stream.read(HEAD)
    except EOFError:
        return by_name
    is_all = len(head) < HEAD
    first = [line for line in head.lstrip("\ufeff").split("\n") if line.strip()][:2]
    sign = first[0].strip()[0] if first else ""
    if sign == "[":
        inside = _decoded(first[0])
        return by_name and isinstance(inside, list) and not isinstance((*inside, 0)[0], (list, dict))
    if sign != "{" or (len(first) < 2 and not is_all):
        return by_name
    if any(isinstance(_decoded(line), dict) for line in first):
        return len(first) > 1
    return by_name and not _starts_with_value(file)


def _decoded(text: str) -> Any:
    """Return the value of a JSON text, None where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _starts_with_value(file: Path) -> bool:
    """Return whether a file begins with a whole JSON value."""
    try:
        with open_text(file) as stream:
            JsonStream(stream).value()
    except JsonError:
        return False
    return True


def _read_lines(file: Path) -> Rows:
    """Read JSON lines.

    Raises:
        UserError: the last line breaks off.
    """
    empty, read, decodable = True, 0, encoding_of(file).whole
    with open_text(file) as stream:
        lines = BoundedLines(stream)
        while True:
            try:
                text = next(lines)
            except StopIteration:
                break
            except LineTooLongError as error:
                empty = False
                yield lines.number, Unreadable(error)
                continue
            if not text.strip():
                continue
            empty = False
            if not decodable and NOT_DECODED.search(text):
                yield lines.number, Unreadable(undecoded(text))
                continue
            try:
                row: Any = decode(text)
            except JsonError as error:
                if read and lines.torn and _is_truncated(text):
                    raise UserError(
                        f"{file}：第 {lines.number} 行只有一半，檔案在這裡中斷，不完整；前面讀到 {read} 列"
                    ) from None
                row = Unreadable(error)
            read += not isinstance(row, Unreadable)
            yield lines.number, row
    if empty:
        yield 0, Unreadable("空的檔案")


def _is_truncated(text: str) -> bool:
    """Return whether only the end of the value is missing."""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return text.lstrip()[:1] in "{[" and (
            error.msg.startswith("Unterminated") or error.pos >= len(text.rstrip()) - 1
        )
    except (ValueError, RecursionError):
        pass
    return False


# ---- objects around rows -----------------------------------------------------------------------------------


def _read_arrays(values: JsonStream) -> Iterator[Any]:
    """Yield the items of arrays that stand one after the other, as in concatenated files."""
    while values.peek() == "[":
        yield from values.items()
    if values.peek():
        raise JsonError("不是 JSON（] 之後還有別的東西）")


@lru_cache(maxsize=256)
def _members(file: Path, size: int, changed: int) -> dict[str, _Member] | Unreadable:
    """Return the members of an object by name, Unreadable where it is no JSON.

    Args:
        size, changed: the file's size and time of change, so that the cache forgets a file that changes.
    """
    members: dict[str, _Member] = {}
    with open_text(file) as stream:
        values = JsonStream(stream)
        try:
            for name in values.names():
                if name in members:
                    return Unreadable(f"欄位 {name} 出現兩次")
                members[name] = _read_member(values)
        except EndOfJsonError:
            if not any(member.kind == "records" and member.count for member in members.values()):
                return Unreadable("不是 JSON（到檔案結尾還沒有完），或檔案不完整")
        except JsonError as error:
            return Unreadable(error)
    return members


def _read_member(values: JsonStream) -> _Member:
    """Read the value under one name.

    Raises:
        JsonError: it is no JSON.
    """
    if values.peek() != "[":
        value = values.value()
        if isinstance(value, JsonError):
            raise value
        if isinstance(value, dict):
            return _Member("object", len(value), [str(name) for name in islice(value, 20)])
        return _Member("value")
    member = _Member("values")
    try:
        for item in values.items():
            if not member.count:
                member.kind = (
                    "records" if isinstance(item, dict) else "rows" if isinstance(item, list) else "values"
                )
            member.count += 1
    except EndOfJsonError:
        return member  # the rows before the break are read; then the break is reported
    return member


def _row_lists(members: dict[str, _Member]) -> list[str]:
    """Return the names of the lists of rows."""
    lists = [name for name, member in members.items() if member.kind == "records"]
    usual = [name for name in AROUND if name in lists]
    return usual[:1] or lists


def _read_object(values: JsonStream, members: dict[str, _Member], part: str, file: Path) -> Iterator[Any]:
    """Yield the rows of a file that is one object."""
    kinds = {member.kind for member in members.values()}
    lists = _row_lists(members)
    data = members.get("data")
    if data and data.kind == "rows" and "columns" in members:  # orient="split"
        columns: Any = []
        for name in values.names():
            if name == "data":
                yield from (_named_row(columns, item) for item in values.items())
            else:
                value = values.value()
                columns = value if name == "columns" else columns
    elif lists and not known_names([name for name in lists if name not in AROUND]):
        wanted = [part] if part else lists
        if len(wanted) > 1:
            log_once((file, "lists"), f"{file}：裡面有 {len(wanted)} 串資料，都讀：{listed(wanted)}")
        for name in values.names():
            if name in wanted:
                yield from values.items()
            else:
                if members.get(name, _Member("value")).kind in ("object", "value"):
                    values.value()
                else:
                    _skip_list(values)
    elif data and data.kind in ("values", "rows"):
        for name in values.names():
            if name == "data":
                yield from values.items()
            elif values.peek() == "[":
                _skip_list(values)
            else:
                values.value()
    elif members and kinds == {"object"}:
        yield from _read_table(values, members, file)
    elif _holds_columns(members):
        yield from _read_columns(values, file)
    else:
        yield from _read_values(values)


def _read_values(values: JsonStream) -> Iterator[Any]:
    """Yield objects that were written one after the other: mostly there is one."""
    yield values.value()
    while values.peek() == "{":
        yield values.value()
    if values.peek():
        raise JsonError("不是 JSON（} 之後還有別的東西）")


def _is_question(members: dict[str, _Member]) -> bool:
    """Return whether an object is a question about a passage itself, or a passage: its lists are no rows."""
    return any(members[name].kind == "value" for name in PASSAGES if name in members)


def _skip_list(values: JsonStream) -> None:
    """Read past a list."""
    for _ in values.items():
        pass


def _named_row(columns: Any, item: Any) -> Any:
    """Return an array as a row, or the error where it has not as many cells as there are columns."""
    if isinstance(item, list) and len(item) == len(columns):
        return dict(zip(map(str, columns), item, strict=True))
    return JsonError(f"有 {len(item) if isinstance(item, list) else 1} 欄，columns 有 {len(columns)} 欄")


def _holds_columns(members: dict[str, _Member]) -> bool:
    """Return whether the members are columns, as in {"text": ["…", "…"], "label": [0, 1]}."""
    counts = {member.count for member in members.values()}
    lists = all(member.kind in ("values", "rows") for member in members.values())
    return lists and len(counts) == 1 and (len(members) > 1 or not members.keys().isdisjoint(TEXTS))


def _read_table(values: JsonStream, members: dict[str, _Member], file: Path) -> Iterator[Any]:
    """Yield the rows of an object of objects.

    It is column -> row -> value (orient="columns") or row -> column -> value (orient="index").
    """
    inner = next(iter(members.values())).inner
    by_column = known_names(list(members)) or (
        not known_names(inner)
        and all(name.isdecimal() for name in inner)
        and not all(map(str.isdecimal, members))
    )
    if by_column:
        yield from _read_columns(values, file)
        return
    for _ in values.names():
        yield values.value()


def _read_columns(values: JsonStream, file: Path) -> Iterator[Any]:
    """Yield the rows of columns that stand one after the other: all of them are held in memory.

    Raises:
        UserError: the file is too large for that.
    """
    if file.stat().st_size > LARGEST_TABLE:
        way = "改用 pandas 的 to_json(orient='records', lines=True)"
        raise UserError(f"{file}：以欄儲存的 JSON 太大，讀不進來；{way}")
    table: dict[str, dict[Any, Any]] = {}
    for name in values.names():
        column: Any = values.value()
        table[name] = column if isinstance(column, dict) else dict(enumerate(column))
    places = list(dict.fromkeys(place for column in table.values() for place in column))
    for place in places:
        yield {name: column.get(place) for name, column in table.items()}
