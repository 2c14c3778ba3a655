"""Which columns of labelled texts hold the text and which the label; what a row of them says.

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

from finetune.data.bad_rows import Unreadable, abridged, where
from finetune.data.cells import is_blank, written_list
from finetune.data.columnar import features_of
from finetune.data.data_files import DataFile, names_of_feature
from finetune.data.label_values import names_beside
from finetune.runtime.console import log
from finetune.runtime.errors import UserError, listed, nearest, shown

TEXTS = ("text", "sentence", "content", "review", "comment", "tweet", "document", "文字", "文本", "內容")
TEXTS += ("句子", "評論", "留言")
TITLES = ("title", "headline", "question", "標題", "問題")  # the text where there is no other
PAIRS = (
    ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"),
    ("question", "sentence"), ("text_a", "text_b"), ("text1", "text2"), ("句子1", "句子2"),
    ("前提", "假設"), ("問題1", "問題2"),
)  # fmt: skip
LABELS = ("label", "labels", "category", "class", "sentiment", "標籤", "類別", "分類", "情緒")
LOOKED = 100  # rows that tell the columns
SEPARATORS = re.compile(r"[|;；、,，]")  # of several labels in one text
SWITCHES = {"1": True, "true": True, "1.0": True, "0": False, "false": False, "0.0": False}
NO_LABEL = {"-", "－", "—"}  # how a text says that there is none


# ---- columns -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Columns:
    texts: tuple[str, ...]  # one, or two of a pair
    labels: tuple[str, ...]
    multi: bool
    written: bool = False  # a cell writes out a list: "['喜', '怒']"


def first_rows(files: Sequence[DataFile], named: str) -> list[dict]:
    """The first rows of the first file that has any."""
    problems = []
    for file in files:
        looked = list(islice(file.rows(), LOOKED))
        if rows := [row for _, row in looked if isinstance(row, dict)]:
            return rows
        problems += [f"{where(file.path, line)}：{_no_row(row)}" for line, row in looked]
    raise UserError([*abridged(problems), f"{named}：一列也沒有"])


def find_columns(rows: list[dict], text_column: str, label_column: str, multi: bool, named: str) -> Columns:
    there = list(dict.fromkeys(name for row in rows for name in row))
    labels = column_names(label_column)
    problems = _not_there(named, "--label_column", label_column, there)
    if both := {*column_names(text_column)} & {*labels}:
        problems.append(f"--text_column 與 --label_column 都是 {both.pop()}，要是不同的欄")
    if not labels:
        taken = column_names(text_column)
        likely = _among(LABELS, [name for name in there if name not in taken])
        labels = likely if len(likely) == 1 else ()
        if len(likely) > 1:
            problems.append(f"{named}：{'、'.join(likely)} 都像標籤欄，用 --label_column 選")
        elif not likely:
            problems.append(f"{named}：看不出哪一欄是標籤，有的是 {listed(there)}；用 --label_column 指出來")
    texts: tuple[str, ...] = ()
    try:
        texts = find_texts(there, text_column, named, labels)
    except UserError as error:
        problems = [*error.problems, *problems]
    if problems:
        raise UserError(problems)
    if not label_column and (names := names_beside(there, labels[0])):
        log(f"{named}：類別用 {names} 欄的名稱，不用 {labels[0]} 欄的編號")
        labels = (names,)
    cells = [row.get(labels[0]) for row in rows if not is_blank(row.get(labels[0]))]
    written = bool(cells) and all(isinstance(c, str) and isinstance(written_list(c), list) for c in cells)
    lists = any(isinstance(cell, list) for cell in cells)
    return Columns(texts, labels, multi or len(labels) > 1 or lists or written, written)


def find_texts(there: list[str], wanted: str, named: str, labels: Sequence[str] = ()) -> tuple[str, ...]:
    """The column of the texts, or the two of a pair: those that --text_column names, else the obvious ones.

    Args:
        there: the columns there are; `labels` are among them.
        named: flag and source, for messages.

    Raises:
        UserError: columns that are not there, or that cannot be told.
    """
    problems = _not_there(named, "--text_column", wanted, there)
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
        seen = "、".join(",".join(choice) for choice in choices)
        raise UserError(f"{named}：{seen} 都像文字欄，用 --text_column 選（兩欄一對的以逗號分開）")
    raise UserError(f"{named}：看不出哪一欄是文字，有的是 {listed(there)}；用 --text_column 指出來")


def column_names(column: str) -> tuple[str, ...]:
    """The names in a flag, by commas."""
    return tuple(name.strip() for name in re.split(r"[,，、]", column) if name.strip())


def _not_there(named: str, flag: str, column: str, there: list[str]) -> list[str]:
    problems = []
    for name in column_names(column):
        if name not in there:
            guess = nearest(name, there)
            hint = f"；是不是 {guess[0]}？" if guess else ""
            problems.append(f"{named} {flag} {name}：沒有這一欄，有的是 {listed(there)}{hint}")
    return problems


def _among(known: Iterable[str], there: list[str]) -> tuple[str, ...]:
    return tuple(name for name in there if name.strip().lower() in known)


def _likely_texts(there: list[str]) -> list[tuple[str, ...]]:
    named = {name.strip().lower(): name for name in there}
    pairs = [(named[a], named[b]) for a, b in PAIRS if a in named and b in named]
    paired = {name for pair in pairs for name in pair}
    found = pairs + [(name,) for name in _among(TEXTS, there) if name not in paired]
    halves = {half for pair in PAIRS for half in pair} - {*TITLES}  # text_a alone, as UER and CLUE have it
    return found or [(name,) for name in _among(halves, there) or _among(TITLES, there)]


# ---- rows --------------------------------------------------------------------------------------------------


class NoLabelError(ValueError):
    """A row without a label. `meant`: `-`, or -1 of a class label, which say so on purpose."""

    def __init__(self, reason: str, meant: bool = False):
        super().__init__(reason)
        self.meant = meant


def class_names(file: Path, column: str) -> tuple[str, ...]:
    """The names of a ClassLabel, or of a list of them, in a parquet or Arrow file that `datasets` wrote; else
    ().
    """
    if file.suffix.lower() not in (".parquet", ".arrow"):
        return ()
    features = features_of(file)
    return names_of_feature(features.get(column) if isinstance(features, dict) else None)


def _no_row(row: object) -> str:
    return str(row) if isinstance(row, Unreadable) else f"應該是一個物件，得到 {type(row).__name__}"


def parse_row(row: object, columns: Columns, classes: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """The texts and the names of the labels of a row; of a list as it is, see label_values.settle.

    Raises:
        ValueError: with the reason in Chinese; NoLabel where only the label is missing.
    """
    if not isinstance(row, dict):
        raise ValueError(_no_row(row))
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
    if all(is_blank(row.get(name)) for name in columns):
        raise NoLabelError(f"{'、'.join(columns)} 都是空的，沒有標籤")
    for name in columns:
        if str(row.get(name)).strip().lower() not in SWITCHES:
            raise ValueError(f"{name} 是 {shown(row.get(name))}，應為 0、1、true 或 false")
    return tuple(name for name in columns if SWITCHES[str(row[name]).strip().lower()])


def _label(column: str, value: object, classes: Sequence[str]) -> str:
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
