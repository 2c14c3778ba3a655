"""Manifest of a finished folder: `manifest.json`, with size and SHA-256 of every file, written last.

A folder without one was never finished. One flipped byte anywhere in the folder is found, in the manifest
too: it is compared with its canonical text, which holds a hash of itself. It is no signature: it detects
damage, not who wrote the folder.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from finetune.runtime.files import atomic_open, flush_folder, flush_tree, give_usual_modes
from finetune.runtime.strict_json import dumps
from finetune.runtime.user_files import is_user_file

FILE = "manifest.json"
FORMAT = 1
LARGEST = 1 << 24  # bytes of a manifest
BLOCK = 1 << 20  # bytes read at a time
NOT_OURS = {"Thumbs.db", "desktop.ini"}  # written by file managers; hidden files are skipped too


def write_manifest(folder: Path) -> None:
    """Write the manifest of a finished folder, after all other files are on the disk.

    Raises:
        OSError: the disk did not take it.
    """
    give_usual_modes(folder)
    flush_tree(folder)
    files = {name: {"size": path.stat().st_size, "sha256": _hash(path)} for name, path in _files(folder)}
    with atomic_open(folder / FILE) as stream:
        stream.write(_text(files))
    flush_folder(folder)


def verify(folder: str | Path) -> list[str]:
    """List the files of a folder that do not match its manifest; [] when all do. Reads every byte."""
    folder = Path(folder)
    try:
        return _problems(folder)
    except OSError as error:
        return [f"{error.filename or folder} 讀不到（{error.strerror or error}）"]


def _problems(folder: Path) -> list[str]:
    path = folder / FILE
    if not os.path.lexists(path):
        return [f"沒有 {FILE}：沒有寫完，或不是這支程式寫的"]
    if path.is_symlink() or not path.is_file():
        return [f"{FILE} 不是一般檔案"]
    if path.stat().st_size > LARGEST:
        return [f"{FILE} 太大，不是這支程式寫的"]
    raw = path.read_bytes()
    files = _read(raw)
    if files is None or raw != _text(files).encode():
        return [f"{FILE} 壞了"]
    paths = dict(_files(folder))
    problems = [f"多了 {name}" for name in paths if name not in files]
    for name, entry in files.items():
        if name not in paths:
            problems.append(f"少了 {name}")
        elif (size := paths[name].stat().st_size) != entry["size"]:
            problems.append(f"{name} 是 {size:,} 個位元組，應為 {entry['size']:,}")
        elif _hash(paths[name]) != entry["sha256"]:
            problems.append(f"{name} 的內容變了（SHA-256 不符）")
    return problems


def _read(raw: bytes) -> dict[str, dict] | None:
    """Return the files that a manifest names, None when it is invalid.

    The names are only compared, never opened.
    """
    try:
        files = json.loads(raw)["files"]
        valid = all(
            isinstance(name, str) and type(entry["size"]) is int and isinstance(entry["sha256"], str)
            for name, entry in files.items()
        )
        "".join(files).encode()  # raises on a lone surrogate, which no file name holds
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return files if valid else None


def _text(files: dict[str, dict]) -> str:
    content = {"format": FORMAT, "files": {name: files[name] for name in sorted(files)}}
    digest = hashlib.sha256(dumps(content).encode()).hexdigest()
    return dumps({**content, "sha256": digest}, indent=1) + "\n"


def _files(folder: Path) -> list[tuple[str, Path]]:
    """List (name with /, path) of every file below a folder except the manifest.

    Files that the user put into a model folder are not part of it.

    Raises:
        OSError: a link, or something else that is not a regular file.
    """
    files = []
    is_model = (folder / "run_card.json").is_file()
    for parent, folders, names in os.walk(folder, onerror=_raise):
        if is_model and Path(parent) == folder:
            folders[:] = [name for name in folders if not is_user_file(name)]
            names = [name for name in names if not is_user_file(name)]
        for name in [*names, *folders]:
            path = Path(parent) / name
            if name.startswith(".") or name in NOT_OURS or (name == FILE and Path(parent) == folder):
                continue
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise OSError(0, "不是一般檔案", str(path))
            if path.is_file():
                files.append((path.relative_to(folder).as_posix(), path))
    return sorted(files)


def _raise(error: OSError) -> None:
    raise error


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
