"""Datasets of extractive question answering: passages, questions, and where their answers stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from finetune.data.bad_rows import Unreadable, log_once, summarize_problems, where
from finetune.data.data_files import DataFile
from finetune.data.headers import LOOKED
from finetune.data.question_columns import looks_like_question
from finetune.data.row_dataset import RowDataset, check_rows, find_row_files, rows_of
from finetune.data.span_columns import SpanColumns, find_span_columns
from finetune.data.span_rows import SpanParser, SpanRow, is_nested
from finetune.runtime.errors import UserError


@dataclass(frozen=True)
class SpanOptions:
    """Columns and configuration of a dataset to read.

    Attributes:
        text_column: column of the passages; "" finds it.
        label_column: column of the answers; "" finds it.
        config_name: the sub-folder to read where several hold the same splits.
    """

    text_column: str = ""
    label_column: str = ""
    config_name: str = ""


def read_spans(
    source: str,
    revision: str | None = None,
    options: SpanOptions | None = None,
    on_bad_rows: str = "fail",
    flag: str = "--dataset",
) -> RowDataset[SpanRow]:
    """Read passages and questions from the hub, a folder or one file.

    Args:
        revision: revision of a dataset on the hub; None is `main`.
        options: columns and configuration; None finds the columns.
        on_bad_rows: `fail` raises with every bad row; `skip` leaves them out and keeps their reasons.
        flag: the flag that named the source, for messages.

    Raises:
        UserError: nothing to read, no column of questions, passages or answers, bad rows.
    """
    options = options or SpanOptions()
    folder, files, origin = find_row_files(source, revision, options.config_name, flag)
    named = f"{flag} {source}"
    columns = columns_of(files, named, options)
    parser, problems = SpanParser(columns), list[str]()
    rows = rows_of(files, folder, problems, parser, nested=True)
    origin = f"{origin} {options.config_name}".rstrip()
    dataset = RowDataset({split: part for split, part in rows.items() if part}, origin, "題", problems)
    dataset.remarks = parser.remarks
    if unanswerable := sum(not row.answers for part in rows.values() for row in part):
        dataset.remarks["文章裡沒有答案"] = unanswerable
    check_rows(dataset, on_bad_rows, named)
    return dataset


def columns_of(
    files: Sequence[DataFile], named: str, options: SpanOptions, need_answer: bool = True
) -> SpanColumns | None:
    """Return the columns of flat rows by the first rows of the first file that has any; None of nested ones.

    Raises:
        UserError: no file has a readable row, or a column is missing.
    """
    problems: list[str] = []
    for file in files:
        looked = list(islice(file.rows(nested=True), LOOKED))
        rows = [row for _, row in looked if isinstance(row, dict) and {*row} != {"header"}]
        if rows:
            flat = [row for row in rows if not is_nested(row)]
            if not flat:
                _warn_of_columns(options, named)
                return None
            names = list(dict.fromkeys(str(name) for row in flat for name in row))
            if looks_like_question(flat[0]) and not options.label_column:
                raise UserError(
                    f"{named}：有選項的欄位，是選擇題；請用 --task exam，"
                    "真要在文章裡找答案就用 --label_column 指出答案那一欄"
                )
            return find_span_columns(names, options.text_column, options.label_column, named, need_answer)
        problems += [
            f"{where(file.path, line)}：{row if isinstance(row, Unreadable) else '不是一個物件'}"
            for line, row in looked
        ]
    raise UserError([*summarize_problems(problems), f"{named}：一列也沒有"])


def _warn_of_columns(options: SpanOptions, named: str) -> None:
    """Log that names of columns have no effect on nested rows."""
    for flag, name in (("--text_column", options.text_column), ("--label_column", options.label_column)):
        if name:
            reason = f"{named} 是文章裡有問答的 json，沒有欄位可選"
            log_once((named, flag), f"⚠️ {flag} {name} 沒有作用：{reason}")
