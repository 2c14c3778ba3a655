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

from finetune.data.bad_rows import Rows, Unreadable, say_once
from finetune.data.encodings import NOT_DECODED, encoding_of, open_text, undecoded
from finetune.data.headers import LOOKED, known_names, names_without_header, shown_row
from finetune.runtime.errors import UserError, listed
from finetune.runtime.strict_json import (
    BoundedLines,
    EndOfJsonError,
    JsonError,
    LineTooLongError,
    Values,
    decode,
)

AROUND = ("data", "rows", "examples", "records", "questions", "items", "instances")  # usual names of the rows
TEXTS = ("text", "content", "sentence")  # of which a lone list is a column
HEAD = 1 << 16  # characters that tell lines from one text
NO_ROWS = "空的檔案，或不是一串資料 [ {…}, {…} ]"
LARGEST_TABLE = 1 << 28  # bytes of a file whose columns stand one after the other
NESTED = "是 SQuAD 式的巢狀問答（paragraphs 裡有 qas），請先攤成一列一題"


@dataclass
class _Member:
    """What stands under one name of an object. kind: records, rows (arrays), values, object or value."""

    kind: str
    count: int = 0
    inner: list[str] = field(default_factory=list)  # names in an object
    of_objects: bool = False  # an object of objects


def read_json(file: Path, part: str = "") -> Rows:
    """The rows of a .json or .jsonl.

    Args:
        part: the name in an object whose rows are meant; "" for all.
    """
    if _is_lines(file):
        yield from _lines(file)
        return
    with open_text(file) as stream:
        values = Values(stream)
        sign = values.next_sign()
        if sign == "[":
            rows = _arrays(values)
        elif sign == "{":
            facts = file.stat()
            shape = _shape(file, facts.st_size, facts.st_mtime_ns)
            rows = [shape] if isinstance(shape, Unreadable) else _in_object(values, shape, part, file)
        else:
            yield (
                0,
                Unreadable(
                    NO_ROWS if not sign or sign in '"-0123456789tfnNI' else f"不是 JSON（開頭是 {sign!r}）"
                ),
            )
            return
        yield from _numbered(rows, file)


def parts_of(file: Path) -> list[str]:
    """The names of an object with several lists of rows, as {"train": […], "test": […]}."""
    try:
        if _is_lines(file):
            return []
        with open_text(file) as stream:
            if Values(stream).next_sign() != "{":
                return []
        facts = file.stat()
        shape = _shape(file, facts.st_size, facts.st_mtime_ns)
    except (OSError, ValueError):
        return []  # told when it is read
    lists = [] if isinstance(shape, Unreadable) else _lists(shape)
    return lists if len(lists) > 1 else []


def _numbered(rows: Iterator[object], file: Path) -> Rows:
    """Rows with their numbers, from 1; arrays get names.

    Raises:
        UserError: what is no JSON stands after the first rows: the file breaks off, or goes on otherwise.
    """
    ahead, failed, number, rows = [], None, 0, iter(rows)
    try:
        for row in islice(rows, LOOKED):
            ahead.append(row)
    except JsonError as error:
        failed = error
    names = _names_of_arrays([row for row in ahead if isinstance(row, list)], file)
    try:
        for row in _continued(ahead, failed, rows):
            number += 1
            if isinstance(row, JsonError):
                row = Unreadable(row)
            elif isinstance(row, list) and len(row) == len(names):
                row = dict(zip(names, row, strict=True))
            elif isinstance(row, dict) and _is_nested(row):
                yield number, Unreadable(NESTED)
                return
            yield number, row
    except JsonError as error:
        if not number:
            yield 0, Unreadable(error)
            return
        breaks = f"檔案在第 {number + 1} 筆中斷，不完整"
        said = breaks if isinstance(error, EndOfJsonError) else f"第 {number + 1} 筆起讀不下去（{error}）"
        raise UserError(f"{file}：{said}；前面讀到 {number} 筆") from None
    if not number:
        yield 0, Unreadable(NO_ROWS)


