"""Card of a dataset: what its README.md, or the files of `datasets` beside it, say about the data.

A card names the classes of a label, and the files of each configuration and split (`configs`), as the hub
reads it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from finetune.runtime.console import log
from finetune.runtime.errors import listed

README = "README.md"


# ---- files -------------------------------------------------------------------------------------------------


def declared_files(folder: Path) -> dict[Path, tuple[str, str]]:
    """Return (configuration, split) of each file that README.md declares; {} where it declares none.

    `datasets` resolves the patterns; those that leave the folder are passed over, as is a declaration that
    it does not understand. A file of several configurations belongs to the one with the fewest files: `all`
    beside one for each subject holds none. The configuration `default` is "", and so is the split where a
    configuration names no splits.
    """
    configs = _read_readme(folder / README).get("configs")
    declared: dict[Path, tuple[str, str]] = {}
    sizes: dict[Path, int] = {}
    for config in configs if isinstance(configs, list) else []:
        if not isinstance(config, dict) or not config.get("data_files"):
            continue
        name = str(config.get("config_name", "default"))
        try:
            files = _resolve(folder, config["data_files"], str(config.get("data_dir") or ""))
        except (ValueError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            log(f"{folder / README} 的 configs 無法解析（{name}：{reason}），改照檔名分")
            return {}
        for file, split in files.items():
            if file not in sizes or len(files) < sizes[file]:
                declared[file] = ("" if name == "default" else name, split)
                sizes[file] = len(files)
    return declared


def _resolve(folder: Path, data_files: Any, data_dir: str) -> dict[Path, str]:
    """Return the split of each file of a configuration, "" where it names no splits.

    Raises:
        ValueError, TypeError: `data_files` is no declaration.
    """
    from datasets.data_files import DataFilesPatternsDict, sanitize_patterns

    home = os.path.abspath(folder)  # links stay: in the hub's cache each file is one
    names_splits = isinstance(data_files, dict) or isinstance(data_files[0], dict)
    files: dict[Path, str] = {}
    for split, paths in sanitize_patterns(data_files).items():
        inside = [path for path in paths if _is_inside(PurePosixPath(data_dir) / path)]
        if len(inside) < len(paths):
            outside = listed(path for path in paths if path not in inside)
            log(f"略過 {outside}：{folder / README} 指到資料夾外面")
        try:
            patterns = DataFilesPatternsDict.from_patterns({split: inside})
            found = patterns.resolve(os.path.join(home, data_dir))[split] if inside else []
        except FileNotFoundError:  # in a copy that is not complete
            continue
        for file in found:
            files.setdefault(folder / os.path.relpath(file, home), split * names_splits)
    return files


def _is_inside(path: PurePosixPath) -> bool:
    """Return whether a path is relative, and neither an address nor leads upwards."""
    return not path.is_absolute() and ".." not in path.parts and ":" not in str(path)


# ---- class names -------------------------------------------------------------------------------------------


def card_classes(folder: Path, column: str, config: str = "") -> tuple[str, ...]:
    """Return the names of a ClassLabel column from the description of a dataset; () without any.

    They are in dataset_infos.json, dataset_info.json or the README.md of its folder.
    """
    for features in _card_features(folder, config):
        if names := names_of_feature(features.get(column)):
            return names
    return ()


def names_of_feature(feature: object) -> tuple[str, ...]:
    """Return the names of a ClassLabel, or of a list of them, as `datasets` writes it in JSON; else ()."""
    if isinstance(feature, list):
        feature = feature[0] if feature else {}
    if isinstance(feature, dict):
        feature = feature.get("feature", feature)
    names = feature.get("names") if isinstance(feature, dict) else None
    if isinstance(names, dict):  # as in a card: {"0": "…", "1": "…"}
        try:
            names = [names[key] for key in sorted(names, key=int)]
        except ValueError:
            return ()
    return tuple(map(str, names)) if isinstance(names, list) else ()


def _card_features(folder: Path, config: str) -> Iterator[dict]:
    """Yield the features of each configuration, the one named `config` first."""
    candidates: list[tuple[str, object]] = []
    for name in ("dataset_infos.json", "dataset_info.json"):
        info_file = _read_json(folder / name)
        if isinstance(info_file, dict):
            if "features" in info_file:
                candidates.append(("", info_file["features"]))
            candidates += [
                (str(key), info.get("features")) for key, info in info_file.items() if isinstance(info, dict)
            ]
    infos = _read_readme(folder / README).get("dataset_info") or []
    for info in [infos] if isinstance(infos, dict) else infos if isinstance(infos, list) else []:
        if not isinstance(info, dict):
            continue
        entries = info.get("features")
        entries = entries if isinstance(entries, list) else []
        features = {
            column.get("name"): _card_column(column) for column in entries if isinstance(column, dict)
        }
        candidates.append((str(info.get("config_name", "")), features))
    for _, columns in sorted(candidates, key=lambda candidate: candidate[0] != config):
        if isinstance(columns, dict):
            yield columns


def _card_column(column: dict) -> object:
    """Return a column of a card's YAML in the form of dataset_infos.json."""
    dtype = column.get("dtype", column.get("sequence", column.get("list")))
    inside = dtype.get("class_label", dtype) if isinstance(dtype, dict) else {}
    return inside if isinstance(inside, dict) else {}


def _read_json(file: Path) -> object:
    """Return the content of a JSON file, None where it cannot be read or is too large."""
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.stat().st_size < 1 << 24 else None
    except (OSError, ValueError, RecursionError):
        return None


def _read_readme(file: Path) -> dict:
    """Return the YAML at the beginning of a README.md, {} where it has none."""
    import yaml

    try:
        with file.open(encoding="utf-8", errors="replace") as stream:
            text = stream.read(1 << 20)
        head = re.match(r"---\n(.*?)\n---", text.removeprefix("\ufeff").replace("\r\n", "\n"), re.DOTALL)
        content = yaml.safe_load(head[1]) if head else {}
    except (OSError, yaml.YAMLError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
