"""Records of csv and tsv files, each with the line it begins on.

csv is read by Python's own reader in strict mode: pandas turns the option `NA` into nothing and shifts the
columns of a row with one field too many, both silently. In a tsv a quote is an ordinary character unless it
really quotes: most programs that write tsv know no quoting.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from finetune.data.bad_rows import Rows, Unreadable, log_once
from finetune.data.encodings import NOT_DECODED, UnknownEncodingError, encoding_of, open_text, undecoded
from finetune.data.headers import Grid, known_names, names_without_header, rows_of, shown_row
from finetune.data.separators import NAMES, separator_of
from finetune.runtime.strict_json import LONGEST, BoundedLines, LineTooLongError

PEEKED = 100  # lines looked at to find the separator
PEEKED_CHARACTERS = 1 << 20
QUOTED_LINES = 200  # lines that a quoted field of a tsv may span
LABEL_PREFIX = "__label__"  # fastText's


def read_delimited(file: Path, usual: str, required: Sequence[Sequence[str]] = ()) -> Rows:
    """Read the rows of a csv or tsv file.

    Args:
        usual: the separator that its name promises.
        required: see `tables.read_table`.
    """
    csv.field_size_limit(LONGEST)
    with open_text(file, newline="") as stream:
        lines = BoundedLines(stream)
        head = lines.peek(PEEKED, PEEKED_CHARACTERS)
        mark, is_declared = separator_of(head, usual)
        if is_declared:
            next(lines)
            head = head[1:]
        elif mark != usual:
            log_once((file.parent, "separator", mark), f"{file}：以{NAMES[mark]}分欄")
        records = _tab_records(lines) if mark == "\t" else _csv_records(lines, mark, _LineShape(head, mark))
        if not encoding_of(file).whole:
            records = _check_decoded(records)
        for line, row in rows_of(records, str(file), required, NAMES.get(mark, mark)):
            if isinstance(row, Unreadable) and lines.torn and line == lines.number:
                row = Unreadable(f"{row}；檔案到這一行就斷了，可能不完整")
            yield line, row


def read_plain(file: Path, required: Sequence[Sequence[str]] = ()) -> Rows:
    """Read the rows of a .txt: a table, or fastText's `__label__x text` lines."""
    head = _first_lines(file)
    if head and head[0].startswith(LABEL_PREFIX):
        multi = any(len(line.split(LABEL_PREFIX)) > 2 for line in head)
        yield from _fasttext(file, multi)
    elif head and not is_table(file):
        reason = (
            f"是純文字，看不出欄位（第一行是「{shown_row([head[0].strip()])}」）；"
            "第一行要是欄位名稱，以定位字元或逗號分開，或每行寫成 __label__類別 文字"
        )
        yield 0, Unreadable(reason)
    else:
        yield from read_delimited(file, "\t", required)


def is_table(file: Path) -> bool:
    """Return whether a .txt has columns: a header with usual names, or rows that are all alike."""
    try:
        head = _first_lines(file)
    except (UnknownEncodingError, OSError, EOFError):
        return False
    if not head or head[0].startswith(LABEL_PREFIX):
        return bool(head)
    mark, _ = separator_of(head, "\t")
    table = [line.rstrip("\r\n").split(mark) for line in head]
    return known_names(table[0]) > 1 or bool(names_without_header(table))


def _first_lines(file: Path) -> list[str]:
    """Return the first lines that are not blank."""
    with open_text(file, newline="") as stream:
        return [line for line in BoundedLines(stream).peek(PEEKED, PEEKED_CHARACTERS) if line.strip()]


def _fasttext(file: Path, multi: bool) -> Rows:
    """Read fastText's lines; with `multi` each has a list of labels."""
    with open_text(file) as stream:
        lines = BoundedLines(stream)
        for line in lines:
            text, labels = line.strip(), []
            while text.startswith(LABEL_PREFIX):
                label, _, text = text.partition(" ") if " " in text else (text, "", "")
                labels.append(label.removeprefix(LABEL_PREFIX))
                text = text.lstrip()
            if NOT_DECODED.search(line):
                yield lines.number, Unreadable(undecoded(line))
            elif labels or text:
                yield lines.number, {"text": text, "label": labels if multi else "".join(labels[:1])}


def _check_decoded(records: Grid) -> Grid:
    """Refuse records with bytes that could not be decoded, or with NULs."""
    for line, row in records:
        if not isinstance(row, Unreadable):
            if any(map(NOT_DECODED.search, row)):
                row = Unreadable(undecoded(",".join(row)))
            elif any("\0" in cell for cell in row):
                row = Unreadable("有 NUL 字元，檔案可能損壞")
        yield line, row


