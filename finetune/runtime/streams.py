"""Robust stdin, stdout and stderr: closed, full, without a reader, or in an encoding without Chinese."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterable
from typing import Any

# Temporary failures: there may be room later.
NO_ROOM = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG}
NAMES = ("stdin", "stdout", "stderr")  # by file descriptor
closed: set[str] = set()  # streams that the process was started without


def make_robust() -> None:
    r"""Make the standard streams of this process survive whatever they are connected to.

    A character that the encoding lacks is written as \u6e2c, an undecodable byte is read as a lone surrogate;
    output to stderr that cannot be written is dropped. Replacements by a test or a notebook are left alone.
    """
    for number, name in enumerate(NAMES):
        _open_closed(number, name)
        stream = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__") or not hasattr(stream, "reconfigure"):
            continue
        stream.reconfigure(errors="surrogateescape" if name == "stdin" else "backslashreplace")
        if name == "stderr":
            sys.stderr = LossyStream(stream)


def _open_closed(number: int, name: str) -> None:
    """Connect a closed stream to the null device.

    Otherwise the next file that is opened would take its descriptor, and receive what libraries print.
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


class LossyStream:
    """Wrapper of a log stream that drops what cannot be written instead of raising an error."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text, or drop it."""
        try:
            return self._stream.write(text)
        except (OSError, ValueError) as error:  # ValueError: the stream was closed
            self._drop(error)
            return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write lines, dropping those that cannot be written."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush the stream, or drop what is buffered."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._drop(error)

    def _drop(self, error: Exception) -> None:
        if getattr(error, "errno", 0) not in NO_ROOM:
            silence(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def silence(stream: Any) -> None:
    """Redirect a stream to the null device, together with what is buffered in it."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def flush() -> None:
    """Flush stdout and stderr before the process ends.

    Otherwise the interpreter ends with exit code 120 and a message of its own where one cannot be written.
    """
    for stream in (sys.stderr, sys.stdout):
        try:
            stream.flush()
        except (OSError, ValueError):
            silence(stream)
