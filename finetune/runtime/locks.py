"""Locks: a place that a run writes to belongs to that run alone until it ends.

The kernel holds the lock (flock; on NFS, Linux makes a byte-range lock of it that other machines see), so
that it is gone whenever the process is, however it ended. The lock file says for people which process that
is. Where a file system knows no locks, one line says so and the run goes on.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from finetune.runtime.console import is_main_process, log
from finetune.runtime.errors import UserError
from finetune.runtime.files import NO_FOLLOW, hidden, writable

TAKEN = {errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK, errno.EDEADLK}
INTRODUCTION = 0.5  # seconds in which a process that has just taken a lock writes down who it is
TRIES = 1000  # at a place that others come to and leave at the same moment
FAR = 1 << 30  # where Windows locks a byte, since what is locked there cannot be read


@contextlib.contextmanager
def held(places: Iterable[tuple[str, Path]]) -> Iterator[None]:
    """Holds places for this run; of several ranks the first one does. A place that cannot be written is none
    to be held: whoever writes there says so.

    Args:
        places: (what a message calls it, its lock file).

    Raises:
        UserError: another process has one of them. Nothing was touched.
    """
    with contextlib.ExitStack() as stack:
        # all in one order: of two runs that begin together one wins
        for name, path in sorted(places, key=lambda place: str(place[1])) if is_main_process() else ():
            stack.enter_context(_held(name, path))
        yield


def beside(path: str | Path) -> Path:
    """The lock file of a file or folder that is replaced as a whole: beside it or, where nothing can be
    written there, in the folder.
    """
    path = Path(os.path.realpath(path))
    if path.is_dir() and (not path.name or os.path.ismount(path) or not writable(path.parent)):
        return path / ".lock"
    return hidden(path, "lock")


@contextlib.contextmanager
def _held(name: str, path: Path) -> Iterator[None]:
    made = [folder for folder in path.parents if not folder.exists()]
    handle = None
    try:
        try:
            if writable(path.parent):  # else whoever writes there says so
                handle = _take(name, path)
        except OSError as error:
            if error.errno == errno.ELOOP or path.is_symlink():
                raise UserError(f"{name}：{path} 是一個連結，可能是別人放的；請刪掉它") from None
        yield
    finally:
        if handle is not None:
            if os.name != "nt":
                path.unlink(missing_ok=True)  # before the lock is gone: who waits for this file looks again
            os.close(handle)
        for folder in made:
            with contextlib.suppress(OSError):  # there is something in it now
                folder.rmdir()


def _take(name: str, path: Path) -> int:
    """An open file that this process has locked.

    Raises:
        UserError: another process has.
        OSError: it cannot be opened.
    """
    for _ in range(TRIES):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = _opened(path)
        except FileNotFoundError:  # whoever made the folder has just deleted it again
            continue
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise UserError(f"{name}：{path} 不是一般的檔案；請移開它")
            if not _locked(handle, path):
                raise UserError(f"{name} 正由另一次執行使用{_holder(handle)}；等它結束，或換一個地方")
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.stat(path, follow_symlinks=False)):
                    _introduce(handle)
                    return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # whoever held it has just ended, and deleted it
    raise UserError(f"{name}：{path} 一直在換人；稍後再試")


def _opened(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | NO_FOLLOW, 0o666)
    except PermissionError:  # another user's, of a run that was killed: to lock it, reading is enough
        return os.open(path, os.O_RDONLY | NO_FOLLOW)


def _locked(handle: int, path: Path) -> bool:
    """Takes the lock. False when another process has it."""
    try:
        if os.name == "nt":
            import msvcrt

            os.lseek(handle, FAR, os.SEEK_SET)
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in TAKEN:
            return False
        log(f"  {path.parent} 的檔案系統不能上鎖（{error.strerror}）：請自行留意，別讓兩次執行同時寫入")
    return True


def _introduce(handle: int) -> None:
    """Writes down who holds the lock."""
    who = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    with contextlib.suppress(OSError):
        os.ftruncate(handle, 0)
        os.lseek(handle, 0, os.SEEK_SET)
        os.write(handle, json.dumps(who).encode())


def _holder(handle: int) -> str:
    """Who holds the lock, in words; "" when that cannot be read."""
    ends = time.monotonic() + INTRODUCTION
    while time.monotonic() < ends:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            os.lseek(handle, 0, os.SEEK_SET)
            who = json.loads(os.read(handle, 4096))
            return f"（行程 {int(who['pid'])}，主機 {str(who['host'])[:80]}，{str(who['since'])[:20]} 開始）"
        time.sleep(0.02)
    return ""