def _continued(ahead: list, failed: JsonError | None, rows: Iterator[object]) -> Iterator[object]:
    yield from ahead
    if failed:
        raise failed
    yield from rows


def _is_nested(row: dict) -> bool:
    inner = row.get("paragraphs")
    return isinstance(inner, list) and any(isinstance(one, dict) and "qas" in one for one in inner[:1])


def _names_of_arrays(rows: list[list], file: Path) -> list[str]:
    """The columns of rows that are arrays, as pandas writes them with orient="values"."""
    if not rows or any(isinstance(cell, (list, dict)) for cell in rows[0]):
        return []
    names = names_without_header(rows)
    if names:
        say_once(
            (*names, "header"),
            f"{file}：沒有欄位名稱，當作 {','.join(names)}（第一筆是「{shown_row(rows[0])}」）",
        )
    return names


# ---- lines -------------------------------------------------------------------------------------------------


def _is_lines(file: Path) -> bool:
    """True for JSON lines: the first line, or the second one, is an object of its own, and not the only one.
    A .jsonl is, unless it begins with an array of objects or with an object of several lines.
    """
    by_name = ".jsonl" in (suffix.lower() for suffix in file.suffixes[-2:])
    try:
        with open_text(file) as stream:
            head = stream.read(HEAD)
    except EOFError:
        return by_name
    whole = len(head) < HEAD
    first = [line for line in head.lstrip("\ufeff").split("\n") if line.strip()][:2]
    sign = first[0].strip()[0] if first else ""
    if sign == "[":
        inside = _decoded(first[0])
        return by_name and isinstance(inside, list) and not isinstance((*inside, 0)[0], (list, dict))
    if sign != "{" or (len(first) < 2 and not whole):
        return by_name
    if any(isinstance(_decoded(line), dict) for line in first):
        return len(first) > 1
    return by_name and not _begins_with_a_value(file)


