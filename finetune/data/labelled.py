"""Labelled texts (single-label, multi-label or sentence pairs): reading, checks and class weights."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from finetune.data.bad_rows import bad_rows_report, summarize_problems, where
from finetune.data.data_files import DataFile
from finetune.data.dataset_card import card_classes
from finetune.data.label_columns import (
    LabelColumns,
    NoLabelError,
    class_names,
    find_label_columns,
    first_rows,
    not_a_row,
    parse_row,
)
from finetune.data.label_values import interpret_labels, whitespace_notes
from finetune.data.question import normalised
from finetune.data.row_dataset import find_row_files
from finetune.runtime.console import log
from finetune.runtime.errors import UserError, listed
from finetune.runtime.strict_json import too_long

FEW = 50  # up to this many rows, every row may have a label of its own
SHOWN = 10  # classes listed in a message


@dataclass(frozen=True)
class Labelled:
    """A text, or a pair of texts, and its classes: ascending indices into the names of the dataset."""

    text: str
    pair: str = ""
    labels: tuple[int, ...] = ()
    id: str = ""

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the normalised texts, 16 hex digits.

        It does not depend on the width of letters, spaces or punctuation. A text of nothing else, such as
        `:-)`, counts as it stands.
        """
        texts = [normalised(text) or text.strip() for text in (self.text, self.pair)]
        return hashlib.sha256("\x1f".join(texts).encode("utf-8", "replace")).hexdigest()[:16]


@dataclass
class LabelledDataset:
    """Labelled texts by official split: "train", "validation", "test", or "" where there is none.

    Attributes:
        names: names of the classes, by index.
        multi: a text may have no label, or several.
        pair_column: "" for single texts.
        label_columns: several where each column says yes or no to one label.
        skipped: rows left out, each with the reason.
        unit: what a row is called in messages.
    """

    rows: dict[str, list[Labelled]]
    names: list[str]
    multi: bool
    origin: str
    text_column: str
    pair_column: str
    label_columns: tuple[str, ...]
    skipped: list[str] = field(default_factory=list)
    unit: ClassVar[str] = "列"

    def __len__(self) -> int:
        return sum(map(len, self.rows.values()))


@dataclass(frozen=True)
class LabelledOptions:
    """Columns and configuration of a labelled dataset to read.

    Attributes:
        text_column: "" finds it; two names, separated by a comma, are a sentence pair.
        label_column: "" finds it; several names, separated by commas, are yes/no columns, each one label.
        multi_label: the text of a label holds any number of labels, separated by | ; 、 or a comma. A list
            is always read this way.
        config_name: the sub-folder to read where several hold the same splits.
    """

    text_column: str = ""
    label_column: str = ""
    multi_label: bool = False
    config_name: str = ""


# ---- reading -----------------------------------------------------------------------------------------------


def read_labelled(
    source: str,
    revision: str | None = None,
    options: LabelledOptions | None = None,
    on_bad_rows: str = "fail",
    flag: str = "--dataset",
    learn: bool = True,
) -> LabelledDataset:
    """Read labelled texts from the hub, a folder (all files in it and below) or one file.

    A file is csv, tsv, json, jsonl or parquet. The names of files and folders give the splits: `train.csv`,
    `x_dev.csv`, `test/0000.parquet`.

    Args:
        revision: revision of a dataset on the hub; None is `main`.
        options: columns and configuration; None finds the columns.
        on_bad_rows: `fail` raises with every bad row; `skip` leaves them out and keeps their reasons.
        flag: the flag that named the source, for messages.
        learn: the rows are for training; False for a model that has its labels already and is only evaluated.

    Raises:
        UserError: nothing to read, ambiguous columns, bad rows, a label column that holds no classes, a
            single class, or labels in an evaluation split that the training rows do not have.
    """
    options = options or LabelledOptions()
    config_name = options.config_name
    folder, files, origin = find_row_files(source, revision, config_name, flag)
    named = f"{flag} {source}"
    columns = find_label_columns(
        first_rows(files, named), options.text_column, options.label_column, options.multi_label, named
    )
    reader = _Reader(columns, folder, config_name)
    for file in files:
        reader.read(file)
    reader.interpret(named, options.multi_label)
    problems = reader.drop_unlabelled()
    if problems and on_bad_rows == "fail":
        raise UserError(bad_rows_report(problems, sum(map(len, reader.drafts.values()))))
    if not any(reader.drafts.values()):
        hint = f"標籤欄 {'、'.join(columns.labels)}；--label_column 可指定別欄"
        raise UserError([*summarize_problems(problems), f"{named}：沒有一列有標籤（{hint}）"])
    dataset = reader.dataset(f"{origin} {config_name}".rstrip(), problems)
    if learn:
        _check(dataset, named, bool(reader.classes))
    return dataset


