"""stdin, stdout and stderr as people really have them: closed, full, read by nobody any more, or in an
encoding without Chinese.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys

NO_ROOM = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG}  # there may be some later
NAMES = ("stdin", "stdout", "stderr")  # by file descriptor
closed: set[str] = set()  # those that the process was started without


def steady() -> None:
    """Makes the streams of this process bear whatever they lead to. What a test or a notebook has put in
    their place is left alone.

    A character that the encoding lacks is written as \\u6e2c, a byte that is no text is read as half a
    character; what cannot be logged is lost, and nothing else with it.
    """
    for number, name in enumerate(NAMES):
        _open_closed(number, name)
        stream = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__") or not hasattr(stream, "reconfigure"):
            continue
        stream.reconfigure(errors="surrogateescape" if name == "stdin" else "backslashreplace")
        if name == "stderr":
            sys.stderr = Unheeded(stream)


def _open_closed(number: int, name: str) -> None:
    """A stream that is closed leads nowhere. Otherwise the next file that is opened takes its number, and
    what a library writes to it goes into that file.
    """
    try:
        os.fstat(number)
    except OSError:
        null = os.open(os.devnull, os.O_RDWR)
        if null != number:
            os.dup2(null, number)
            os.close(null)
        os.set_inheritable(number, True)
    if getattr(sys, name) is None:
        closed.add(name)
        stream = open(number, "w" if number else "r", encoding="utf-8", closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


class Unheeded:
    """A stream for people, who may have gone away: what cannot be written is lost, and nobody fails by it."""

    def __init__(self, stream):
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError) as error:  # ValueError: it was closed
            self._lose(error)
            return len(text)

    def writelines(self, lines) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._lose(error)

    def _lose(self, error: Exception) -> None:
        if getattr(error, "errno", 0) not in NO_ROOM:
            silence(self._stream)

    def __getattr__(self, name: str):
        return getattr(self._stream, name)


def silence(stream) -> None:
    """What is written to a stream from now on goes nowhere, what waits in it too."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def flush() -> None:
    """Empties stdout and stderr before the process ends: the interpreter would end with exit code 120 and
    words of its own where one of them cannot be written.
    """
    for stream in (sys.stderr, sys.stdout):
        try:
            stream.flush()
        except (OSError, ValueError):
            silence(stream)
