"""Labelled texts: one class, any number of labels, or two sentences and a class; read from files or the hub,
split without leaking, weighed."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path

from finetune.data.bad_rows import abridged, too_many, where
from finetune.data.columns import Columns, NoLabel, class_names, find_columns, first_rows, parse_row
from finetune.data.data_files import ORDER, DataFile, card_classes, nothing_in
from finetune.data.exam import Pools
from finetune.data.label_values import padded, settle
from finetune.data.question import draw, normalised
from finetune.runtime import hub
from finetune.runtime.console import nearest, say
from finetune.runtime.errors import UserError
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
        punctuation. A text of nothing else, as `:-)`, counts as it stands."""
        texts = [normalised(text) or text.strip() for text in (self.text, self.pair)]
        return hashlib.sha256("\x1f".join(texts).encode("utf-8", "replace")).hexdigest()[:16]


@dataclass
class Catalogue:
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
) -> Catalogue:
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
    folder, files, origin = hub.find_files(source, revision or "main", flag)
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
    found = _Found(columns, folder, config_name)
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
        say(f"略過 {_some(others)}：名稱看不出是 train、validation 或 test，或屬於別的設定")
    return sorted(kept, key=lambda file: ORDER.index(file.split))


# ---- rows --------------------------------------------------------------------------------------------------


class _Found:
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
            except NoLabel as error:
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
            say(f"{named}：{note}")

    def without_unlabelled(self) -> list[str]:
        """Drops splits that have no label at all, as a competition's test split. Returns all bad rows."""
        problems = list(self.problems)
        for split, drafts in self.drafts.items():
            named, meant = split or "資料", self.meant[split]
            if any(labels for _, labels, _ in drafts):
                problems += self.unlabelled[split]
                if meant:
                    say(f"略過 {named} 的 {meant} 列：標籤是 -1 或 -，表示沒有標籤")
            elif count := len(drafts) + len(self.unlabelled[split]) + meant:
                say(f"略過 {named}：{count} 列都沒有標籤")
                self.drafts[split] = []
        return problems

    def catalogue(self, origin: str, skipped: list[str]) -> Catalogue:
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
        return Catalogue(rows, names, self.multi, origin, text, pair, columns.labels, skipped)


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


def _check(catalogue: Catalogue, named: str, are_classes: bool) -> None:
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


def split_labelled(catalogue: Catalogue, ratio: tuple[float, float, float], seed: int) -> Pools:
    """Rows to fit on, to choose by, to keep back, and the official test rows, which are only ever scored.

    An official validation split is the one to choose by, and nothing is kept back; without one the rows to
    train on are dealt out by `ratio`, each class (each set of labels) in the same shares. Where there is an
    official test, what `ratio` would keep back is trained on. The same text never stands on both sides: that
    of the test split stays there, then that of the validation split.

    Raises:
        UserError: no row to train on.
    """
    test = catalogue.rows.get("test", [])
    seen = {row.fingerprint: row.labels for row in test}
    fresh: dict[str, list[Labelled]] = {split: [] for split in ORDER if split != "dev"}
    duplicates = contradictions = 0
    for split in ("validation", "train", ""):
        for row in catalogue.rows.get(split, []):
            if row.fingerprint in seen:
                duplicates += 1
                contradictions += seen[row.fingerprint] != row.labels
                continue
            seen[row.fingerprint] = row.labels
            fresh[split].append(row)
    rows = fresh["train"] + fresh[""]
    if not rows:
        only = "只有 validation 或 test，或全部與它們重複"
        raise UserError(f"可用來訓練的列是 0 列：{catalogue.origin} 裡{only}")
    if contradictions:
        say(f"⚠️ 有 {contradictions} 列的文字與別列相同、標籤卻不同：留下先讀到的（test、validation 優先）")
    rows.sort(key=lambda row: (row.labels, draw(seed, row.fingerprint)))
    if test and ratio[2] and not fresh["validation"]:  # rows kept back would only be lost to training
        say(f"  有正式測驗，不再從訓練資料裡保留一份：--split_ratio 的保留 {ratio[2]:g} 併入訓練")
        ratio = (ratio[0] + ratio[2], ratio[1], 0.0)
    parts = (rows, fresh["validation"], []) if fresh["validation"] else _dealt(rows, ratio)
    _warn_of_rare(catalogue.names, parts)
    return Pools(*parts, test=test, duplicates=duplicates)