# ---- rows --------------------------------------------------------------------------------------------------


class _Reader:
    """Collects (texts, label names, id) of each row, before the set of classes is known."""

    def __init__(self, columns: LabelColumns, folder: Path, config: str = ""):
        self.columns, self.folder, self.config = columns, folder, config
        self.drafts: dict[str, list[tuple[list[str], tuple[str, ...], str]]] = {}
        self.unlabelled: dict[str, list[str]] = {}  # rows that should have a label
        self.declared_unlabelled: Counter[str] = Counter()  # rows that say on purpose that they have none
        self.problems: list[str] = []
        self.spaced: Counter[str] = Counter()  # labels that had white space around them
        self.multi = columns.multi
        self.classes: dict[str, None] = {}  # names that `datasets` gave, in their order

    def read(self, file: DataFile) -> None:
        """Add the rows of one file, and the reason of each row that cannot be used."""
        path, split, column = file.path, file.split, self.columns.labels[0]
        classes = class_names(path, column)
        card_names = () if classes else card_classes(self.folder, column, self.config)
        self.classes |= dict.fromkeys(classes or card_names)
        drafts, unlabelled = self.drafts.setdefault(split, []), self.unlabelled.setdefault(split, [])
        for line, row in file.rows():
            try:
                if not isinstance(row, dict):
                    raise ValueError(not_a_row(row))
                if card_names:  # a csv holds the numbers of the classes as text
                    row = {**row, column: _class_number(row.get(column))}
                texts, labels = parse_row(row, self.columns, classes or card_names)
                if reason := too_long(*texts):
                    raise ValueError(f"文字{reason}")
            except NoLabelError as error:
                self.declared_unlabelled[split] += error.meant
                unlabelled += [] if error.meant else [f"{where(path, line)}：{error}"]
            except ValueError as error:
                self.problems.append(f"{where(path, line)}：{error}")
            else:
                row_id = row.get("id", row.get("ID"))
                if not isinstance(row_id, (str, int)) or row_id == "":
                    row_id = f"{path.relative_to(self.folder)}:{line}"
                drafts.append((texts, labels, str(row_id)))
                cell = row.get(self.columns.labels[0])
                self.spaced.update(labels if isinstance(cell, str) and cell != cell.strip() else ())

    def interpret(self, named: str, multi_label: bool) -> None:
        """Interpret the labels of all rows together and log how they were read.

        Raises:
            UserError: the labels are no classes.
        """
        if len(self.columns.labels) > 1:
            return
        column, first = self.columns.labels[0], tuple(self.classes)
        try:
            labels = interpret_labels(self.drafts, self.columns.multi, column, first, multi_label)
        except UserError as error:
            raise UserError([f"{named}：{problem}" for problem in error.problems]) from error
        self.drafts, self.multi = labels.drafts, labels.multi
        self.declared_unlabelled += labels.without
        self.classes = dict.fromkeys(labels.first)
        for note in [*labels.notes, *whitespace_notes(self.spaced)]:
            log(f"{named}：{note}")

    def drop_unlabelled(self) -> list[str]:
        """Drop splits without any label, such as the test split of a competition.

        Returns:
            the problems of all bad rows.
        """
        problems = list(self.problems)
        for split, drafts in self.drafts.items():
            name, declared = split or "資料", self.declared_unlabelled[split]
            if any(labels for _, labels, _ in drafts):
                problems += self.unlabelled[split]
                if declared:
                    log(f"略過 {name} 的 {declared} 列：標籤是 -1 或 -，表示沒有標籤")
            elif count := len(drafts) + len(self.unlabelled[split]) + declared:
                log(f"略過 {name}：{count} 列都沒有標籤")
                self.drafts[split] = []
        return problems

    def dataset(self, origin: str, skipped: list[str]) -> LabelledDataset:
        """Return the dataset, its classes numbered."""
        columns = self.columns
        used = {name for drafts in self.drafts.values() for _, labels, _ in drafts for name in labels}
        first = columns.labels if len(columns.labels) > 1 else tuple(self.classes)
        names = [*first, *_sorted_names(used - {*first})]
        index = {name: place for place, name in enumerate(names)}
        rows = {
            split: [
                Labelled(texts[0], (*texts, "")[1], tuple(sorted(index[name] for name in labels)), row_id)
                for texts, labels, row_id in drafts
            ]
            for split, drafts in self.drafts.items()
            if drafts
        }
        text, pair = (*columns.texts, "")[:2]
        return LabelledDataset(rows, names, self.multi, origin, text, pair, columns.labels, skipped)