def _span_message(start: int, end: int) -> str:
    """Return the message for a record that took several lines, "" for one line."""
    return f"第 {start} 到 {end} 行讀成了一列，看看引號" if end > start else ""


# ---- commas ------------------------------------------------------------------------------------------------


class _LineShape:
    """Shape of the first lines: their number of cells, and the values that their columns repeat."""

    def __init__(self, lines: Sequence[str], mark: str):
        self.mark = mark
        table = [line.rstrip("\r\n").split(mark) for line in lines if line.strip()]
        self.width = Counter(map(len, table)).most_common(1)[0][0] if table else 0
        columns = zip(*(row for row in table if len(row) == self.width), strict=True)
        self.labels = {
            at: {value for value, count in Counter(column).items() if count > 1 and 0 < len(value) <= 20}
            for at, column in enumerate(columns)
        }

    def looks_swallowed(self, row: list[str]) -> bool:
        """Return whether a field of a record looks like whole lines of the file.

        Then a quote in the text opened it, and another one, lines later, closed it.
        """
        for at, cell in enumerate(row):
            if "\n" not in cell and "\r" not in cell:
                continue
            head, *following = cell.splitlines()
            lines = [[*row[:at], *head.split(self.mark)]] + [line.split(self.mark) for line in following[:-1]]
            last = [*following[-1].split(self.mark), *row[at + 1 :]] if following else []
            if self.width > 1 and all(map(self._is_line, lines)) and len(last) == self.width:
                return True
        return False

    def _is_line(self, cells: list[str]) -> bool:
        """Return whether cells look like a line of the file."""
        if len(cells) != self.width:
            return False
        repeating = [values for values in self.labels.values() if values]
        repeated = any(cells[at] in values for at, values in self.labels.items())
        return repeated if repeating else self.width > 3


def _csv_records(lines: BoundedLines, mark: str, usual: _LineShape) -> Grid:
    """Yield the records of a csv."""
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
            yield start, Unreadable(_csv_error_message(error, start, lines))
            continue
        if lines.number > start and usual.looks_swallowed(row):
            span = _span_message(start, lines.number)
            yield start, Unreadable(f"引號沒有成對？{span}：文字裡的引號要寫成兩個")
        else:
            yield start, row


def _csv_error_message(error: csv.Error, start: int, lines: BoundedLines) -> str:
    """Return an error of the csv reader in Chinese."""
    span = _span_message(start, lines.number)
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
    """Yield the records of a tsv."""
    width, quoting = 0, False  # columns of the header; whether its cells, and so all rows', are quoted
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
            cells = _unquote(line, cells, lines, width, quoting)
            quoting = quoting or not width and text.startswith('"') and cells[0] != text.split("\t")[0]
        width = width or (len(cells) if len(cells) > 1 else 0)
        yield start, cells if text else []


def _unquote(line: str, cells: list[str], lines: BoundedLines, width: int, quoting: bool) -> list[str]:
    """Return the cells of a line in which one begins with a quote, with further lines that belong to it."""
    text = line.rstrip("\r\n")
    parsed, taken = _parse_record([text])
    if parsed is None and taken:
        following = lines.peek(QUOTED_LINES, PEEKED_CHARACTERS)
        parsed, taken = _parse_record([line, *following])
        pieces = [text, *(other.rstrip("\r\n") for other in following[: taken - 1])]
        if parsed is None or len(parsed) != (width or len(parsed)):
            return cells
        if not any('""' in piece for piece in pieces) and all(len(p.split("\t")) == width for p in pieces):
            return cells  # each is a whole line: the quotes belong to the texts
        for _ in range(taken - 1):
            next(lines)
        return parsed
    if parsed is None or (width and len(parsed) != width):
        return cells
    all_quoted = all(len(cell) > 1 and cell[0] == cell[-1] == '"' for cell in cells)
    has_quoting = '""' in text or len(parsed) != len(cells)
    return parsed if quoting or all_quoted or has_quoting or not width else cells


def _parse_record(lines: list[str]) -> tuple[list[str] | None, int]:
    """Parse the record at the start of lines.

    Returns:
        the record, None where it is not well-formed, and how many lines were read, 0 where more lines would
        not help.
    """
    rows = csv.reader(iter(lines), strict=True, delimiter="\t")
    try:
        return next(rows), rows.line_num
    except StopIteration:
        return None, 0
    except csv.Error as error:
        return None, rows.line_num if "unexpected end" in str(error) else 0
