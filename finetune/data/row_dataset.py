"""Datasets of rows by official split, for the tasks tag, span and seq2seq: which files, and their rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from finetune.data import hub_dataset
from finetune.data.bad_rows import Unreadable, bad_rows_report, where
from finetune.data.data_files import ORDER, DataFile, no_data_message
from finetune.runtime.console import log
from finetune.runtime.errors import UserError, listed, nearest


class DatasetRow(Protocol):
    """A row of a dataset.

    Attributes:
        id: for messages and reports.
        fingerprint: hash of what the model reads; two rows with the same are the same.
        group: rows of one group stay in one split, such as questions about one article; "" for none.
    """

    @property
    def id(self) -> str:
        """Name for messages and reports."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hash of what the model reads."""
        ...

    @property
    def group(self) -> str:
        """Name of the group that is not divided; "" for none."""
        ...


Row = TypeVar("Row", bound=DatasetRow)


@dataclass
class RowDataset(Generic[Row]):
    """Rows by official split: "train", "validation", "test", or "" where there is none.

    Attributes:
        unit: what a row is called in messages: 句, 題, 列.
        skipped: rows left out, each with the reason.
        remarks: how rows were read, with the number of rows each remark holds for.
    """

    rows: dict[str, list[Row]]
    origin: str
    unit: str = "列"
    skipped: list[str] = field(default_factory=list)
    remarks: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        return sum(map(len, self.rows.values()))


def find_row_files(
    source: str, revision: str | None, config_name: str, flag: str, extra: tuple[str, ...] = ()
) -> tuple[Path, list[DataFile], str]:
    """Return the folder, the files to read, training splits first, and the origin in words.

    Args:
        extra: suffixes of files of the task's own, beside those of tables.

    Raises:
        UserError: nothing to read, several configurations, or not the one that is named.
    """
    folder, files, origin = hub_dataset.find_files(source, revision or "main", flag, extra=extra)
    named = f"{flag} {source}"
    if not files:
        raise UserError(no_data_message(folder, named, *extra))
    if Path(source).expanduser().is_dir() or not Path(source).expanduser().exists():
        files = choose_files(folder, files, config_name, named)
    elif config_name:
        raise UserError(f"--dataset_config_name {config_name}：{named} 是一個檔案，沒有設定可選")
    elif len(files) == 1:
        files = [replace(files[0], split="")]
    return folder, files, origin


def rows_of(
    files: list[DataFile],
    folder: Path,
    problems: list[str],
    parse: Callable[[Any, str], Iterable[Row | Unreadable]],
    nested: bool = False,
) -> dict[str, list[Row]]:
    """Return the rows of files by split; the reason of each row that cannot be used goes to `problems`.

    Args:
        parse: (row of the file, its id) -> rows, and the reasons of those that cannot be used; raises
            ValueError with the reason, in Chinese, where that is the whole row.
        nested: see `json_files.read_json`.
    """
    found: dict[str, list[Row]] = {}
    for file in files:
        rows = found.setdefault(file.split, [])
        for line, row in file.rows(nested=nested):
            name = row.get("id", row.get("ID")) if isinstance(row, dict) else None
            if not isinstance(name, (str, int)) or name == "":
                name = f"{file.path.relative_to(folder)}:{line}"
            try:
                if isinstance(row, Unreadable):
                    raise ValueError(row)
                for parsed in parse(row, str(name)):
                    if isinstance(parsed, Unreadable):
                        problems.append(f"{where(file.path, line)}：{parsed}")
                    else:
                        rows.append(parsed)
            except ValueError as error:
                problems.append(f"{where(file.path, line)}：{error}")
    return found


def check_rows(dataset: RowDataset, on_bad_rows: str, named: str) -> None:
    """Refuse a dataset with bad rows, unless they are to be skipped, or without any row.

    Raises:
        UserError: with every bad row.
    """
    if dataset.skipped and on_bad_rows == "fail":
        raise UserError(bad_rows_report(dataset.skipped, len(dataset) + len(dataset.skipped)))
    if not len(dataset):
        raise UserError([*dataset.skipped[:3], f"{named}：沒有一{dataset.unit}可用"])


def choose_files(folder: Path, files: list[DataFile], config_name: str, named: str) -> list[DataFile]:
    """Return the files of a folder to read, each with its split, training rows first."""
    files = [replace(file, split="validation" if file.split == "dev" else file.split) for file in files]
    if config_name:
        configs = sorted({file.config for file in files} - {""})
        files = [file for file in files if file.config == config_name]
        if not files:
            guess = nearest(config_name, configs)
            hint = f"是不是 {guess[0]}？" if guess else f"有的是 {'、'.join(configs) or '（沒有子資料夾）'}"
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
        log(f"略過 {listed(others, 5)}：名稱看不出是 train、validation 或 test，或屬於別的設定")
    return sorted(kept, key=lambda file: ORDER.index(file.split))
