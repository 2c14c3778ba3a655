"""Labelled texts: one class, any number of labels, or two sentences and a class; read from files or the hub,
split without leaking, weighed.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from finetune.data import hub_dataset
from finetune.data.bad_rows import abridged, too_many, where
from finetune.data.columns import Columns, NoLabelError, class_names, find_columns, first_rows, parse_row
from finetune.data.data_files import ORDER, DataFile, card_classes, nothing_in
from finetune.data.label_values import padded, settle
from finetune.data.question import normalised
from finetune.runtime.console import log
from finetune.runtime.errors import UserError, nearest
from finetune.runtime.strict_json import too_long

FEW = 50  # rows up to which every row may have a label of its own
SHOWN = 10  # classes that are listed


@dataclass(frozen=True)
class Labelled:
    """A text, or two, and the classes it is in: indices into the catalogue's names, ascending."""

    text: str
    pair: str = ""
    labels: tuple[int, ...] = ()
    id: str = ""

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the normalised texts: 16 hex digits, the same whatever the width of letters, the spaces and
        punctuation. A text of nothing else, as `:-)`, counts as it stands.
        """
        texts = [normalised(text) or text.strip() for text in (self.text, self.pair)]
        return hashlib.sha256("\x1f".join(texts).encode("utf-8", "replace")).hexdigest()[:16]


@dataclass
class LabelledDataset:
    """Labelled texts by official split ("train", "validation", "test"; "" where there is none).

    names: of the classes, by index. multi: a text may have no label, or several. pair_column: "" for single
    texts. label_columns: several where each is one label's yes or no. skipped: rows left out, and why.
    """

    rows: dict[str, list[Labelled]]
    names: list[str]
    multi: bool
    origin: str
    text_column: str
    pair_column: str
    label_columns: tuple[str, ...]
    skipped: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return sum(map(len, self.rows.values()))


# ---- reading -----------------------------------------------------------------------------------------------


def read_labelled(
    source: str,
    revision: str | None = None,
    text_column: str = "",
    label_column: str = "",
    multi_label: bool = False,
    config_name: str = "",
    on_bad_rows: str = "fail",
    flag: str = "--dataset",
    learn: bool = True,
) -> LabelledDataset:
    """Labelled texts from a hub name, a folder (all files in it and below) or one csv/tsv/json/jsonl/parquet
    file. The names of files and folders tell the splits: `train.csv`, `x_dev.csv`, `test/0000.parquet`.

    Args:
        revision: of the hub data set; None is `main`.
        text_column: "" finds it; two names, by a comma, are a pair of sentences.
        label_column: "" finds it; several names, by commas, are columns of yes and no, each a label.
        multi_label: the label's text holds any number of labels, separated by | ; 、 or a comma. A list is
            read so in any case.
        config_name: the sub-folder to be read where several hold the same splits.
        on_bad_rows: `fail` raises with every bad row; `skip` leaves them out and keeps their reasons.
        flag: what named the source, for messages.
        learn: they are to be learned from; else a model that knows its labels already is only examined.

    Raises:
        UserError: nothing there, columns that cannot be told, bad rows, labels that are none, a single class,
            labels to be scored on that training never saw.
    """
    folder, files, origin = hub_dataset.find_files(source, revision or "main", flag)
    named = f"{flag} {source}"
    if not files:
        raise UserError(nothing_in(folder, named))
    if Path(source).expanduser().is_dir() or not Path(source).expanduser().exists():
        files = _chosen(folder, files, config_name, named)
    elif config_name:
        raise UserError(f"--dataset_config_name {config_name}：{named} 是一個檔案，沒有設定可選")
    elif len(files) == 1:
        files = [replace(files[0], split="")]
    columns = find_columns(first_rows(files, named), text_column, label_column, multi_label, named)
    found = _Reader(columns, folder, config_name)
    for file in files:
        found.read(file)
    found.settle(named, multi_label)
    problems = found.without_unlabelled()
    if problems and on_bad_rows == "fail":
        raise UserError(too_many(problems, sum(map(len, found.drafts.values()))))
    if not any(found.drafts.values()):
        there = f"{named}：沒有一列有標籤（標籤欄 {'、'.join(columns.labels)}；--label_column 可指定別欄）"
        raise UserError([*abridged(problems), there])
    catalogue = found.catalogue(f"{origin} {config_name}".rstrip(), problems)
    if learn:
        _check(catalogue, named, bool(found.classes))
    return catalogue


def _chosen(folder: Path, files: list[DataFile], config_name: str, named: str) -> list[DataFile]:
    """The files of a folder that are to be read, each with its split, the rows to train on first."""
    files = [replace(file, split="validation" if file.split == "dev" else file.split) for file in files]
    if config_name:
        there = sorted({file.config for file in files} - {""})
        files = [file for file in files if file.config == config_name]
        if not files:
            guess = nearest(config_name, there)
            hint = f"是不是 {guess[0]}？" if guess else f"有的是 {'、'.join(there) or '（沒有子資料夾）'}"
            raise UserError(f"--dataset_config_name {config_name}：{named} 沒有這個設定，{hint}")
    kept = [file for file in files if file.split]
    if not kept:
        return files
    splits = {(file.config, file.split) for file in kept}
    if len(splits) > len({split for _, split in splits}):  # the same split twice
        if ("", "train") not in splits:
            configs = sorted({file.config for file in kept} - {""})
            raise UserError(
                f"{named}：有 {len(configs)} 個設定，各有自己的 train、test：{'、'.join(configs)}。"
                f"請指到其中一個資料夾（例如 {configs[0]}），訓練時也可用 --dataset_config_name 選"
            )
        kept = [file for file in kept if not file.config]
    if others := [str(file.path.relative_to(folder)) for file in files if file not in kept]:
        log(f"略過 {_some(others)}：名稱看不出是 train、validation 或 test，或屬於別的設定")
    return sorted(kept, key=lambda file: ORDER.index(file.split))


# ---- rows --------------------------------------------------------------------------------------------------


class _Reader:
    """What the files hold, before the classes are known: (texts, labels by name, id) of each row."""

    def __init__(self, columns: Columns, folder: Path, config: str = ""):
        self.columns, self.folder, self.config = columns, folder, config
        self.drafts: dict[str, list[tuple[list[str], tuple[str, ...], str]]] = {}
        self.unlabelled: dict[str, list[str]] = {}  # rows that should have a label
        self.meant: Counter[str] = Counter()  # rows that should have none
        self.problems: list[str] = []
        self.spaced: Counter[str] = Counter()  # labels that had white space around them
        self.multi = columns.multi
        self.classes: dict[str, None] = {}  # names that `datasets` gave, in their order

    def read(self, file: DataFile) -> None:
        path, split, column = file.path, file.split, self.columns.labels[0]
        classes = class_names(path, column)
        noted = () if classes else card_classes(self.folder, column, self.config)
        self.classes |= dict.fromkeys(classes or noted)
        drafts, unlabelled = self.drafts.setdefault(split, []), self.unlabelled.setdefault(split, [])
        for line, row in file.rows():
            try:
                if noted and isinstance(row, dict):
                    row = {**row, column: _number(row.get(column))}
                texts, labels = parse_row(row, self.columns, classes or noted)
                if reason := too_long(*texts):
                    raise ValueError(f"文字{reason}")
            except NoLabelError as error:
                self.meant[split] += error.meant
                unlabelled += [] if error.meant else [f"{where(path, line)}：{error}"]
            except ValueError as error:
                self.problems.append(f"{where(path, line)}：{error}")
            else:
                own, place = row.get("id", row.get("ID")), f"{path.relative_to(self.folder)}:{line}"
                named = isinstance(own, (str, int)) and own != ""
                drafts.append((texts, labels, str(own) if named else place))
                cell = row.get(self.columns.labels[0])
                self.spaced.update(labels if isinstance(cell, str) and cell != cell.strip() else ())

    def settle(self, named: str, asked: bool) -> None:
        """Reads the labels of all rows together, and says what was interpreted. Raises UserError."""
        if len(self.columns.labels) > 1:
            return
        column, first = self.columns.labels[0], tuple(self.classes)
        try:
            found = settle(self.drafts, self.columns.multi, column, first, asked)
        except UserError as error:
            raise UserError([f"{named}：{problem}" for problem in error.problems]) from error
        self.drafts, self.multi, self.meant = found.drafts, found.multi, self.meant + found.without
        self.classes = dict.fromkeys(found.first)
        for note in [*found.notes, *padded(self.spaced)]:
            log(f"{named}：{note}")

    def without_unlabelled(self) -> list[str]:
        """Drops splits that have no label at all, as a competition's test split. Returns all bad rows."""
        problems = list(self.problems)
        for split, drafts in self.drafts.items():
            named, meant = split or "資料", self.meant[split]
            if any(labels for _, labels, _ in drafts):
                problems += self.unlabelled[split]
                if meant:
                    log(f"略過 {named} 的 {meant} 列：標籤是 -1 或 -，表示沒有標籤")
            elif count := len(drafts) + len(self.unlabelled[split]) + meant:
                log(f"略過 {named}：{count} 列都沒有標籤")
                self.drafts[split] = []
        return problems

    def catalogue(self, origin: str, skipped: list[str]) -> LabelledDataset:
        columns = self.columns
        seen = {name for drafts in self.drafts.values() for _, labels, _ in drafts for name in labels}
        first = columns.labels if len(columns.labels) > 1 else tuple(self.classes)
        names = [*first, *_in_order(seen - {*first})]
        index = {name: place for place, name in enumerate(names)}
        rows = {
            split: [
                Labelled(*(*texts, "")[:2], labels=tuple(sorted(index[name] for name in labels)), id=row_id)
                for texts, labels, row_id in drafts
            ]
            for split, drafts in self.drafts.items()
            if drafts
        }
        text, pair = (*columns.texts, "")[:2]
        return LabelledDataset(rows, names, self.multi, origin, text, pair, columns.labels, skipped)


