"""Checks of files that flags name: one to be read, one to be written, and that they are not the same."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from finetune.runtime.file_types import CONVERSION_HINTS, READABLE, is_readable
from finetune.runtime.files import LONGEST_NAME, writable


def source_problems(flag: str, path: Path, *extra: str) -> list[str]:
    """Return what is wrong with a file of rows.

    Args:
        flag: that names it, for messages.
        extra: suffixes that can be read besides those of tables and .txt.
    """
    if not path.is_file():
        return [
            f"{flag} {path}：沒有這個檔案" if not path.is_dir() else f"{flag} {path} 是一個資料夾，應為檔案"
        ]
    if way := CONVERSION_HINTS.get(path.suffix.lower()):
        return [f"{flag} {path}：{way}"]
    return [] if is_readable(path, ".txt", *extra) else [_unknown(flag, path, (*READABLE, ".txt", *extra))]


def target_problems(flag: str, path: Path, suffixes: Sequence[str]) -> list[str]:
    """Return what is wrong with a file that is to be written, in one of the formats of `suffixes`."""
    if path.suffix.lower() not in suffixes:
        return [_unknown(flag, path, suffixes)]
    if path.is_dir():
        return [f"{flag} {path} 是一個資料夾，應為檔案"]
    if not writable(path.parent):
        return [f"{flag} {path}：{path.parent} 不能寫入（唯讀、沒有權限，或不是資料夾）"]
    if len(os.fsencode(path.name)) > LONGEST_NAME - len(".part"):
        return [f"{flag} {path}：檔名太長，作答時還要在後面加 .part"]
    return []


def _unknown(flag: str, path: Path, suffixes: Sequence[str]) -> str:
    seen = f"不認得 {path.suffix} 檔" if path.suffix else "沒有副檔名"
    return f"{flag} {path}：{seen}，要 {'、'.join(suffixes)}"


def is_same_file(one: str | Path, other: str | Path) -> bool:
    """Return whether two paths lead to one file, by links too, or would if it existed."""
    if os.path.realpath(one) == os.path.realpath(other):
        return True
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False
