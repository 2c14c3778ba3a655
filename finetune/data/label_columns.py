"""Columns of labelled texts: which hold the text and which the label, and what a row says in them.

Text stays text, and so do labels: `NA`, `None`, `1.0` and `無` in a csv are classes like any other. Whole
numbers and true/false of json and parquet become text; the integers of a parquet file that `datasets` wrote
become the names it keeps in the file's metadata.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from finetune.data.bad_rows import Unreadable, summarize_problems, where
from finetune.data.cells import is_blank, written_list
from finetune.data.columnar import features_of
from finetune.data.data_files import DataFile
from finetune.data.dataset_card import names_of_feature
from finetune.data.label_values import names_beside
from finetune.runtime.console import log
from finetune.runtime.errors import UserError, listed, nearest, shown

TEXTS: tuple[str, ...] = (
    "text", "sentence", "content", "review", "comment", "tweet", "document", "文字", "文本", "內容",
    "句子", "評論", "留言",
)  # fmt: skip
TITLES = ("title", "headline", "question", "標題", "問題")  # the text where there is no other
PAIRS = (
    ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"),
    ("question", "sentence"), ("text_a", "text_b"), ("text1", "text2"), ("句子1", "句子2"),
    ("前提", "假設"), ("問題1", "問題2"),
)  # fmt: skip
LABELS = ("label", "labels", "category", "class", "sentiment", "標籤", "類別", "分類", "情緒")
LOOKED = 100  # rows looked at to find the columns
SEPARATORS = re.compile(r"[|;；、,，]")  # separators of several labels in one text
SWITCHES = {"1": True, "true": True, "1.0": True, "0": False, "false": False, "0.0": False}
NO_LABEL = {"-", "－", "—"}  # how a text says that there is none


# ---- columns -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LabelColumns:
    """Columns of a labelled dataset.

    Attributes:
        texts: one column, or the two of a sentence pair.
        labels: one column, or several where each says yes or no to one label.
        multi: a text may have any number of labels.
        written: a cell writes out a list: "['喜', '怒']".
    """

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    multi: bool
    written: bool = False


def first_rows(files: Sequence[DataFile], named: str) -> list[dict]:
    """Return the first rows of the first file that has any.

    Raises:
        UserError: no file has a readable row.
    """
    problems: list[str] = []
    for file in files:
        looked = list(islice(file.rows(), LOOKED))
        if rows := [row for _, row in looked if isinstance(row, dict)]:
            return rows
        problems += [f"{where(file.path, line)}：{not_a_row(row)}" for line, row in looked]
    raise UserError([*summarize_problems(problems), f"{named}：一列也沒有"])


def find_label_columns(
    rows: list[dict], text_column: str, label_column: str, multi: bool, named: str
) -> LabelColumns:
    """Find the columns of the text and of the label.

    Args:
        rows: the first rows.
        text_column, label_column: values of the flags; "" chooses the obvious column.
        multi: --multi_label: a text may have several labels whatever the rows look like.
        named: flag and source, for messages.

    Raises:
        UserError: a column is missing or ambiguous.
    """
    present = list(dict.fromkeys(name for row in rows for name in row))
    labels = column_names(label_column)
    problems = missing_columns(named, "--label_column", label_column, present)
    if shared := {*column_names(text_column)} & {*labels}:
        problems.append(f"--text_column 與 --label_column 都是 {shared.pop()}，要是不同的欄")
    if not labels:
        taken = column_names(text_column)
        likely = _known_columns(LABELS, [name for name in present if name not in taken])
        labels = likely if len(likely) == 1 else ()
        if len(likely) > 1:
            problems.append(f"{named}：{'、'.join(likely)} 都像標籤欄，用 --label_column 選")
        elif not likely:
            problems.append(
                f"{named}：看不出哪一欄是標籤，有的是 {listed(present)}；用 --label_column 指出來"
            )
    texts: tuple[str, ...] = ()
    try:
        texts = find_texts(present, text_column, named, labels)
    except UserError as error:
        problems = [*error.problems, *problems]
    if problems:
        raise UserError(problems)
    if not label_column and (names := names_beside(present, labels[0])):
        log(f"{named}：類別用 {names} 欄的名稱，不用 {labels[0]} 欄的編號")
        labels = (names,)
    cells = [row.get(labels[0]) for row in rows if not is_blank(row.get(labels[0]))]
    written = bool(cells) and all(isinstance(c, str) and isinstance(written_list(c), list) for c in cells)
    lists = any(isinstance(cell, list) for cell in cells)
    return LabelColumns(texts, labels, multi or len(labels) > 1 or lists or written, written)


def find_texts(there: list[str], wanted: str, named: str, labels: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the text column, or the two of a pair: those of --text_column, else the obvious ones.

    Args:
        there: all columns, `labels` included.
        wanted: the value of --text_column.
        named: flag and source, for messages.

    Raises:
        UserError: a column is missing or ambiguous.
    """
    problems = missing_columns(named, "--text_column", wanted, there)
    texts = column_names(wanted)
    if len(texts) > 2:
        problems.append(f"--text_column {wanted}：最多兩欄（一對句子），得到 {len(texts)} 欄")
    if problems:
        raise UserError(problems)
    if texts:
        return texts
    choices = _likely_texts([name for name in there if name not in labels])
    if len(choices) == 1:
        return choices[0]
    if choices:
        candidates = "、".join(",".join(choice) for choice in choices)
        raise UserError(f"{named}：{candidates} 都像文字欄，用 --text_column 選（兩欄一對的以逗號分開）")
    raise UserError(f"{named}：看不出哪一欄是文字，有的是 {listed(there)}；用 --text_column 指出來")


