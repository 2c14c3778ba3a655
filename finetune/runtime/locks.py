"""Exclusive locks on the files and folders that a run writes to.

The kernel holds the lock (flock; on NFS, Linux makes a byte-range lock of it that other machines see), so
that it is released when the process ends, however it ends. The lock file names the process for people to
read. Where a file system has no locks, a log line says so and the run goes on.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import stat
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from finetune.runtime.console import is_main_process, log
from finetune.runtime.errors import UserError
from finetune.runtime.files import NO_FOLLOW, hidden, writable

TAKEN = {errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK, errno.EDEADLK}
OWNER_SECONDS = 0.5  # time that a process which has just taken a lock has to write down its id
TRIES = 1000  # for a lock file that other processes create and delete at the same moment
FEW = 50  # of them before a folder that is there and takes no file is believed to take none
FAR = 1 << 30  # offset of the byte that Windows locks: what is locked there cannot be read


@contextlib.contextmanager
def hold_locks(targets: Iterable[tuple[str, Path]]) -> Iterator[None]:
    """Hold the locks of this run, on its first rank, while the block runs.

    A lock file that cannot be written is skipped: the code that writes there reports the problem.

    Args:
        targets: (name for messages, lock file).

    Raises:
        UserError: another process holds one of them. Nothing was touched.
    """
    with contextlib.ExitStack() as stack:
        # always in the same order: of two runs that start together one gets all locks
        for name, path in sorted(targets, key=lambda target: str(target[1])) if is_main_process() else ():
            stack.enter_context(_hold(name, path))
        yield


def lock_path(path: str | Path) -> Path:
    """Return the lock file of a file or folder that is replaced as a whole.

    It lies next to it or, where nothing can be written there, in the folder.
    """
    path = Path(os.path.realpath(path))
    if path.is_dir() and (not path.name or os.path.ismount(path) or not writable(path.parent)):
        return path / ".lock"
    return hidden(path, "lock")


@contextlib.contextmanager
def _hold(name: str, path: Path) -> Iterator[None]:
    made = [folder for folder in path.parents if not folder.exists()]
    handle = None
    try:
        try:
            if writable(path.parent):  # else the code that writes there reports it
                handle = _take(name, path)
        except OSError as error:
            if error.errno == errno.ELOOP or path.is_symlink():
                raise UserError(f"{name}：{path} 是一個連結，可能是別人放的；請刪掉它") from None
        yield
    finally:
        if handle is not None:
            if os.name != "nt":
                # before the lock is released: a process that takes it then sees that the file is gone
                path.unlink(missing_ok=True)
            os.close(handle)
        for folder in made:
            with contextlib.suppress(OSError):  # not empty any more
                folder.rmdir()


def _take(name: str, path: Path) -> int:
    """Open and lock the lock file; return its descriptor.

    Raises:
        UserError: another process holds the lock.
        OSError: the file cannot be opened.
    """
    for number in range(TRIES):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = _open(path)
        except FileNotFoundError:  # the process that made the folder has just deleted it again
            if number > FEW and path.parent.is_dir():  # as /proc, which takes no file from anybody
                raise
            continue
        except FileExistsError:
            if path.parent.exists() and not path.parent.is_dir():
                raise
            continue  # the folder was there, and deleted before `mkdir` had looked whether it is one
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise UserError(f"{name}：{path} 不是一般的檔案；請移開它")
            if not _try_lock(handle, path):
                raise UserError(f"{name} 正由另一次執行使用{_describe_owner(handle)}；等它結束，或換一個地方")
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.stat(path, follow_symlinks=False)):
                    _write_owner(handle)
                    return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # its holder has just ended, and deleted the file
    raise UserError(f"{name}：{path} 不斷被其他執行建立又刪除；稍後再試")


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | NO_FOLLOW, 0o666)
    except PermissionError:  # left by another user's killed run: read access is enough to lock it
        return os.open(path, os.O_RDONLY | NO_FOLLOW)


def _try_lock(handle: int, path: Path) -> bool:
    """Take the lock; return False when another process holds it."""
    try:
        if sys.platform == "win32":
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


def _write_owner(handle: int) -> None:
    """Write the id of this process into the lock file."""
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    with contextlib.suppress(OSError):
        os.ftruncate(handle, 0)
        os.lseek(handle, 0, os.SEEK_SET)
        os.write(handle, json.dumps(owner).encode())


def _describe_owner(handle: int) -> str:
    """Name the process that holds the lock, for a message; "" when that cannot be read."""
    deadline = time.monotonic() + OWNER_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            os.lseek(handle, 0, os.SEEK_SET)
            owner = json.loads(os.read(handle, 4096))
            pid, host, since = int(owner["pid"]), str(owner["host"])[:80], str(owner["since"])[:20]
            return f"（行程 {pid}，主機 {host}，{since} 開始）"
        time.sleep(0.02)
    return ""
