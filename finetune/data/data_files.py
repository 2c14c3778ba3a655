"""Which files of a folder are data, and which split, configuration and subject each holds.

Names tell, as on the hub: `train.csv`, `physics_dev.csv` (TMMLU+, C-Eval), `test/physics.csv` (CMMLU),
`data/train-00000-of-00002.parquet`, `config/validation-00000-of-00001.parquet`, and the folders that
`save_to_disk` writes. A file may hold several splits itself: {"train": […], "test": […]}, or a sheet each.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from finetune.data.bad_rows import Rows
from finetune.data.excel import sheets_of
from finetune.data.json_files import parts_of
from finetune.data.tables import read_table
from finetune.runtime.console import log
from finetune.runtime.file_types import READABLE, SUFFIXES, WAYS_OUT, is_readable, suffix_of

SPLITS = {
    "train": "train", "training": "train", "訓練": "train", "训练": "train", "dev": "dev",
    "val": "validation", "valid": "validation", "validation": "validation", "驗證": "validation",
    "验证": "validation", "test": "test", "testing": "test", "測試": "test", "测试": "test",
}  # fmt: skip
ORDER = ("train", "", "dev", "validation", "test")
# What programs write beside the rows, this one among them.
ABOUT = {
    "dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json", "config.json",
    "tokenizer.json", "tokenizer_config.json", "generation_config.json", "run_card.json", "results.json",
    "all_results.json", "predictions.jsonl", "train_log.jsonl", "test_qa_data.json", "manifest.json",
    "package.json",
}  # fmt: skip
TELLING = {"readme", "license", "licence", "notice", "requirements", "vocab", "changelog"}  # .txt about them
CACHES = re.compile(r"(cache|indices)[-.\w]*\.arrow")
NO_SUBJECT = re.compile(
    r"(data|part|shard|chunk|file|questions?|exam|rows|default|all)?([-_.]?\d+)*(-of-\d+)?"
)
SHARD = re.compile(r"[-_.]\d+(-of-\d+)?$")


@dataclass(frozen=True)
class DataFile:
    """A file of rows, or a part of one.

    split: train, dev, validation, test, "" where nothing tells. config: the folders above that are no split.
    subject: what the file's name says beside the split. part: the list or sheet in the file, "" for all.
    """

    path: Path
    split: str = ""
    config: str = ""
    subject: str = ""
    part: str = ""

    def rows(self, required: Sequence[Sequence[str]] = ()) -> Rows:
        return read_table(self.path, required, self.part)


def split_of(name: str) -> str:
    """Whole words count: `train-00000-of-00001` and `test_matched` are splits, `contest` is none. Of several
    the last word of the name counts, or none does.
    """
    words = re.split(r"[\W_\d]+", name.lower())
    found = {SPLITS[word] for word in words if word in SPLITS}
    last = SPLITS.get(next((word for word in reversed(words) if word), ""), "")
    return found.pop() if len(found) == 1 else last


def stem_of(file: Path) -> str:
    """`x` of x.csv and of x.csv.gz."""
    suffix = suffix_of(file)
    name = file.name
    at = name.lower().rfind(suffix) if suffix else -1
    return name[:at] if at > 0 else file.stem


def data_file(file: Path) -> list[DataFile]:
    """A file that was named itself: its parts, if it has any; else as its name says."""
    stem = stem_of(file)
    subject, _, tail = stem.rpartition("_")
    split = SPLITS.get(tail.lower(), "")
    if not file.is_file():  # a pipe would be waited for
        return [DataFile(file)]
    return _parts(DataFile(file, split, "", subject if split else ""))


def data_files(folder: Path, with_texts: bool = False) -> list[DataFile]:
    """Those of a folder and of the folders below it. A .txt counts where asked for, or where there is no
    table.
    """
    below = [file for file in files_below(folder) if not _is_about(file)]
    found = [file for file in below if is_readable(file)]
    if with_texts or not found:
        found += [file for file in below if suffix_of(file) == ".txt"]
    return [part for file in _once_each(found) for part in _parts(_placed(folder, file))]


def without_test(files: list[DataFile]) -> list[DataFile]:
    """The files to train on, where a folder also has a test part."""
    if not any(file.split == "train" for file in files):
        return files
    if left := [file.path.name for file in files if file.split == "test"]:
        log(f"略過 {'、'.join(left[:5])}：是 test 的部分，不拿來訓練")
    return [file for file in files if file.split != "test"]


def files_below(folder: Path) -> Iterator[Path]:
    """Every file in a folder and below it that is not hidden, in order."""
    for file in sorted(folder.rglob("*")):
        parts = file.relative_to(folder).parts
        if not any(part.startswith((".", "__MACOSX")) for part in parts) and file.is_file():
            yield file


def _is_about(file: Path) -> bool:
    return (
        file.name in ABOUT
        or bool(CACHES.fullmatch(file.name))
        or (suffix_of(file) == ".txt" and file.stem.lower() in TELLING)
    )


def _once_each(files: list[Path]) -> list[Path]:
    """Without the second of two files that hold the same rows in two formats: x.csv beside x.xlsx."""
    order = [*SUFFIXES, *READABLE]
    kept: dict[tuple[Path, str], Path] = {}
    for file in sorted(files, key=lambda file: [*order, suffix_of(file)].index(suffix_of(file))):
        first = kept.setdefault((file.parent, stem_of(file) if is_readable(file) else file.name), file)
        if first != file:
            log(f"略過 {file}：{first.name} 是同名的另一種格式")
    return sorted(kept.values())


def _placed(folder: Path, file: Path) -> DataFile:
    """Of a path in the folder: `sst2/x_dev.csv` -> dev of sst2, subject x; `data/train/0.json` -> train."""
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
    """The splits that a file itself holds."""
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


def nothing_in(folder: Path, named: str, *more: str) -> str:
    """Why a folder holds no data: what is there instead, and what to do with it.

    Args:
        named: flag and source.
        more: suffixes that would do too.
    """
    kinds = "、".join((*READABLE, *more))
    there = list(files_below(folder))
    for file in there:
        if way := WAYS_OUT.get(file.suffix.lower()):
            return f"{named}：裡面沒有 {kinds} 檔，有 {file.name}：{way}"
    seen = "、".join(file.name for file in there[:5])
    more = " 等" if len(there) > 5 else ""
    return f"{named}：裡面沒有 {kinds} 檔" + (f"，有的是 {seen}{more}" if seen else "（空的資料夾）")


# ---- what the card of a data set says of its classes -------------------------------------------------------


def card_classes(folder: Path, column: str, config: str = "") -> tuple[str, ...]:
    """The names of a ClassLabel column by dataset_infos.json, dataset_info.json or the README.md of a data
    set's folder; () where they say nothing.
    """
    for features in _noted_features(folder, config):
        if names := names_of_feature(features.get(column)):
            return names
    return ()


def names_of_feature(feature: object) -> tuple[str, ...]:
    """Of a ClassLabel, or of a list of them, as `datasets` notes it in JSON; else ()."""
    if isinstance(feature, list):
        feature = feature[0] if feature else {}
    if isinstance(feature, dict):
        feature = feature.get("feature", feature)
    names = feature.get("names") if isinstance(feature, dict) else None
    if isinstance(names, dict):  # of a card: {"0": "…", "1": "…"}
        try:
            names = [names[key] for key in sorted(names, key=int)]
        except ValueError:
            return ()
    return tuple(map(str, names)) if isinstance(names, list) else ()


def _noted_features(folder: Path, config: str) -> Iterator[dict]:
    """The features of each configuration, that of this name first."""
    notes: list[tuple[str, object]] = []
    for name in ("dataset_infos.json", "dataset_info.json"):
        noted = _read_json(folder / name)
        if isinstance(noted, dict):
            if "features" in noted:
                notes.append(("", noted["features"]))
            notes += [(str(key), one.get("features")) for key, one in noted.items() if isinstance(one, dict)]
    infos = _card(folder / "README.md").get("dataset_info") or []
    for info in [infos] if isinstance(infos, dict) else infos if isinstance(infos, list) else []:
        if not isinstance(info, dict):
            continue
        listed = info.get("features")
        columns = listed if isinstance(listed, list) else []
        features = {one.get("name"): _of_card(one) for one in columns if isinstance(one, dict)}
        notes.append((str(info.get("config_name", "")), features))
    for _, features in sorted(notes, key=lambda note: note[0] != config):
        if isinstance(features, dict):
            yield features


def _of_card(column: dict) -> object:
    """A column of a card's YAML in the form of dataset_infos.json."""
    dtype = column.get("dtype", column.get("sequence", column.get("list")))
    inside = dtype.get("class_label", dtype) if isinstance(dtype, dict) else {}
    return inside if isinstance(inside, dict) else {}


def _read_json(file: Path) -> object:
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.stat().st_size < 1 << 24 else None
    except (OSError, ValueError, RecursionError):
        return None


def _card(file: Path) -> dict:
    """The YAML at the beginning of a README.md."""
    import yaml

    try:
        with file.open(encoding="utf-8", errors="replace") as stream:
            text = stream.read(1 << 20)
        head = re.match(r"---\n(.*?)\n---", text.removeprefix("\ufeff").replace("\r\n", "\n"), re.DOTALL)
        found = yaml.safe_load(head[1]) if head else {}
    except (OSError, yaml.YAMLError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
