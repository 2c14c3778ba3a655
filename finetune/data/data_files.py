"""Data files of a folder, with the split, configuration and subject that each holds.

Names decide, as on the hub: `train.csv`, `physics_dev.csv` (TMMLU+, C-Eval), `test/physics.csv` (CMMLU),
`data/train-00000-of-00002.parquet`, `config/validation-00000-of-00001.parquet`, and the folders that
`save_to_disk` writes. A file may hold several splits itself: {"train": […], "test": […]}, or a sheet each.
Where the README.md of the folder declares its files (`configs`), that decides.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from finetune.data.bad_rows import Rows
from finetune.data.dataset_card import README, declared_files
from finetune.data.excel import sheets_of
from finetune.data.json_files import parts_of
from finetune.data.tables import read_table
from finetune.runtime.console import log
from finetune.runtime.errors import listed
from finetune.runtime.file_types import CONVERSION_HINTS, READABLE, SUFFIXES, is_readable, suffix_of

SPLITS = {
    "train": "train", "training": "train", "訓練": "train", "训练": "train", "dev": "dev",
    "val": "validation", "valid": "validation", "validation": "validation", "驗證": "validation",
    "验证": "validation", "test": "test", "testing": "test", "測試": "test", "测试": "test",
}  # fmt: skip
ORDER = ("train", "", "dev", "validation", "test")
# Files that programs, this one among them, write beside the rows.
ABOUT = {
    "dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json", "config.json",
    "tokenizer.json", "tokenizer_config.json", "generation_config.json", "run_card.json", "results.json",
    "all_results.json", "predictions.jsonl", "train_log.jsonl", "test_qa_data.json", "manifest.json",
    "package.json",
}  # fmt: skip
# .txt files about the data
DOCUMENTS = {"readme", "license", "licence", "notice", "requirements", "vocab", "changelog"}
CACHES = re.compile(r"(cache|indices)[-.\w]*\.arrow")
NO_SUBJECT = re.compile(
    r"(data|part|shard|chunk|file|questions?|exam|rows|default|all)?([-_.]?\d+)*(-of-\d+)?"
)
SHARD = re.compile(r"[-_.]\d+(-of-\d+)?$")


@dataclass(frozen=True)
class DataFile:
    """A file of rows, or a part of one.

    Attributes:
        split: train, dev, validation, test, or "" where nothing says.
        config: the folders above it that are no split.
        subject: the part of the file name beside the split.
        part: the list or sheet in the file, "" for all.
    """

    path: Path
    split: str = ""
    config: str = ""
    subject: str = ""
    part: str = ""

    def rows(self, required: Sequence[Sequence[str]] = (), nested: bool = False) -> Rows:
        """Read the rows; see `tables.read_table`."""
        return read_table(self.path, required, self.part, nested)


def split_of(name: str) -> str:
    """Return the split that a name holds, "" for none.

    Whole words count: `train-00000-of-00001` and `test_matched` are splits, `contest` is none. Of several
    splits the last word of the name counts, or none does.
    """
    words = re.split(r"[\W_\d]+", name.lower())
    splits = {SPLITS[word] for word in words if word in SPLITS}
    last = SPLITS.get(next((word for word in reversed(words) if word), ""), "")
    return splits.pop() if len(splits) == 1 else last


def stem_of(file: Path) -> str:
    """Return the name without suffixes: `x` of x.csv and of x.csv.gz."""
    suffix = suffix_of(file)
    name = file.name
    at = name.lower().rfind(suffix) if suffix else -1
    return name[:at] if at > 0 else file.stem


def data_file(file: Path) -> list[DataFile]:
    """Return a file given by its own name: its parts, if it has any, else the file with its name's split."""
    stem = stem_of(file)
    subject, _, tail = stem.rpartition("_")
    split = SPLITS.get(tail.lower(), "")
    if not file.is_file():  # a pipe would be waited for
        return [DataFile(file)]
    return _parts(DataFile(file, split, "", subject if split else ""))


def data_files(folder: Path, with_texts: bool = False, extra: tuple[str, ...] = ()) -> list[DataFile]:
    """Return the data files of a folder and of the folders below it.

    A .txt counts with `with_texts`, or where there is no table.

    Args:
        extra: suffixes of other files that count.
    """
    below = [file for file in files_below(folder) if not _is_about(file)]
    files = [file for file in below if is_readable(file, *extra)]
    if with_texts or not files:
        files += [file for file in below if suffix_of(file) == ".txt"]
    chosen = _as_declared(folder, files)
    chosen = chosen or [_from_path(folder, file) for file in _drop_other_formats(files)]
    return [part for file in chosen for part in _parts(file)]


