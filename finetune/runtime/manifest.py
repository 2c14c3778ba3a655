"""What a finished folder holds: `manifest.json`, with size and SHA-256 of every file, written last.

A folder without one was never finished. One flipped byte anywhere in the folder, the manifest's own included,
is found: the manifest is compared with the only text that would say the same, and that has a hash of itself.
It is no signature: it finds what broke, not who wrote it.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from finetune.runtime.files import atomic_open, flush_folder, flush_tree, give_usual_modes
from finetune.runtime.own_files import is_own
from finetune.runtime.strict_json import dumps

FILE = "manifest.json"
FORMAT = 1
LARGEST = 1 << 24  # bytes of a manifest
BLOCK = 1 << 20  # bytes read at a time
NOT_OURS = {"Thumbs.db", "desktop.ini"}  # what file managers leave; hidden files are passed over too


def write_manifest(folder: Path) -> None:
    """Writes the manifest of a finished folder, after all else is on the disk.

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
    """What is wrong with a folder, file by file; [] when it is as it was sealed. Reads every byte."""
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
    there = dict(_files(folder))
    found = [f"多了 {name}" for name in there if name not in files]
    for name, told in files.items():
        if name not in there:
            found.append(f"少了 {name}")
        elif (size := there[name].stat().st_size) != told["size"]:
            found.append(f"{name} 是 {size:,} 個位元組，應為 {told['size']:,}")
        elif _hash(there[name]) != told["sha256"]:
            found.append(f"{name} 的內容變了（SHA-256 不符）")
    return found


def _read(raw: bytes) -> dict[str, dict] | None:
    """The files that a manifest names; None when it is none. Names are only compared, never opened."""
    try:
        card = json.loads(raw)
        files = card["files"]
        fine = all(
            isinstance(name, str) and type(told["size"]) is int and isinstance(told["sha256"], str)
            for name, told in files.items()
        )
        name = "".join(files).encode()  # half a surrogate pair is no name
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return files if fine and name is not None else None


def _text(files: dict[str, dict]) -> str:
    card = {"format": FORMAT, "files": {name: files[name] for name in sorted(files)}}
    own = hashlib.sha256(dumps(card).encode()).hexdigest()
    return dumps({**card, "sha256": own}, indent=1) + "\n"


def _files(folder: Path) -> list[tuple[str, Path]]:
    """(name with /, path) of every file below a folder but the manifest; a link is a file that is too many.
    What a person put beside a model is no part of it.

    Raises:
        OSError: a link, or something else that is no file.
    """
    found = []
    model = (folder / "run_card.json").is_file()
    for place, folders, names in os.walk(folder, onerror=_raise):
        if model and Path(place) == folder:
            folders[:] = [name for name in folders if not is_own(name)]
            names = [name for name in names if not is_own(name)]
        for name in [*names, *folders]:
            path = Path(place) / name
            if name.startswith(".") or name in NOT_OURS or (name == FILE and Path(place) == folder):
                continue
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise OSError(0, "不是一般檔案", str(path))
            if path.is_file():
                found.append((path.relative_to(folder).as_posix(), path))
    return sorted(found)


def _raise(error: OSError) -> None:
    raise error


def _hash(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            found.update(block)
    return found.hexdigest()
