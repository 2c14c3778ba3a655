"""Header of a grid of cells (csv, tsv, Excel): its place, its names, and the rows under it.

People's tables have a title above the header or no header at all, empty rows and columns that a spreadsheet
added, an index without a name, and the header again where two files were joined.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

from finetune.data.bad_rows import Rows, Unreadable, log_once
from finetune.data.encodings import NOT_DECODED, undecoded
from finetune.data.question import LETTERS
from finetune.runtime.errors import listed, shown
from finetune.runtime.strict_json import duplicate_keys_message

Record = tuple[int, "list[str] | Unreadable"]  # line, cells
Grid = Iterator[Record]

LOOKED = 100  # records looked at to find the header
TITLES = 5  # most rows above the header
SHORT = 20  # most characters of a label
# Names by which a header is known; their meaning is in question_columns.py and label_columns.py.
STEMS = ("question", "問題", "題目", "題幹", "題干", "问题", "题目", "stem", "query")
ANSWERS = (
    "answer", "答案", "正確答案", "正解", "解答", "正确答案", "answerKey", "correct_answer", "target", "gold",
    "correct_answer_num", "correct_option", "correct", "label", "ans", "key",
)  # fmt: skip
KNOWN = {
    *STEMS,
    "answer", "答案", "正確答案", "正解", "解答", "正确答案", "answerkey", "correctanswer", "target", "gold",
    "choices", "options", "選項", "选项", "id", "編號", "題號", "序號", "index", "idx", "text", "sentence",
    "content", "review", "comment", "tweet", "document", "title", "headline", "文字", "文本", "內容",
    "内容", "句子", "評論", "评论", "留言", "標題", "标题", "label", "labels", "category", "class",
    "sentiment",
    "標籤", "标签", "類別", "类别", "分類", "分类", "情緒", "sentence1", "sentence2", "premise", "hypothesis",
    "question1", "question2", "texta", "textb", "text1", "text2", "句子1", "句子2", "前提", "假設",
    "prompt", "instruction", "input", "output", "system", "messages", "conversations", "completion",
    "response", "subject", "科目", "explanation", "解析", "article", "passage", "context", "文章",
    "paragraph", "paragraphs", "optiona", "option1", "選項1", "選項a", "选项1", "选项a", "choice1",
    "choicea", "ctx", "source", "score", "分數",
}  # fmt: skip
INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060\ufeff]")  # in a name they are accidental
QUOTES = "\"'“”‘’「」`"
WIDE = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}  # full-width to ASCII


def clean_name(name: str) -> str:
    """Return a column name in half width, without invisible characters, quotes and spaces around it."""
    name = INVISIBLE.sub("", name).translate(WIDE).strip()
    while len(name) > 1 and name[0] in QUOTES and name[-1] in QUOTES:
        name = name[1:-1].strip()
    return name


def header_key(name: str) -> str:
    """Return a name in which case, spaces, - and _ do not count."""
    return re.sub(r"[\s_\-]", "", clean_name(name)).lower()


def known_names(cells: Sequence[str]) -> int:
    """Count the cells that are usual names of columns."""
    return sum(header_key(cell) in KNOWN for cell in cells)


def rows_of(grid: Grid, named: str, required: Sequence[Sequence[str]] = (), mark: str = "逗號") -> Rows:
    """Yield (line, row) of each record under the header; a record that is no row is its reason.

    Args:
        named: the file, for messages.
        required: columns there must be, each by any one of its names.
        mark: the separator of two cells, in Chinese.
    """
    ahead = list(islice(grid, LOOKED))
    place, header = _find_header(ahead, named)
    if header is None:
        yield from _no_header(ahead)
        return
    line = ahead[max(place, 0)][0]
    if problem := _header_problem(header, required):
        yield line, problem
        return
    yield from ((at, row) for at, row in ahead[: max(place, 0)] if isinstance(row, Unreadable))
    written = ahead[place][1] if place >= 0 else None
    cells = written if isinstance(written, list) else None
    yield from _rows_below(chain(ahead[place + 1 :], grid), header, cells, mark)


def _no_header(ahead: list[Record]) -> Rows:
    """Yield the reason why a grid has no header: the file is empty, or cannot be read."""
    if unreadable := [(line, row) for line, row in ahead if isinstance(row, Unreadable)]:
        yield from unreadable
    else:
        yield 0, Unreadable("空的檔案")


def _find_header(ahead: list[Record], named: str) -> tuple[int, list[str] | None]:
    """Return the place of the header among the records and its names; -1 where the first record is a row."""
    filled = [
        (place, row)
        for place, (_, row) in enumerate(ahead)
        if not isinstance(row, Unreadable) and any(cell.strip() for cell in row)
    ]
    if not filled:
        return 0, None
    place, cells = filled[0]
    if sum(bool(cell.strip()) for cell in cells) == 1 and not known_names(cells):
        for later, row in filled[1 : TITLES + 1]:
            if known_names(row) > 1 or (known_names(row) and sum(map(bool, row)) > 2):
                titles = "、".join(
                    f"「{' '.join(cell for cell in title_row if cell)[:40]}」"
                    for at, title_row in filled
                    if at < later
                )
                message = f"{named}：標題列在第 {ahead[later][0]} 行，上面的 {titles} 不讀"
                log_once((Path(named).parent, "title"), message)
                return later, [clean_name(cell) for cell in row]
    if names := names_without_header([row for _, row in filled]):
        log_once(
            (*names, "header"),
            f"{named}：沒有標題列，當作 {','.join(names)}（第一行是「{shown_row(cells)}」）",
        )
        return -1, names
    return place, [clean_name(cell) for cell in cells]


def shown_row(cells: Sequence[object]) -> str:
    """Return a row as a short text for messages."""
    text = "｜".join(map(str, cells))
    return text[:60] + "…" if len(text) > 60 else text


def names_without_header(rows: Sequence[Sequence[object]]) -> list[str]:
    """Return the columns' names where the first row is no header; [] where that is unclear.

    A last column of letters shows it (an exam as MMLU has it), or a label that other rows have too.
    """
    first = [str(cell) for cell in rows[0]]
    width = len(first)
    if width < 2 or known_names(first):
        return []
    full_rows = [[str(cell).strip() for cell in row] for row in rows if len(row) == width]
    if len(full_rows) * 10 < len(rows) * 8:
        return []
    columns = list(zip(*full_rows, strict=True))
    numbered = width > 2 and all(cell.isdecimal() for cell in columns[0])
    count = width - 2 - numbered  # number of options
    ids = ["id"] if numbered else []
    if 2 <= count <= len(LETTERS) and all(len(cell) == 1 and cell in LETTERS[:count] for cell in columns[-1]):
        return [*ids, "question", *LETTERS[:count], "answer"]
    other_rows = [row for row in full_rows[1:] if row != full_rows[0]]
    labels = [
        at
        for at, column in enumerate(columns)
        if max(map(len, column)) <= SHORT
        and any(row[at] == full_rows[0][at] for row in other_rows)
        and at >= numbered
    ]
    texts = width - 1 - numbered
    if len(labels) == 1 and labels[0] in (numbered, width - 1) and 1 <= texts <= 2:
        names = ["text"] if texts == 1 else ["sentence1", "sentence2"]
        return [*ids, "label", *names] if labels[0] == numbered else [*ids, *names, "label"]
    return []


def _header_problem(header: list[str], required: Sequence[Sequence[str]]) -> Unreadable | None:
    """Return why a header cannot be used, None if it can."""
    present = [name for name in header if name]
    if any(map(NOT_DECODED.search, header)):
        return Unreadable(undecoded(",".join(header)))
    known = {*map(header_key, present)}
    if missing := [names[0] for names in required if not known & {*map(header_key, names)}]:
        return Unreadable(f"少了欄位 {'、'.join(missing)}，有的是 {listed(present)}")
    if len(present) > len({*present}):
        return Unreadable(duplicate_keys_message(present))
    return None


def _rows_below(grid: Grid, header: list[str], cells: list[str] | None, mark: str) -> Rows:
    """Yield the rows under a header; `cells` is the header as it is written."""
    width = len(header)
    first = cells[0] if cells else None
    all_named = all(header)
    for line, row in grid:
        if isinstance(row, Unreadable):
            yield line, row
            continue
        if not row or (width > 1 and not row[0].strip() and not any(cell.strip() for cell in row)):
            continue  # empty, as a spreadsheet leaves them
        if row[0] == first and row == cells:
            yield line, Unreadable("標題列又出現一次（接起來的檔案？），刪掉這一行")
        elif len(row) == width and all_named:
            yield line, dict(zip(header, row, strict=True))
        else:
            yield line, _fit_row(row, header, mark)


def _fit_row(row: list[str], header: list[str], mark: str) -> dict | Unreadable:
    """Return a row that has too many or too few cells, or is under a header with empty names.

    Empty cells at the end do not count, nor does a first column without a name, an index.
    """
    width = len(header)
    last_named = max((at for at, name in enumerate(header) if name), default=-1) + 1
    if len(row) < last_named or any(cell.strip() for cell in row[width:]):
        return Unreadable(f"有 {len(row)} 欄，標題列是 {width} 欄（內容含{mark}要加引號）")
    cells = [*row[:width], *[""] * (width - len(row))]
    for at, (name, cell) in enumerate(zip(header, cells, strict=True)):
        if at and not name and cell.strip():
            return Unreadable(f"第 {at + 1} 欄沒有名稱，卻有內容 {shown(cell)}（內容含{mark}要加引號）")
    return {name: cell for name, cell in zip(header, cells, strict=True) if name}