def _as_declared(folder: Path, files: list[Path]) -> list[DataFile]:
    """Return the files that README.md declares, with their configurations and splits; [] without any.

    Configurations are subjects where there are several. A split of another name than SPLITS holds is "".
    """
    declared = declared_files(folder)
    several = len({config for config, _ in declared.values()}) > 1
    kept = []
    for file in (_from_path(folder, path) for path in files if path in declared):
        config, split = declared[file.path]
        kept.append(
            replace(
                file,
                config=config,
                split=split_of(split) if split else file.split,
                subject=config if several else file.subject,
            )
        )
    if kept and (left := [str(path.relative_to(folder)) for path in files if path not in declared]):
        log(f"略過 {listed(left, 5)}：{folder / README} 的 configs 沒有列出")
    return kept


def without_test(files: list[DataFile]) -> list[DataFile]:
    """Return the files to train on: those without the test split where a folder has a training split."""
    if not any(file.split == "train" for file in files):
        return files
    if left := [file.path.name for file in files if file.split == "test"]:
        log(f"略過 {'、'.join(left[:5])}：是 test 的部分，不拿來訓練")
    return [file for file in files if file.split != "test"]


def files_below(folder: Path) -> Iterator[Path]:
    """Yield every file in a folder and below it that is not hidden, in order."""
    for file in sorted(folder.rglob("*")):
        parts = file.relative_to(folder).parts
        if not any(part.startswith((".", "__MACOSX")) for part in parts) and file.is_file():
            yield file


def _is_about(file: Path) -> bool:
    """Return whether a file describes the data, or is a cache of them."""
    return (
        file.name in ABOUT
        or bool(CACHES.fullmatch(file.name))
        or (suffix_of(file) == ".txt" and file.stem.lower() in DOCUMENTS)
    )


def _drop_other_formats(files: list[Path]) -> list[Path]:
    """Drop the second of two files with the same rows in two formats: x.csv beside x.xlsx."""
    order = [*SUFFIXES, *READABLE]
    kept: dict[tuple[Path, str], Path] = {}
    for file in sorted(files, key=lambda file: [*order, suffix_of(file)].index(suffix_of(file))):
        first = kept.setdefault((file.parent, stem_of(file) if is_readable(file) else file.name), file)
        if first != file:
            log(f"略過 {file}：{first.name} 是同名的另一種格式")
    return sorted(kept.values())


def _from_path(folder: Path, file: Path) -> DataFile:
    """Return split, configuration and subject by the path in the folder.

    `sst2/x_dev.csv` is dev of sst2, subject x; `data/train/0.json` is train.
    """
    stem, parents = stem_of(file), list(file.relative_to(folder).parts[:-1])
    split = split_of(stem)
    subject = ""
    if split:
        bare = SHARD.sub("", stem)
        head, _, tail = bare.rpartition("_")
        subject = head if tail.lower() in SPLITS else ""
    elif not NO_SUBJECT.fullmatch(stem.lower()):
        subject = stem
    for place in reversed(range(len(parents))):
        of_folder = split_of(parents[place])
        if of_folder and (not split or of_folder == split):
            split = of_folder
            del parents[place]
    config = "/".join(part for part in parents if part.lower() not in ("data", "default"))
    return DataFile(file, split, config, subject)


def _parts(file: DataFile) -> list[DataFile]:
    """Return the splits within a file as parts of it, or the file."""
    suffix = suffix_of(file.path)
    names: list[str] = []
    if suffix in (".json", ".jsonl"):
        names = parts_of(file.path)
    elif suffix == ".xlsx":
        names = sheets_of(file.path)
    splits = [split_of(name) for name in names]
    if not names or not all(splits) or len({*splits}) < len(splits):
        return [file]
    return [replace(file, split=split, part=name) for split, name in zip(splits, names, strict=True)]


def no_data_message(folder: Path, named: str, *other_suffixes: str) -> str:
    """Return the message for a folder without data: what it holds instead, and what to do with it.

    Args:
        named: flag and source.
        other_suffixes: suffixes that would do too.
    """
    expected = "、".join((*READABLE, *other_suffixes))
    files = list(files_below(folder))
    for file in files:
        if way := CONVERSION_HINTS.get(file.suffix.lower()):
            return f"{named}：裡面沒有 {expected} 檔，有 {file.name}：{way}"
    names = "、".join(file.name for file in files[:5])
    more = " 等" if len(files) > 5 else ""
    return f"{named}：裡面沒有 {expected} 檔" + (f"，有的是 {names}{more}" if names else "（空的資料夾）")
