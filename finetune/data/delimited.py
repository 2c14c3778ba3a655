"""Records of csv and tsv, each with the line it begins on.

csv is read by Python's own reader in strict mode: pandas turns the option `NA` into nothing and shifts the
columns of a row with one field too many, both without a word. Where tabs separate, a quote is a character
like any other unless it really quotes: most programs that write tsv know no quoting.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from finetune.data.bad_rows import Rows, Unreadable, say_once
from finetune.data.encodings import NOT_DECODED, UnknownEncodingError, encoding_of, open_text, undecoded
from finetune.data.headers import Grid, known_names, names_without_header, rows_of, shown_row
from finetune.data.separators import NAMES, separator_of
from finetune.runtime.strict_json import LONGEST, BoundedLines, LineTooLongError

PEEKED = 100  # lines that tell the separator
PEEKED_CHARACTERS = 1 << 20
QUOTED_LINES = 200  # that a quoted field of a tsv may span
LABEL_PREFIX = "__label__"  # fastText's


def read_delimited(file: Path, usual: str, required: Sequence[Sequence[str]] = ()) -> Rows:
    """The rows of a csv or tsv file.

    Args:
        usual: the separator that its name promises.
    """
    csv.field_size_limit(LONGEST)
    with open_text(file, newline="") as stream:
        lines = BoundedLines(stream)
        first = lines.peek(PEEKED, PEEKED_CHARACTERS)
        mark, told = separator_of(first, usual)
        if told:
            next(lines)
            first = first[1:]
        elif mark != usual:
            say_once((file.parent, "separator", mark), f"{file}：以{NAMES[mark]}分欄")
        records = _tab_records(lines) if mark == "\t" else _csv_records(lines, mark, _Usual(first, mark))
        if not encoding_of(file).whole:
            records = _decoded(records)
        for line, row in rows_of(records, str(file), required, NAMES.get(mark, mark)):
            if isinstance(row, Unreadable) and lines.torn and line == lines.number:
                row = Unreadable(f"{row}；檔案到這一行就斷了，可能不完整")
            yield line, row


def read_plain(file: Path, required: Sequence[Sequence[str]] = ()) -> Rows:
    """The rows of a .txt: a table, or fastText's `__label__x text` lines."""
    first = _first_lines(file)
    if first and first[0].startswith(LABEL_PREFIX):
        several = any(len(line.split(LABEL_PREFIX)) > 2 for line in first)
        yield from _fasttext(file, several)
    elif first and not is_table(file):
        yield (
            0,
            Unreadable(
                f"是純文字，看不出欄位（第一行是「{shown_row([first[0].strip()])}」）；"
                "第一行要是欄位名稱，以定位字元或逗號分開，或每行寫成 __label__類別 文字"
            ),
        )
    else:
        yield from read_delimited(file, "\t", required)


def is_table(file: Path) -> bool:
    """True for a .txt that has columns: a header with usual names, or rows that are all alike."""
    try:
        first = _first_lines(file)
    except (UnknownEncodingError, OSError, EOFError):
        return False
    if not first or first[0].startswith(LABEL_PREFIX):
        return bool(first)
    mark, _ = separator_of(first, "\t")
    table = [line.rstrip("\r\n").split(mark) for line in first]
    return known_names(table[0]) > 1 or bool(names_without_header(table))


def _first_lines(file: Path) -> list[str]:
    with open_text(file, newline="") as stream:
        return [line for line in BoundedLines(stream).peek(PEEKED, PEEKED_CHARACTERS) if line.strip()]


def _fasttext(file: Path, several: bool) -> Rows:
    """several: a line may have more than one label, so that each has a list of them."""
    with open_text(file) as stream:
        lines = BoundedLines(stream)
        for line in lines:
            words, labels = line.strip(), []
            while words.startswith(LABEL_PREFIX):
                label, _, words = words.partition(" ") if " " in words else (words, "", "")
                labels.append(label.removeprefix(LABEL_PREFIX))
                words = words.lstrip()
            if NOT_DECODED.search(line):
                yield lines.number, Unreadable(undecoded(line))
            elif labels or words:
                yield lines.number, {"text": words, "label": labels if several else "".join(labels[:1])}


def _decoded(records: Grid) -> Grid:
    """Refuses those with bytes that are no text."""
    for line, row in records:
        if not isinstance(row, Unreadable):
            if any(map(NOT_DECODED.search, row)):
                row = Unreadable(undecoded(",".join(row)))
            elif any("\0" in cell for cell in row):
                row = Unreadable("有 NUL 字元，檔案可能損壞")
        yield line, row


def _lines_of(start: int, end: int) -> str:
    return f"第 {start} 到 {end} 行讀成了一列，看看引號" if end > start else ""


# ---- commas ------------------------------------------------------------------------------------------------