def _class_number(value: object) -> object:
    """Return the class number that a cell of a csv writes as text; any other value unchanged."""
    return int(value) if isinstance(value, str) and re.fullmatch(r"-?\d{1,6}", value.strip()) else value


def _sorted_names(names: Iterable[str]) -> list[str]:
    """Sort by number where all names are whole numbers, else as text, whatever the order of the rows."""
    names = sorted(names)
    whole = all(re.fullmatch(r"-?[0-9]{1,18}", name) for name in names)
    return sorted(names, key=int) if whole else names


def _check(dataset: LabelledDataset, named: str, are_classes: bool) -> None:
    """Check that the labels are classes, and that training covers every label that is evaluated.

    Raises:
        UserError: they are not, or it does not.
    """
    names, column, rows = dataset.names, dataset.label_columns[0], dataset.rows
    used = {split: {label for row in part for label in row.labels} for split, part in rows.items()}
    total: set[int] = set().union(*used.values())
    if not (dataset.multi or are_classes) and len(dataset) > FEW and len(total) > len(dataset) / 2:
        raise UserError(
            f"{named}：標籤欄 {column} 的 {len(dataset)} 列有 {len(total)} 種值，幾乎每列都不同，"
            "像是文字或分數，不是類別；用 --label_column 指出類別那一欄"
        )
    trained = used.get("train", set()) | used.get("", set()) or total
    if len(trained) < 2 and not dataset.multi:
        raise UserError(
            f"{named}：標籤欄 {column} 只有一種標籤（{names[trained.pop()]}），分不出類別；"
            "至少要兩種，或用 --label_column 指出別欄"
        )
    if len(names) < 2:
        raise UserError(
            f"{named}：標籤欄 {column} 只有一個標籤（{names[0] if names else '空的'}）；請把「有」"
            "與「沒有」寫成兩類（每列一個標籤），或用 --label_column 指出別欄"
        )
    problems = []
    for split, labels in used.items():
        if unseen := sorted(labels - trained):
            count = sum(not trained.issuperset(row.labels) for row in rows[split])
            problems.append(
                f"{named}：{split} 有 {count} 列的標籤是訓練資料裡沒有的："
                f"{listed([names[label] for label in unseen], 5)}；補上它們的訓練列，或從 {split} 拿掉"
            )
    if problems:
        raise UserError(problems)


# ---- weights -----------------------------------------------------------------------------------------------


def class_weights(rows: Sequence[Labelled], count: int, multi: bool = False) -> list[float]:
    """Return one weight for each class that makes rare classes count as much as common ones.

    Args:
        count: number of classes, K. Below, n is the number of rows and n_k that of class k.
        multi: a row may have any number of labels.

    Returns:
        n / (K n_k), scikit-learn's "balanced" (King and Zeng 2001), for torch's CrossEntropyLoss; for
        `multi`, (n - n_k) / n_k, rows without the label to rows with it: `pos_weight` of torch's
        BCEWithLogitsLoss.

    Raises:
        ValueError: a class has no row.
    """
    counts = Counter(label for row in rows for label in row.labels)
    if empty := [label for label in range(count) if not counts[label]]:
        raise ValueError(f"classes without a row: {empty}")
    n = len(rows)
    return [(n - counts[k]) / counts[k] if multi else n / (count * counts[k]) for k in range(count)]