def _number(value: object) -> object:
    """A class of a csv as the whole number that it stands for."""
    return int(value) if isinstance(value, str) and re.fullmatch(r"-?\d{1,6}", value.strip()) else value


def _in_order(names: Iterable[str]) -> list[str]:
    """By number where all are whole numbers, else as text: whatever the order of the rows."""
    names = sorted(names)
    whole = all(re.fullmatch(r"-?[0-9]{1,18}", name) for name in names)
    return sorted(names, key=int) if whole else names


def _some(names: Sequence[str]) -> str:
    return "、".join(names[:5]) + (f" 等 {len(names)} 個" if len(names) > 5 else "")


def _check(catalogue: LabelledDataset, named: str, are_classes: bool) -> None:
    """Are these classes, and can what is scored be learned? Raises UserError."""
    names, column, rows = catalogue.names, catalogue.label_columns[0], catalogue.rows
    used = {split: {label for row in some for label in row.labels} for split, some in rows.items()}
    total = set().union(*used.values())
    if not (catalogue.multi or are_classes) and len(catalogue) > FEW and len(total) > len(catalogue) / 2:
        raise UserError(
            f"{named}：標籤欄 {column} 的 {len(catalogue)} 列有 {len(total)} 種值，幾乎每列都不同，"
            "像是文字或分數，不是類別；用 --label_column 指出類別那一欄"
        )
    taught = used.get("train", set()) | used.get("", set()) or total
    if len(taught) < 2 and not catalogue.multi:
        raise UserError(
            f"{named}：標籤欄 {column} 只有一種標籤（{names[taught.pop()]}），分不出類別；"
            "至少要兩種，或用 --label_column 指出別欄"
        )
    if len(names) < 2:
        raise UserError(
            f"{named}：標籤欄 {column} 只有一個標籤（{names[0] if names else '空的'}）；有沒有它請寫成兩類"
            "（每列一個標籤），或用 --label_column 指出別欄"
        )
    problems = []
    for split, seen in used.items():
        if strange := sorted(seen - taught):
            count = sum(not taught.issuperset(row.labels) for row in rows[split])
            problems.append(
                f"{named}：{split} 有 {count} 列的標籤是訓練資料裡沒有的："
                f"{_some([names[label] for label in strange])}；補上它們的訓練列，或從 {split} 拿掉"
            )
    if problems:
        raise UserError(problems)


# ---- splitting ---------------------------------------------------------------------------------------------


# ---- telling -----------------------------------------------------------------------------------------------


def class_weights(rows: Sequence[Labelled], count: int, multi: bool = False) -> list[float]:
    """One weight for each class that makes rare ones count as much as common ones.

    Args:
        count: classes, K. n rows, n_k of class k.
        multi: a row may have any number of labels.

    Returns:
        n / (K n_k), scikit-learn's "balanced" (King and Zeng 2001), for torch's CrossEntropyLoss; for
        `multi`, (n - n_k) / n_k, rows without the label to rows with it: `pos_weight` of torch's
        BCEWithLogitsLoss.

    Raises:
        ValueError: a class without a row has no weight.
    """
    found = Counter(label for row in rows for label in row.labels)
    if empty := [label for label in range(count) if not found[label]]:
        raise ValueError(f"classes without a row: {empty}")
    n = len(rows)
    return [(n - found[k]) / found[k] if multi else n / (count * found[k]) for k in range(count)]