def _dealt(rows: list[Labelled], ratio: tuple[float, float, float]) -> tuple[list, list, list]:
    """Rows, ordered by their labels, into three parts, each set of labels within one row of its shares. What
    is left of a set goes where the parts lag furthest behind; but to be learned from, where a label was not
    yet."""
    parts: tuple[list, list, list] = ([], [], [])
    taught: set[int] = set()
    count = 0
    for labels, group in groupby(rows, lambda row: row.labels):
        together = list(group)
        count += len(together)
        whole = [math.floor(share * len(together) + 1e-9) for share in ratio]
        lag = [share * count - len(part) - n for share, part, n in zip(ratio, parts, whole, strict=True)]
        if not whole[0] and not taught.issuperset(labels):
            lag[0] = math.inf
        places = sorted(range(3), key=lambda i: -lag[i])
        for place in places[: len(together) - sum(whole)]:
            whole[place] += 1
        taught |= {*labels} if whole[0] else set()
        start = 0
        for part, taken in zip(parts, whole, strict=True):
            part += together[start : start + taken]
            start += taken
    return parts


def _warn_of_rare(names: list[str], parts: Sequence[list[Labelled]]) -> None:
    for what, rows in zip(("訓練", "驗證"), parts, strict=False):
        there = {label for row in rows for label in row.labels}
        if rows and (lacking := [name for label, name in enumerate(names) if label not in there]):
            say(f"⚠️ {what}裡沒有這些類別：{_some(lacking)}（列數太少）")


# ---- telling -----------------------------------------------------------------------------------------------


def describe(catalogue: Catalogue, pools: Pools) -> None:
    """Prints what was read, how it was split, and how the classes are spread."""
    counts = "、".join(f"{split or '不分'} {len(rows)}" for split, rows in catalogue.rows.items())
    say(f"分類資料 {catalogue.origin}：{len(catalogue)} 列（{counts}），{len(catalogue.names)} 類")
    text = " 與 ".join(filter(None, (catalogue.text_column, catalogue.pair_column)))
    several = "（一列可有零到多個）" if catalogue.multi else ""
    say(f"  文字欄 {text}，標籤欄 {'、'.join(catalogue.label_columns)}{several}")
    if catalogue.skipped:
        say(f"  略過 {len(catalogue.skipped)} 列：")
        for problem in abridged(catalogue.skipped):
            say(f"    - {problem}")
    say(
        f"  訓練 {len(pools.fit)}、驗證 {len(pools.validation)}、保留 {len(pools.held_back)}、正式測驗 "
        f"{len(pools.test)} 列" + (f"；另有 {pools.duplicates} 列重複，未列入" if pools.duplicates else "")
    )
    spread = Counter(label for row in pools.fit for label in row.labels).most_common()
    listed = "、".join(f"{catalogue.names[label]} {count}" for label, count in spread[:SHOWN])
    more = f"…（共 {len(spread)} 類）" if len(spread) > SHOWN else ""
    unevenness = f"，最多是最少的 {spread[0][1] / spread[-1][1]:.1f} 倍" if spread else ""
    say(f"  訓練的類別：{listed}{more}{unevenness}")


def renumber(catalogue: Catalogue, pools: Pools, names: Sequence[str]) -> None:
    """The same classes in the order of `names`, a model's, which may hold more of them."""
    unused = len(names) - len(catalogue.names)
    more = f"；資料沒有用到其中 {unused} 個" if unused else ""
    say(f"  標籤照底模的順序：{_some(names)}{more}")
    place = [names.index(name) for name in catalogue.names]

    def followed(rows: list[Labelled]) -> list[Labelled]:
        return [replace(row, labels=tuple(sorted(place[label] for label in row.labels))) for row in rows]

    pools.fit, pools.validation = followed(pools.fit), followed(pools.validation)
    pools.held_back, pools.test = followed(pools.held_back), followed(pools.test)
    catalogue.names = list(names)


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
