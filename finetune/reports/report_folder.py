"""Folder of a report: nothing of others is replaced, and a reader sees the former report or the new one."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from finetune.runtime.errors import UserError
from finetune.runtime.files import (
    flush_folder,
    flush_tree,
    hidden,
    new_folder,
    replace_folder,
    writable,
    write_errors,
)


@dataclass(frozen=True)
class ReportFiles:
    """Files of one kind of report.

    Args:
        names: those that are always written.
        pattern: of all that may be.
        summary: the JSON file, an object with `facts`, by which a report of this kind is known.
        title: what messages call it.
        noun: what they call its files.
        signature: words near the beginning of each file, by which it is known where there is no summary.
    """

    names: tuple[str, ...]
    pattern: re.Pattern[str]
    summary: str = ""
    title: str = "這支程式寫的報告"
    noun: str = "報告"
    signature: str = ""


def check_folder(folder: Path, flag: str, kind: ReportFiles) -> None:
    """Refuse a folder in which a report would replace something else.

    Args:
        folder: the report's folder.
        flag: that named it, for the message.
        kind: of report.

    Raises:
        UserError: a file of the same name that is of no report written here; no folder; not to be written.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{flag} {folder} 是一個檔案，應為資料夾")
    if not writable(folder):
        raise UserError(f"{flag} {folder} 不能寫入（唯讀、沒有權限，或連結繞成一圈）；請換一個資料夾")
    existing = [name for name in kind.names if os.path.lexists(folder / name)]
    if kind.signature:
        existing = [name for name in existing if not _is_signed(folder / name, kind.signature)]
    elif is_report(folder, kind):
        return
    if existing:
        names = "、".join(existing)
        raise UserError(
            f"{flag} {folder} 裡已有 {names}，而且不是{kind.title}，會被換掉；請換一個資料夾或先移開"
        )


def is_report(folder: Path, kind: ReportFiles) -> bool:
    """Return whether a report of this kind is in a folder."""
    if kind.signature:
        return any(_is_signed(folder / name, kind.signature) for name in kind.names)
    try:
        summary = json.loads((folder / kind.summary).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(summary, dict) and "facts" in summary


def _is_signed(path: Path, signature: str) -> bool:
    """Return whether a file was written by this program: it says so near its beginning."""
    try:
        with path.open("rb") as stream:
            return signature.encode() in stream.read(4096)
    except OSError:
        return False


def write(folder: Path, kind: ReportFiles, write_files: Callable[[Path], None], hint: str) -> None:
    """Write a report into a folder at once.

    Args:
        folder: the report's folder.
        kind: of report.
        write_files: writes all of its files into the folder that it is given.
        hint: what can be done when it cannot be written.

    Raises:
        RunError: it cannot be written; the former report is as it was.
    """
    folder = Path(os.path.realpath(folder))
    kept = f"；先前的{kind.noun}沒有動" if is_report(folder, kind) else ""
    with write_errors(f"{kind.noun}寫不進 {folder}", hint + kept):
        whole = _is_replaced(folder, kind)
        staging = hidden(folder, "half") if whole else folder / ".report.half"
        try:
            write_files(new_folder(staging))
            if _is_replaced(folder, kind):
                replace_folder(staging, folder)
            else:
                _move_in(staging, folder, kind)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _is_replaced(folder: Path, kind: ReportFiles) -> bool:
    """Return True if a report may replace the whole folder.

    Then nothing but a report is in it, it is no working directory or mount point, and its parent is writable.
    """
    if not folder.is_dir():
        return True
    return (
        all(map(kind.pattern.fullmatch, os.listdir(folder)))
        and folder not in (Path.cwd(), *Path.cwd().parents)
        and not os.path.ismount(folder)
        and writable(folder.parent)
    )


def _move_in(staging: Path, folder: Path, kind: ReportFiles) -> None:
    """Move the files of a report among others, and remove those of the former report that it lacks."""
    flush_tree(staging)
    names = os.listdir(staging)
    for name in names:
        (staging / name).replace(folder / name)
    for name in os.listdir(folder):
        if name not in names and kind.pattern.fullmatch(name) and not name.startswith("."):
            (folder / name).unlink()
    flush_folder(folder)
