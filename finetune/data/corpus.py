"""Texts for continued pre-training: read from files or the hub, then cleaned."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from finetune.data import hub_dataset
from finetune.data.bad_rows import Unreadable, bad_rows_report, summarize_problems, where
from finetune.data.cleaning import Cleaning, Draft, Text, clean
from finetune.data.data_files import DataFile, data_files, files_below, without_test
from finetune.data.delimited import is_table
from finetune.data.encodings import BROKEN_PACK, NOT_DECODED, UnknownEncodingError, open_text, undecoded
from finetune.data.question_columns import looks_like_question
from finetune.runtime import git_lfs
from finetune.runtime.console import log
from finetune.runtime.errors import UserError, listed
from finetune.runtime.file_types import READABLE, is_readable, suffix_of
from finetune.runtime.strict_json import BoundedLines, LineTooLongError

COLUMNS = ("text", "content", "paragraphs", "paragraph", "文字", "文本", "內容", "内容", "內文", "正文")
OTHER_TASKS = (  # (columns of rows that are no texts, name of such rows, the task for them)
    (({"question", "問題"}, {"A", "choices", "options", "選項1"}), "考題", "--task sft 或 --task exam"),
    (({"instruction"}, {"output"}), "指令與回答", "--task sft"),
    (({"messages", "conversations"},), "對話", "--task sft"),
)


@dataclass
class Corpus:
    """Texts, their origin (a path, or a hub name with revision and commit), and what the cleaning did.

    Attributes:
        counts: `read` texts with `read_characters`; of each step done, how often: `urls`, `numbering`
            (numbers), `punctuation` (places), `titles` (rows merged into another one), `too_short`, `cut`
            (documents) into `parts`, `duplicates`, `near_duplicates`.
        examples: by step, (before, after).
        skipped: rows left out, each with the reason.
    """

    texts: list[Text]
    origin: str
    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def lengths(self) -> list[int]:
        """Number of characters of each text, ascending."""
        return sorted(len(text.text) for text in self.texts)


# ---- reading -----------------------------------------------------------------------------------------------


def read_corpus(
    source: str,
    cleaning: Cleaning,
    revision: str | None = None,
    on_bad_rows: str = "fail",
    flag: str = "--dataset",
    text_column: str = "",
) -> Corpus:
    """Read texts from the hub, a folder (all files in it and below), or one json/jsonl/csv/parquet/txt file.

    A row is a text, or has `title` (optional) and one of COLUMNS; `paragraphs` may be a list. In a .txt,
    documents are separated by blank lines; without any the whole file is one.

    Args:
        revision: revision of a dataset on the hub; None is `main`.
        on_bad_rows: `fail` raises with every bad row; `skip` leaves them out and keeps their reasons in
            `skipped`.
        flag: the flag that named the source, for messages.
        text_column: the column of the texts; "" is the first of COLUMNS.

    Raises:
        UserError: nothing to read, bad rows, rows that are questions, or nothing left after cleaning.
    """
    folder, files, origin = hub_dataset.find_files(source, revision or "main", flag, with_texts=True)
    if not Path(source).expanduser().is_file():
        _log_skipped_files(folder, files)
    if not files:
        raise UserError(f"{flag} {source}：裡面沒有文字檔（要 {'、'.join((*READABLE, '.txt'))}）")
    problems: list[str] = []
    columns = (text_column,) if text_column else COLUMNS
    drafts = [
        draft for file in without_test(files) for draft in _drafts(file, folder, flag, columns, problems)
    ]
    if problems and on_bad_rows == "fail":
        raise UserError(bad_rows_report(problems, len(drafts), "篇"))
    if not drafts:
        raise UserError(summarize_problems(problems) or f"{flag} {source}：一篇文字也沒有")
    texts, cleaned = clean(drafts, cleaning)
    corpus = Corpus(texts, origin, dict(cleaned.counts), dict(cleaned.examples), problems)
    if not texts:
        raise UserError(_nothing_left(corpus, cleaning, f"{flag} {source}"))
    return corpus


def holds_texts(source: str) -> bool:
    """Return whether the first row of a local file or folder is a text, and no question."""
    path = Path(source).expanduser()
    files = data_files(path, with_texts=True) if path.is_dir() else [DataFile(path)]
    if not files or not files[0].path.is_file() or not is_readable(files[0].path, ".txt"):
        return False
    if suffix_of(files[0].path) == ".txt" and not is_table(files[0].path):
        return True
    row = next((row for _, row in files[0].rows() if not isinstance(row, Unreadable)), {})
    if not isinstance(row, dict):
        return isinstance(row, str)
    is_question = row.keys() & {"question", "問題"} or looks_like_question(row)
    return bool(row.keys() & {*COLUMNS} and not is_question)


def _log_skipped_files(folder: Path, files: Sequence[DataFile]) -> None:
    """Log which files of a folder are no texts."""
    read = {file.path for file in files}
    if others := [file for file in files_below(folder) if file not in read]:
        names = "、".join(file.relative_to(folder).as_posix() for file in others[:5])
        more = f" 等 {len(others)} 個檔案" if len(others) > 5 else ""
        log(f"略過 {names}{more}：不是 {'、'.join((*READABLE, '.txt'))}，或是說明檔")


def _drafts(
    file: DataFile, folder: Path, flag: str, columns: Sequence[str], problems: list[str]
) -> Iterator[Draft]:
    """Yield the texts of one file; each other row adds `file:line: reason` to `problems`."""
    path = file.path
    for line, row in _txt_rows(path) if suffix_of(path) == ".txt" else file.rows():
        try:
            yield _parse_row(row, f"{path.relative_to(folder)}:{line}", columns)
        except _OtherTaskError as error:
            raise UserError(f"{flag} {path}：{error}") from None
        except ValueError as error:
            problems.append(f"{where(path, line)}：{error}")


def _txt_rows(file: Path) -> Iterator[tuple[int, str]]:
    """Yield (first line, document) of each document of a .txt.

    Raises:
        UserError: a packed file breaks off.
    """
    start, empty = 1, True
    paragraph_lines: list[str] = []
    if git_lfs.is_pointer(file):
        yield 0, Unreadable(git_lfs.pointer_problem(file))
        return
    try:
        with open_text(file) as stream:
            lines = BoundedLines(stream)
            for line in lines:
                if NOT_DECODED.search(line):
                    yield lines.number, Unreadable(undecoded(line))
                elif line.strip():
                    start, empty = start if paragraph_lines else lines.number, False
                    paragraph_lines.append(line.removesuffix("\n"))
                elif paragraph_lines:
                    yield start, "\n".join(paragraph_lines)
                    paragraph_lines = []
    except UnknownEncodingError as error:
        yield 0, Unreadable(error)
        return
    except LineTooLongError as error:
        yield lines.number, Unreadable(error)
        return
    except BROKEN_PACK:
        raise UserError(f"{file}：壓縮檔在第 {lines.number + 1} 行中斷，不完整") from None
    except OSError as error:
        yield 0, Unreadable(f"讀不到（{error.strerror or error}）")
        return
    if paragraph_lines:
        yield start, "\n".join(paragraph_lines)
    if empty:
        yield 0, Unreadable("空的檔案")


class _OtherTaskError(ValueError):
    """A row belongs to another task."""


def _parse_row(row: object, row_id: str, columns: Sequence[str]) -> Draft:
    """Return a row as a document.

    Args:
        columns: where its text may be; the first that the row has counts.

    Raises:
        ValueError: it holds no text; the reason, in Chinese.
    """
    if isinstance(row, Unreadable):
        raise ValueError(row)
    if isinstance(row, str):
        row = {"text": row}
    if not isinstance(row, dict):
        raise ValueError(f"應該是文字或物件，得到 {type(row).__name__}")
    column = next((name for name in columns if row.get(name) is not None), None)
    if column is None:
        for wanted, looks_like, task in OTHER_TASKS:
            if all(names & row.keys() for names in wanted):
                raise _OtherTaskError(f"看起來是{looks_like}（{listed(row)}），不是文章；這種資料用 {task}")
        empty = [name for name in columns if name in row]
        missing = f"沒有 {'、'.join(columns)} {'這一欄' if len(columns) == 1 else '任何一欄'}"
        present = f"有的是 {listed(row)}；用 --text_column 指出文字在哪一欄" if row else "是空的物件"
        raise ValueError(f"{empty[0]} 是空的" if empty else f"{missing}，{present}")
    title, value = row.get("title"), row[column]
    if isinstance(title, (list, dict)):
        raise ValueError(f"title 應該是文字，得到 {type(title).__name__}")
    paragraphs = value if column == "paragraphs" and isinstance(value, list) else [value]
    if wrong := [type(paragraph).__name__ for paragraph in paragraphs if not isinstance(paragraph, str)]:
        raise ValueError(f"{column} 應該是文字，得到 {wrong[0]}")
    if not any(paragraph.strip() for paragraph in paragraphs):
        raise ValueError(f"{column} 是空的")
    lines = [
        line
        for paragraph in paragraphs
        if paragraph.strip()
        for line in re.split(r"\r\n|\r|\n", paragraph.strip())
    ]
    return Draft(lines, "" if title is None else str(title).strip(), row_id)


def _nothing_left(corpus: Corpus, cleaning: Cleaning, named: str) -> str:
    """Return the message for a corpus of which cleaning left nothing."""
    reasons = {"too_short": "太短", "duplicates": "重複", "near_duplicates": "幾乎重複"}
    dropped = [f"{name} {corpus.counts[key]} 篇" for key, name in reasons.items() if corpus.counts.get(key)]
    why = "、".join(dropped) or "都是空的"
    return (
        f"{named}：讀到 {corpus.counts['read']} 篇，清理之後一篇也不剩（{why}）。"
        f"訓練時（先看結果就加 --inspect）把 --min_chars 調小（現在是 {cleaning.min_chars}），"
        f"或用 --clean 選要做的步驟（現在是 {','.join(cleaning.steps)}）"
    )
