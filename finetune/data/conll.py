"""Sentences in columns: a token and its tag a line, a blank line between two sentences (CoNLL, BIO files).

The first column is the token, the last one its tag; CoNLL-U has them in its second and fourth (UPOS). Columns
stand apart by tabs or by spaces; a token that is a space itself is read as such.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.data.bad_rows import Rows, Unreadable
from finetune.data.encodings import BROKEN_PACK, UnknownEncodingError, open_text
from finetune.data.headers import known_names
from finetune.data.text_lines import bounded_lines
from finetune.runtime import git_lfs
from finetune.runtime.errors import shown
from finetune.runtime.file_types import suffix_of
from finetune.runtime.strict_json import BoundedLines

SUFFIXES = (".conll", ".conllu", ".bio", ".iob", ".bioes", ".bmes")  # files that are nothing else
MAYBE = (".txt", ".tsv", ".csv")  # files that may be, which their lines tell
PEEKED = 400  # lines looked at
PEEKED_CHARACTERS = 1 << 18
TAG = re.compile(r"O|[BIMELSUW]([-_].*\S)?|.*\S[-_][BIMELSUW]")
DOCUMENT = "-DOCSTART-"
TOKENS, TAGS = "tokens", "tags"  # keys of the rows


@dataclass(frozen=True)
class _Columns:
    """Columns of a file.

    Attributes:
        tab: they stand apart by tabs, else by spaces.
        width: columns of a line.
        token, tag: their numbers, from 0.
        tags: tags in the first lines.
    """

    tab: bool
    width: int
    token: int
    tag: int
    tags: frozenset[str]


def is_columns(file: Path) -> bool:
    """Return whether a file holds sentences in columns, by its name and else by its lines."""
    suffix = suffix_of(file)
    if suffix in SUFFIXES:
        return True
    if suffix not in MAYBE or not file.is_file() or git_lfs.is_pointer(file):
        return False
    try:
        head = _head(file)
    except (UnknownEncodingError, OSError, EOFError):
        return False
    filled = [line for line in head if line.strip()]
    if len(filled) < 2 or known_names(re.split(r"[\t,]", filled[0])) > 1:
        return False
    columns = _find_columns(head)
    if columns.width < 2:
        return False
    rows = [cells for line in filled if len(cells := _cells(line, columns)) == columns.width]
    if len(rows) < 0.9 * sum(not line.startswith(("#", DOCUMENT)) for line in filled):
        return False
    tagged = sum(bool(TAG.fullmatch(cells[-1])) for cells in rows)
    split_up = len(filled) < len(head) - (not head[-1].strip())  # a blank line that is not the last
    short = sum(len(cells[0]) <= 40 and " " not in cells[0].strip() for cells in rows) >= 0.95 * len(rows)
    return short and (tagged >= 0.9 * len(rows) or (split_up and suffix == ".txt"))


def read_columns(file: Path, token: int = 0, tag: int = 0) -> Rows:
    """Yield (line, {"tokens": […], "tags": […]}) of each sentence; the line is its first.

    A sentence that cannot be read is replaced by the reason.

    Args:
        token, tag: numbers of the columns, from 1; 0 takes the usual ones.
    """
    if git_lfs.is_pointer(file):
        yield 0, Unreadable(git_lfs.pointer_problem(file))
        return
    try:
        yield from _sentences(file, token, tag)
    except UnknownEncodingError as error:
        yield 0, Unreadable(error)
    except BROKEN_PACK as error:
        yield 0, Unreadable(f"檔案不完整（{type(error).__name__}）")
    except OSError as error:
        yield 0, Unreadable(f"讀不到（{error.strerror or type(error).__name__}）")


def _sentences(file: Path, token: int, tag: int) -> Rows:
    columns = _find_columns(_head(file))
    if columns.width < 2:
        yield 0, Unreadable("每行只有一欄：要有兩欄，字與它的標記" if columns.width else "空的檔案")
        return
    if max(token, tag) > columns.width:
        yield 0, Unreadable(f"每行 {columns.width} 欄，沒有第 {max(token, tag)} 欄")
        return
    columns = _Columns(
        columns.tab, columns.width, token - 1 if token else columns.token, tag - 1 if tag else columns.tag,
        columns.tags,
    )  # fmt: skip
    tokens: list[str] = []
    tags: list[str] = []
    first, problem = 0, ""
    for line, text in _lines(file):
        blank = not text.strip("\r\n") or (not text.strip() and "\t" not in text)
        if blank or text.startswith(DOCUMENT):
            if tokens or problem:
                yield first, _sentence(tokens, tags, problem)
            first, tokens, tags, problem = 0, [], [], ""
            continue
        cells = _cells(text, columns)
        if _is_comment(text, cells, columns) or _is_part(cells, columns):
            continue
        first = first or line
        if len(cells) < columns.width or len(cells) <= max(columns.token, columns.tag):
            problem = problem or (
                f"第 {line} 行 {shown(text.strip())} 有 {len(cells)} 欄，應有 {columns.width} 欄（字與標記）"
            )
            continue
        tokens.append(cells[columns.token] or " ")
        tags.append(cells[columns.tag] if columns.tag < columns.width - 1 else cells[-1])
    if tokens or problem:
        yield first, _sentence(tokens, tags, problem)


def _sentence(tokens: list[str], tags: list[str], problem: str) -> dict[str, Any] | Unreadable:
    return Unreadable(problem) if problem else {TOKENS: tokens, TAGS: tags}


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Yield (number, line) of a file; a line that is too long is as one without columns."""
    for number, line in bounded_lines(file):
        yield number, "（太長的一行）" if isinstance(line, Unreadable) else line


def _head(file: Path) -> list[str]:
    with open_text(file) as stream:
        return [line.rstrip("\r\n") for line in BoundedLines(stream).peek(PEEKED, PEEKED_CHARACTERS)]


def _find_columns(head: list[str]) -> _Columns:
    """Find the columns by the first lines: their separator and how many there are."""
    lines = [line for line in head if line.strip() and not line.startswith(("#", DOCUMENT))]
    tab = sum("\t" in line for line in lines) * 2 > len(lines)
    loose = _Columns(tab, 2, 0, 1, frozenset())
    rows = [_cells(line, loose) for line in lines]
    width = Counter(map(len, rows)).most_common(1)[0][0] if rows else 0
    rows = [row for row in rows if len(row) == width]
    token, tag = 0, max(width - 1, 0)
    if width == 10 and tab and all(re.fullmatch(r"\d+([-.]\d+)?", row[0]) for row in rows):  # CoNLL-U
        token, tag = 1, 3
    return _Columns(tab, width, token, tag, frozenset(row[tag] for row in rows if row))


def _cells(line: str, columns: _Columns) -> list[str]:
    """Return the cells of a line; a token that is white space itself is "" where spaces divide."""
    if columns.tab:
        return line.split("\t")
    if line[:1] in (" ", "\u3000"):  # the token is a space
        return ["", *line.split()]
    return re.split(r"[ \t]+", line.rstrip(" \t"))


def _is_comment(line: str, cells: list[str], columns: _Columns) -> bool:
    """Return whether a line is a comment; `# O` is a token."""
    if not line.startswith("#"):
        return False
    return len(cells) != columns.width or cells[columns.tag] not in columns.tags


def _is_part(cells: list[str], columns: _Columns) -> bool:
    """Return whether a line of CoNLL-U is a contraction, or an empty node: its words have lines too."""
    return columns.token == 1 and columns.width == 10 and not cells[0].isdecimal()