class _Usual:
    """What the first lines say of any line: how many cells it has, and which values its columns repeat."""

    def __init__(self, lines: Sequence[str], mark: str):
        self.mark = mark
        table = [line.rstrip("\r\n").split(mark) for line in lines if line.strip()]
        self.width = Counter(map(len, table)).most_common(1)[0][0] if table else 0
        columns = zip(*(row for row in table if len(row) == self.width), strict=True)
        self.labels = {
            at: {value for value, count in Counter(column).items() if count > 1 and 0 < len(value) <= 20}
            for at, column in enumerate(columns)
        }

    def swallowed(self, row: list[str]) -> bool:
        """True for a record with a field that looks like whole lines of the file: a quote in the text opened
        it, and another one, lines later, closed it.
        """
        for at, cell in enumerate(row):
            if "\n" not in cell and "\r" not in cell:
                continue
            head, *others = cell.splitlines()
            lines = [[*row[:at], *head.split(self.mark)]] + [line.split(self.mark) for line in others[:-1]]
            last = [*others[-1].split(self.mark), *row[at + 1 :]] if others else []
            if self.width > 1 and all(map(self._is_line, lines)) and len(last) == self.width:
                return True
        return False

    def _is_line(self, cells: list[str]) -> bool:
        if len(cells) != self.width:
            return False
        told = [values for values in self.labels.values() if values]
        repeated = any(cells[at] in values for at, values in self.labels.items())
        return repeated if told else self.width > 3


def _csv_records(lines: BoundedLines, mark: str, usual: _Usual) -> Grid:
    rows = csv.reader(lines, strict=True, delimiter=mark)
    while True:
        start = lines.number + 1
        try:
            row = next(rows)
        except StopIteration:
            return
        except LineTooLongError as error:
            yield lines.number, Unreadable(error)
            continue
        except csv.Error as error:  # the reader starts afresh on the next line
            yield start, Unreadable(_csv_problem(error, start, lines))
            continue
        if lines.number > start and usual.swallowed(row):
            yield start, Unreadable(f"引號沒有成對？{_lines_of(start, lines.number)}：文字裡的引號要寫成兩個")
        else:
            yield start, row


def _csv_problem(error: csv.Error, start: int, lines: BoundedLines) -> str:
    span = _lines_of(start, lines.number)
    if "unexpected end" in str(error):
        torn = f"引號沒有成對，或檔案不完整{'；' + span if span else ''}"
        return f"CSV 格式錯誤：開了引號沒有關，一直到檔案結尾（{torn}）"
    if "field larger" in str(error):
        return f"CSV 格式錯誤：一格超過 {LONGEST:,} 個字（引號沒有成對？{span}）"
    return (
        f"CSV 格式錯誤：引號後面還有字（引號沒有成對？文字裡的引號要寫成兩個{'；' + span if span else ''}）"
    )


# ---- tabs --------------------------------------------------------------------------------------------------


def _tab_records(lines: BoundedLines) -> Grid:
    width, quoting = 0, False  # of the header; whether it is quoted, and so whatever is
    while True:
        try:
            line = next(lines)
        except StopIteration:
            return
        except LineTooLongError as error:
            yield lines.number, Unreadable(error)
            continue
        start, text = lines.number, line.rstrip("\r\n")
        cells = text.split("\t")
        if text.startswith('"') or '\t"' in text:
            cells = _unquoted(line, cells, lines, width, quoting)
            quoting = quoting or not width and text.startswith('"') and cells[0] != text.split("\t")[0]
        width = width or (len(cells) if len(cells) > 1 else 0)
        yield start, cells if text else []


def _unquoted(line: str, cells: list[str], lines: BoundedLines, width: int, quoting: bool) -> list[str]:
    """The cells of a line in which one begins with a quote, and of the lines that it takes along."""
    text = line.rstrip("\r\n")
    parsed, taken = _parsed([text])
    if parsed is None and taken:
        more = lines.peek(QUOTED_LINES, PEEKED_CHARACTERS)
        parsed, taken = _parsed([line, *more])
        pieces = [text, *(one.rstrip("\r\n") for one in more[: taken - 1])]
        if parsed is None or len(parsed) != (width or len(parsed)):
            return cells
        if not any('""' in piece for piece in pieces) and all(len(p.split("\t")) == width for p in pieces):
            return cells  # each is a whole line: the quotes belong to the texts
        for _ in range(taken - 1):
            next(lines)
        return parsed
    if parsed is None or (width and len(parsed) != width):
        return cells
    every = all(len(cell) > 1 and cell[0] == cell[-1] == '"' for cell in cells)
    needed = '""' in text or len(parsed) != len(cells)
    return parsed if quoting or every or needed or not width else cells


def _parsed(lines: list[str]) -> tuple[list[str] | None, int]:
    """The record that begins these lines, and how many it takes; None where none does, with how many lines
    were looked at, 0 where more of them would not help.
    """
    rows = csv.reader(iter(lines), strict=True, delimiter="\t")
    try:
        return next(rows), rows.line_num
    except StopIteration:
        return None, 0
    except csv.Error as error:
        return None, rows.line_num if "unexpected end" in str(error) else 0