def _decoded(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _begins_with_a_value(file: Path) -> bool:
    try:
        with open_text(file) as stream:
            Values(stream).value()
    except JsonError:
        return False
    return True


def _lines(file: Path) -> Rows:
    """Raises UserError: the last line breaks off."""
    empty, read, whole = True, 0, encoding_of(file).whole
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
            if not whole and NOT_DECODED.search(text):
                yield lines.number, Unreadable(undecoded(text))
                continue
            try:
                row = decode(text)
            except JsonError as error:
                if read and lines.torn and _breaks_off(text):
                    raise UserError(
                        f"{file}：第 {lines.number} 行只有一半，檔案在這裡中斷，不完整；前面讀到 {read} 列"
                    ) from None
                row = Unreadable(error)
            read += not isinstance(row, Unreadable)
            yield lines.number, row
    if empty:
        yield 0, Unreadable("空的檔案")


def _breaks_off(text: str) -> bool:
    """True where only the end of the value is missing."""
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


def _arrays(values: Values) -> Iterator[object]:
    """The items of one array after another: files that were joined."""
    while values.next_sign() == "[":
        yield from values.items()
    if values.next_sign():
        raise JsonError("不是 JSON（] 之後還有別的東西）")


@lru_cache(maxsize=256)
def _shape(file: Path, size: int, changed: int) -> dict[str, _Member] | Unreadable:
    """What an object holds, by name; Unreadable where it is no JSON."""
    shape: dict[str, _Member] = {}
    with open_text(file) as stream:
        values = Values(stream)
        try:
            for name in values.names():
                if name in shape:
                    return Unreadable(f"欄位 {name} 出現兩次")
                shape[name] = _member(values)
        except EndOfJsonError:
            if not any(member.kind == "records" and member.count for member in shape.values()):
                return Unreadable("不是 JSON（到檔案結尾還沒有完），或檔案不完整")
        except JsonError as error:
            return Unreadable(error)
    return shape


def _member(values: Values) -> _Member:
    if values.next_sign() != "[":
        value = values.value()
        if isinstance(value, JsonError):
            raise value
        if isinstance(value, dict):
            objects = bool(value) and all(isinstance(one, dict) for one in value.values())
            return _Member("object", len(value), [str(name) for name in islice(value, 20)], objects)
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
        return member  # what is there is read, and then it is told
    return member


def _lists(shape: dict[str, _Member]) -> list[str]:
    """The names of the lists of rows."""
    lists = [name for name, member in shape.items() if member.kind == "records"]
    usual = [name for name in AROUND if name in lists]
    return usual[:1] or lists


def _in_object(values: Values, shape: dict[str, _Member], part: str, file: Path) -> Iterator[object]:
    """The rows of a file that is one object."""
    kinds = {member.kind for member in shape.values()}
    lists = _lists(shape)
    data = shape.get("data")
    if data and data.kind == "rows" and "columns" in shape:  # orient="split"
        columns: list = []
        for name in values.names():
            if name == "data":
                yield from (_row(columns, item) for item in values.items())
            else:
                value = values.value()
                columns = value if name == "columns" else columns
    elif lists and not known_names([name for name in lists if name not in AROUND]):
        wanted = [part] if part else lists
        if len(wanted) > 1:
            say_once((file, "lists"), f"{file}：裡面有 {len(wanted)} 串資料，都讀：{listed(wanted)}")
        for name in values.names():
            if name in wanted:
                yield from values.items()
            else:
                values.value() if shape.get(name, _Member("value")).kind in (
                    "object",
                    "value",
                ) else list_away(values)
    elif data and data.kind in ("values", "rows"):
        for name in values.names():
            if name == "data":
                yield from values.items()
            elif values.next_sign() == "[":
                list_away(values)
            else:
                values.value()
    elif shape and kinds == {"object"}:
        yield from _tabled(values, shape, file)
    elif _are_columns(shape):
        yield from _columns(values, file)
    else:
        yield values.value()
        while values.next_sign() == "{":  # objects that were written one after the other
            yield values.value()
        if values.next_sign():
            raise JsonError("不是 JSON（} 之後還有別的東西）")


def list_away(values: Values) -> None:
    for _ in values.items():
        pass


def _row(columns: list, item: object) -> object:
    if isinstance(item, list) and len(item) == len(columns):
        return dict(zip(map(str, columns), item, strict=True))
    return JsonError(f"有 {len(item) if isinstance(item, list) else 1} 欄，columns 有 {len(columns)} 欄")


def _are_columns(shape: dict[str, _Member]) -> bool:
    """True for {"text": ["…", "…"], "label": [0, 1]}."""
    counts = {member.count for member in shape.values()}
    lists = all(member.kind in ("values", "rows") for member in shape.values())
    return lists and len(counts) == 1 and (len(shape) > 1 or not shape.keys().isdisjoint(TEXTS))


def _tabled(values: Values, shape: dict[str, _Member], file: Path) -> Iterator[object]:
    """Objects in an object: column -> row -> value (orient="columns") or row -> column -> value ("index")."""
    inner = next(iter(shape.values())).inner
    by_column = known_names(list(shape)) or (
        not known_names(inner)
        and all(name.isdecimal() for name in inner)
        and not all(map(str.isdecimal, shape))
    )
    if by_column:
        yield from _columns(values, file)
        return
    for _ in values.names():
        yield values.value()


def _columns(values: Values, file: Path) -> Iterator[object]:
    """Columns one after the other: all of them are in memory.

    Raises:
        UserError: the file is too large for that.
    """
    if file.stat().st_size > LARGEST_TABLE:
        way = "改用 pandas 的 to_json(orient='records', lines=True)"
        raise UserError(f"{file}：一欄一欄寫的 JSON 太大，讀不進來；{way}")
    table = {name: values.value() for name in values.names()}
    table = {
        name: column if isinstance(column, dict) else dict(enumerate(column))
        for name, column in table.items()
    }
    places = list(dict.fromkeys(place for column in table.values() for place in column))
    for place in places:
        yield {name: column.get(place) for name, column in table.items()}