def column_names(column: str) -> tuple[str, ...]:
    """Split the value of a flag into column names, at commas."""
    return tuple(name.strip() for name in re.split(r"[,，、]", column) if name.strip())


def missing_columns(named: str, flag: str, column: str, columns: list[str]) -> list[str]:
    """Return a message for each column named in a flag that the data do not have."""
    problems = []
    for name in column_names(column):
        if name not in columns:
            guess = nearest(name, columns)
            hint = f"；是不是 {guess[0]}？" if guess else ""
            problems.append(f"{named} {flag} {name}：沒有這一欄，有的是 {listed(columns)}{hint}")
    return problems


def _known_columns(known: Iterable[str], columns: list[str]) -> tuple[str, ...]:
    """Return the columns with a known name."""
    return tuple(name for name in columns if name.strip().lower() in known)


def _likely_texts(columns: list[str]) -> list[tuple[str, ...]]:
    """Return the candidates for the text column, each one column or a pair of columns."""
    by_name = {name.strip().lower(): name for name in columns}
    pairs: list[tuple[str, ...]] = [
        (by_name[a], by_name[b]) for a, b in PAIRS if a in by_name and b in by_name
    ]
    paired = {name for pair in pairs for name in pair}
    choices = pairs + [(name,) for name in _known_columns(TEXTS, columns) if name not in paired]
    halves = {half for pair in PAIRS for half in pair} - {*TITLES}  # text_a alone, as UER and CLUE have it
    return choices or [(name,) for name in _known_columns(halves, columns) or _known_columns(TITLES, columns)]


# ---- rows --------------------------------------------------------------------------------------------------


class NoLabelError(ValueError):
    """A row has no label.

    Attributes:
        meant: the row says so on purpose, by `-`, or by -1 of a class label.
    """

    def __init__(self, reason: str, meant: bool = False):
        super().__init__(reason)
        self.meant = meant


def class_names(file: Path, column: str) -> tuple[str, ...]:
    """Return the class names that `datasets` wrote into a parquet or Arrow file, else ().

    The column is a ClassLabel, or a list of them.
    """
    if file.suffix.lower() not in (".parquet", ".arrow"):
        return ()
    features = features_of(file)
    return names_of_feature(features.get(column) if isinstance(features, dict) else None)


def not_a_row(row: object) -> str:
    """Return why a row is none."""
    return str(row) if isinstance(row, Unreadable) else f"應該是一個物件，得到 {type(row).__name__}"


def parse_row(
    row: object, columns: LabelColumns, classes: Sequence[str]
) -> tuple[list[str], tuple[str, ...]]:
    """Return the texts of a row and the names of its labels.

    The elements of a list stay as they are: see `label_values.interpret_labels`.

    Raises:
        ValueError: with the reason in Chinese; NoLabelError where only the label is missing.
    """
    if not isinstance(row, dict):
        raise ValueError(not_a_row(row))
    texts = []
    for name in columns.texts:
        value = row.get(name)
        if value is not None and not isinstance(value, (str, int, float)):
            raise ValueError(f"{name} 應該是文字，得到 {type(value).__name__}")
        texts.append(str(value))
        if is_blank(value):
            raise ValueError(f"{name} 是空的" if name in row else f"沒有 {name} 這一欄")
    if len(columns.labels) > 1:
        return texts, _switched_on(row, columns.labels)
    column, value = columns.labels[0], row.get(columns.labels[0])
    if columns.written and isinstance(value, str):
        value = written_list(value) if isinstance(written_list(value), list) else value
    if isinstance(value, str) and value.strip() in NO_LABEL:
        raise NoLabelError("", meant=True)
    if columns.multi and isinstance(value, str):
        value = [part for part in SEPARATORS.split(value) if part.strip()]
    if is_blank(value):
        raise NoLabelError(f"{column} 是空的，沒有標籤")
    if isinstance(value, list) and not columns.multi:
        raise ValueError(f"{column} 是一串標籤，別的列是一個")
    if classes and value == -1:
        raise NoLabelError("", meant=True)
    values = value if isinstance(value, list) else [value]
    if len(values) == len(classes) and len({*map(str, values)} - {"0", "1"}) == 0 and len(classes) > 2:
        values = [place for place, on in enumerate(values) if int(on)]  # a switch for each class
    return texts, tuple(_label(column, one, classes) for one in values)


def _switched_on(row: dict, columns: tuple[str, ...]) -> tuple[str, ...]:
    """Return the columns whose cell says yes.

    Raises:
        ValueError: a cell says neither yes nor no; NoLabelError where all are blank.
    """
    if all(is_blank(row.get(name)) for name in columns):
        raise NoLabelError(f"{'、'.join(columns)} 都是空的，沒有標籤")
    for name in columns:
        if str(row.get(name)).strip().lower() not in SWITCHES:
            raise ValueError(f"{name} 是 {shown(row.get(name))}，應為 0、1、true 或 false")
    return tuple(name for name in columns if SWITCHES[str(row[name]).strip().lower()])


def _label(column: str, value: object, classes: Sequence[str]) -> str:
    """Return the name of the label in a cell.

    Raises:
        ValueError: the cell cannot be a label; in Chinese.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        if not value.is_integer():
            raise ValueError(f"{column} 是小數，像是分數而不是類別")
        value = int(value)
    if isinstance(value, int):
        if classes and not 0 <= value < len(classes):
            raise ValueError(f"{column} 是 {value}，檔案裡的類別是 0 到 {len(classes) - 1}")
        return classes[value] if classes else str(value)
    if not isinstance(value, str):
        raise ValueError(f"{column} 應該是文字或整數，得到 {type(value).__name__}")
    if not value.strip():
        raise ValueError(f"{column} 裡有空的標籤")
    return value.strip()
