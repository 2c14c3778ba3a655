"""Files and folders that are whole or not there, whenever a run is killed or a disk is full.

What is new is written beside its place under a hidden name, flushed to the disk, and renamed: a reader sees
the old one or the new one.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from finetune.runtime.errors import RunError, UserError, reason

AT_FDCWD = -100  # of Linux: names are taken from the current folder
EXCHANGE = 2  # RENAME_EXCHANGE of Linux; RENAME_SWAP of macOS
LONGEST_NAME = 255  # bytes, on every file system
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)  # not there on Windows, where only administrators make links


@contextlib.contextmanager
def atomic_open(path: str | Path, mode: str = "w", **how) -> Iterator[IO]:
    """A stream to write a file to, which stands in its place once the block has ended well.

    Args:
        how: as `open` takes it; text is UTF-8.

    Raises:
        OSError: no room, no permission; the error names the file, which is as it was.
    """
    path = Path(path)
    half = hidden(path, "half")
    if "b" not in mode:
        how = {"encoding": "utf-8", **how}
    try:
        half.unlink(missing_ok=True)  # of a run that was killed; a link there is not followed
        with half.open(mode.replace("w", "x"), **how) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        half.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            half.unlink()
        if isinstance(error, OSError) and error.filename in (None, str(half)):
            error.filename, error.filename2 = str(path), None
        raise
    flush_folder(path.parent)


def hidden(path: Path, what: str) -> Path:
    """The hidden name beside a file or folder under which what is to take its place is written, or what it
    takes the place of is kept; short enough where the name itself is as long as a name may be.
    """
    name = os.fsdecode(os.fsencode(path.name)[: LONGEST_NAME - len(what) - 2])
    return path.with_name(f".{name}.{what}")


def own_file(path: Path, mode: str, **how) -> IO:
    """Opens a file to be written to by its own name. A link that somebody put there is not followed.

    Raises:
        OSError: it is a link, no ordinary file, or cannot be written.
    """
    if os.name == "nt" and path.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    stream = open(path, mode, opener=lambda name, flags: os.open(name, flags | NO_FOLLOW, 0o666), **how)
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise OSError(errno.EINVAL, "不是一般的檔案", str(path))
    return stream


def atomic_write(path: str | Path, text: str) -> None:
    """A text file, as `whole_file` writes it."""
    with atomic_open(path) as stream:
        stream.write(text)


def new_folder(folder: Path) -> Path:
    """An empty folder in the place of whatever an earlier run left there."""
    if folder.is_symlink() or folder.is_file():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    return folder


@contextlib.contextmanager
def write_errors(failed: str, way_on: str) -> Iterator[None]:
    """Says of what cannot be written which it is, why, and how to go on.

    Raises:
        RunError: in the place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise RunError(f"{failed}（{reason(error, where=True)}）；{way_on}") from error


def flush_folder(folder: Path) -> None:
    """Makes the names in a folder last through a power failure."""
    with contextlib.suppress(OSError):  # Windows opens no folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def flush_tree(folder: Path) -> None:
    """Makes everything below a folder last through a power failure.

    Raises:
        OSError: the disk did not take it.
    """
    for place, _, files in os.walk(folder):
        for name in files:
            handle = os.open(Path(place) / name, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        flush_folder(Path(place))


def give_usual_modes(folder: Path) -> None:
    """Gives the weights in a folder the mode that any new file has here: safetensors leaves them to their
    owner alone, and then no colleague and no server can read the model.
    """
    weights = list(folder.rglob("*.safetensors"))
    if os.name == "nt" or not weights:
        return
    probe = folder / ".mode.half"
    probe.unlink(missing_ok=True)
    os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    usual = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for path in weights:
        path.chmod(usual)


def replace_folder(new: Path, target: Path, keep_as: Path | None = None) -> None:
    """Puts a finished folder in the place of an older one, which is deleted once the new one stands, or kept
    under another name.

    Linux and macOS exchange the two in one step. Where a file system cannot, there is a moment in which the
    older one has a hidden name only: `rescue` gives it its own back.
    """
    new, target = Path(new), Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    flush_tree(new)
    old = _backup_path(target)
    if not target.exists():
        _rename(new, target)
    elif _exchange(new, target):
        old = new
    else:
        remove_tree(old)
        _rename(target, old)
        _rename(new, target)
    flush_folder(target.parent)
    if keep_as is None:
        remove_tree(old)
    elif old.exists():
        remove_tree(keep_as)
        _rename(old, keep_as)


def recover_replace(target: str | Path) -> bool:
    """Gives a folder back its name, if a run was killed while it replaced it. True when it did."""
    target = Path(target)
    if (
        not target.name
        or target.exists()
        or _backup_path(target).is_symlink()
        or not _backup_path(target).is_dir()
    ):
        return False
    try:
        _rename(_backup_path(target), target)
    except OSError:  # another process was faster, or nothing may be changed here
        return target.exists()
    return True


def writable(path: str | Path) -> bool:
    """Whether something can be written at a place that may not be there yet."""
    path = Path(path).resolve()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path.is_dir() and os.access(path, os.W_OK | os.X_OK)


def remove_tree(folder: Path) -> None:
    """Deletes a folder. It loses its name first, so that what is left of it by a kill passes for nothing."""
    if folder.is_symlink():
        folder.unlink()
    if not folder.exists():
        return
    gone = hidden(folder.with_name(folder.name.lstrip(".")), "gone")
    shutil.rmtree(gone, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)


def _backup_path(target: Path) -> Path:
    return hidden(target, "old")


def _rename(one: Path, other: Path) -> None:
    one.rename(other)


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two names in one step. False where that cannot be done."""
    names = os.fsencode(one), os.fsencode(other)
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            return library.renamex_np(*names, EXCHANGE) == 0
        return library.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], EXCHANGE) == 0
    except (AttributeError, OSError, TypeError):  # another C library; Windows
        return False


def read_json(path: Path) -> dict:
    """A JSON object from a file. Raises UserError when it is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} 讀不懂：{error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} 應該是一個 JSON 物件")
    return value
