"""Atomic writes of files and folders, safe against kills and full disks.

New content is written next to its target under a hidden name, flushed to the disk, and renamed: a reader
sees either the old one or the new one.
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
from typing import IO, Any

from finetune.runtime.errors import RunError, UserError, reason
from finetune.runtime.strict_json import SURROGATE

AT_FDCWD = -100  # Linux: relative names start at the current folder
EXCHANGE = 2  # RENAME_EXCHANGE on Linux; RENAME_SWAP on macOS
ATTEMPTS = 20  # at replacing a folder that others recover at the same moment
LONGEST_NAME = 255  # bytes, on every file system
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)  # missing on Windows, where only administrators make links


@contextlib.contextmanager
def atomic_open(path: str | Path, mode: str = "w", **kwargs: Any) -> Iterator[IO]:
    """Open a file for writing that replaces `path` only when the block ends without an error.

    Args:
        path: the file to write.
        mode: as `open` takes it, with "w".
        kwargs: passed on to `open`; the default encoding is UTF-8.

    Raises:
        OSError: no room or no permission; the error names `path`, which stays unchanged.
    """
    path = Path(path)
    staging = hidden(path, "half")
    if "b" not in mode:
        kwargs = {"encoding": "utf-8", **kwargs}
    try:
        staging.unlink(missing_ok=True)  # left by a run that was killed; a link there is not followed
        with staging.open(mode.replace("w", "x"), **kwargs) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        staging.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            staging.unlink()
        if isinstance(error, OSError) and error.filename in (None, str(staging)):
            error.filename, error.filename2 = str(path), None
        raise
    flush_folder(path.parent)


def hidden(path: Path, what: str) -> Path:
    """Return the hidden sibling `.name.what` of a path, used for unfinished or replaced content.

    The name is shortened where it would exceed the limit of the file system.
    """
    name = os.fsdecode(os.fsencode(path.name)[: LONGEST_NAME - len(what) - 2])
    return path.with_name(f".{name}.{what}")


def open_no_follow(path: Path, mode: str, **kwargs: Any) -> IO:
    """Open a regular file for writing in place, refusing to follow a symbolic link.

    Raises:
        OSError: it is a link, not a regular file, or cannot be written.
    """
    if os.name == "nt" and path.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    opener = lambda name, flags: os.open(name, flags | NO_FOLLOW, 0o666)  # noqa: E731
    stream = open(path, mode, opener=opener, **kwargs)  # noqa: SIM115  the caller closes it
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise OSError(errno.EINVAL, "不是一般的檔案", str(path))
    return stream


def atomic_write(path: str | Path, text: str) -> None:
    """Write a text file atomically, see `atomic_open`."""
    with atomic_open(path) as stream:
        stream.write(text)


def new_folder(folder: Path) -> Path:
    """Create an empty folder, deleting whatever an earlier run left there."""
    if folder.is_symlink() or folder.is_file():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    return folder


@contextlib.contextmanager
def write_errors(failed: str, hint: str) -> Iterator[None]:
    """Turn an OSError into a RunError that says what failed, why, and how to go on.

    Raises:
        RunError: the block raised an OSError.
    """
    try:
        yield
    except OSError as error:
        raise RunError(f"{failed}（{reason(error, where=True)}）；{hint}") from error


def flush_folder(folder: Path) -> None:
    """Sync the entries of a folder to the disk, so that they survive a power failure."""
    with contextlib.suppress(OSError):  # Windows cannot open folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def flush_tree(folder: Path) -> None:
    """Sync everything below a folder to the disk, so that it survives a power failure.

    Raises:
        OSError: the disk did not take it.
    """
    for parent, _, files in os.walk(folder):
        for name in files:
            handle = os.open(Path(parent) / name, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        flush_folder(Path(parent))


def give_usual_modes(folder: Path) -> None:
    """Give the weight files in a folder the mode of any new file.

    safetensors makes them readable by their owner alone; then no colleague and no server could load them.
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
    """Replace the folder `target` by the finished folder `new`.

    The old folder is deleted once the new one is in place, or kept as `keep_as`. Linux and macOS exchange
    the two in one step. Where a file system cannot, the old folder has only a hidden name for a moment:
    after a kill, `recover_replace` gives it its own name back.
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
        _replace_in_two_steps(new, target)
    flush_folder(target.parent)
    if keep_as is None:
        remove_tree(old)
    elif old.exists():
        remove_tree(keep_as)
        _rename(old, keep_as)


def _replace_in_two_steps(new: Path, target: Path) -> None:
    """Give `target` its backup name, and `new` the name of `target`.

    Who looks between the two steps finds no folder, and may give the old one its name back
    (`recover_replace`): then both are taken again.
    """
    for attempts_left in reversed(range(ATTEMPTS)):
        remove_tree(_backup_path(target))
        _rename(target, _backup_path(target))
        try:
            _rename(new, target)
            break
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not attempts_left:
                raise


def recover_replace(target: str | Path) -> bool:
    """Finish a folder replacement that a kill interrupted; True when there is a folder again."""
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
    """Return True if something can be written at `path`, which need not exist yet."""
    while True:
        place = Path(os.path.realpath(path))  # `resolve` raises for circular links, before Python 3.13
        while not place.exists() and place != place.parent:
            if place.is_symlink():
                return False  # a circle
            place = place.parent
        try:
            before = os.stat(place)
            if not stat.S_ISDIR(before.st_mode):
                return False
            if os.access(place, os.W_OK | os.X_OK):
                return True
            after = os.stat(place)
        except (FileNotFoundError, NotADirectoryError):
            continue  # another process has just deleted the folder that was looked at: look again
        if os.path.samestat(before, after) and before.st_ctime_ns == after.st_ctime_ns:
            return False  # else it was deleted and made anew meanwhile, and what was said of it is of neither


def remove_tree(folder: Path) -> None:
    """Delete a folder, renaming it first so that the rest left by a kill is not taken for a valid one."""
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
    """Exchange two paths in one step; False where the system cannot.

    Why not rename twice: of 1,000 looks at a folder that is replaced all the time, 4 met none; and a reader
    that called `recover_replace` in that moment made the writer's second rename fail (5 of 822 replacements).
    """
    names = os.fsencode(one), os.fsencode(other)
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            return library.renamex_np(*names, EXCHANGE) == 0
        return library.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], EXCHANGE) == 0
    except (AttributeError, OSError, TypeError):  # another C library, or Windows
        return False


def read_json(path: Path) -> dict:
    """Read a JSON object from a file.

    Raises:
        UserError: the file cannot be read, or holds no JSON object.
    """
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text)
        if SURROGATE.search(text):  # what cannot be written again is refused at once
            json.dumps(value, ensure_ascii=False).encode()
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} 讀不懂：{error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} 應該是一個 JSON 物件")
    return value
