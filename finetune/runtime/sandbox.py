"""Untrusted work in a child process with limits on its CPU time and memory.

It is meant for chat templates, which are programs, and for tokenizers, whose patterns may backtrack for ever.
No call can be limited from within the same process: a pattern, or `"a" * 10**9` in a template, holds the
interpreter until it is done. Imports nothing heavy.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import signal
import struct
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune.runtime.errors import UserError

with contextlib.suppress(ImportError):  # missing on Windows, where nothing is forked
    import resource

SECONDS = 5  # CPU time for one call; ordinary ones take milliseconds
PATIENCE = 12.0  # seconds to wait for an answer, on a busy machine too
MEGABYTES = 768  # memory of the child beyond what it shares with its parent
LONGEST = 1 << 24  # bytes of an answer
MOST_FILES = 1 << 20  # descriptors of a process
_LENGTH = struct.Struct("<Q")  # length in bytes of the message that follows


class Sandbox:
    """Callable that runs a function in a child process, forked at the first call and kept.

    Where processes cannot be forked (Windows) the function is called directly, without limits.

    Args:
        function: takes and returns JSON values.
        what: named in the error message as the cause: flag, file and key.

    Attributes:
        gives_up: once a call went beyond the limits, no more are made. False for arguments of strangers,
            of whom one must not spoil it for all.
    """

    gives_up = True

    def __init__(self, function: Callable, what: str):
        self._function, self.what = function, what
        self._child = self._owner = 0  # process ids
        self._answers = self._requests = -1  # file descriptors of the pipes from and to the child
        self._failure = ""  # why no more calls are made
        self._lock = threading.Lock()  # one call at a time: the child answers in their order

    def __call__(self, *args: Any) -> Any:
        """Call the function in the child process and return its result.

        Raises:
            UserError: it took too long or too much memory; every later call raises this too if it `gives_up`.
            ValueError: the function raised an error; it has the same message.
        """
        with self._lock:
            return self._call(*args)

    def _call(self, *args: Any) -> Any:
        if self._failure:
            raise UserError(self._failure)
        if not hasattr(os, "fork"):
            return self._function(*args)
        if self._owner != os.getpid():  # this process is itself a fork: the child belongs to its parent
            self._child = 0
        if not self._child:
            self._start()
        try:
            answer = self._request(json.dumps(args).encode())
        except (OSError, EOFError):
            answer = None
        except BaseException:  # Ctrl-C: the pending answer would be taken for that of the next call
            self.close()
            raise
        if answer is None:
            self.close()
            bounds = f"{SECONDS} 秒、{MEGABYTES} MB"
            failure = f"{self.what}：執行超過上限（{bounds}），不使用"
            self._failure = failure if self.gives_up else ""
            raise UserError(failure)
        value, error = json.loads(answer)
        if error is not None:
            raise ValueError(error)
        return value

    def close(self) -> None:
        """End the child process."""
        if self._child and self._owner == os.getpid():
            os.close(self._requests)
            os.close(self._answers)
            os.kill(self._child, signal.SIGKILL)
            os.waitpid(self._child, 0)
        self._child = 0

    __del__ = close

    def _start(self) -> None:
        requests, self._requests = os.pipe()
        self._answers, answers = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # about a fork while there are threads
            self._child = os.fork()
        self._owner = os.getpid()
        if not self._child:
            try:
                _keep_open(requests, answers)
                _limit_memory()
                _serve(self._function, requests, answers)
            finally:
                os._exit(0)
        os.close(requests)
        os.close(answers)

    def _request(self, message: bytes) -> bytes | None:
        """Send a message to the child and return its answer; None when time is up."""
        deadline = time.monotonic() + PATIENCE
        unsent = memoryview(_LENGTH.pack(len(message)) + message)
        os.set_blocking(self._requests, False)
        while unsent:
            if not select.select([], [self._requests], [], max(0.0, deadline - time.monotonic()))[1]:
                return None
            unsent = unsent[os.write(self._requests, unsent) :]
        length = _read(self._answers, _LENGTH.size, deadline)
        return _read(self._answers, _LENGTH.unpack(length)[0], deadline) if length else None


def _read(source: int, size: int, deadline: float = math.inf) -> bytes | None:
    """Read exactly `size` bytes; None when the deadline passes.

    Raises:
        EOFError: the other process is gone.
    """
    data = bytearray()
    while len(data) < size:
        left = deadline - time.monotonic()
        if left <= 0 or (left < math.inf and not select.select([source], [], [], left)[0]):
            return None
        chunk = os.read(source, min(size - len(data), 1 << 20))
        if not chunk:
            raise EOFError
        data += chunk
    return bytes(data)


def _serve(function: Callable, requests: int, answers: int) -> None:
    """Answer requests until the parent is gone: the loop of the child process.

    It ignores the signals that end a run; the parent handles them.
    """
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(null, stream)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the threads of its pool were not forked
    while True:
        length = _read(requests, _LENGTH.size) or b""  # never None without a deadline
        args = json.loads(_read(requests, _LENGTH.unpack(length)[0]) or b"")
        used = math.ceil(time.process_time())
        resource.setrlimit(resource.RLIMIT_CPU, (used + SECONDS, resource.RLIM_INFINITY))
        try:
            answer = json.dumps([function(*args), None]).encode()
        except MemoryError:
            return
        except BaseException as error:  # a panic of Rust is not an Exception
            answer = json.dumps([None, str(error)[:2000] or type(error).__name__]).encode()
        if len(answer) > LONGEST:
            return
        unsent = memoryview(_LENGTH.pack(len(answer)) + answer)
        while unsent:
            unsent = unsent[os.write(answers, unsent) :]


def _keep_open(*files: int) -> None:
    """Close all but these and the standard streams: what a parent closes must be closed, its sockets too."""
    first = 3
    for file in sorted(files):
        os.closerange(first, file)
        first = file + 1
    os.closerange(first, MOST_FILES)


def _limit_memory() -> None:
    """Limit the address space to MEGABYTES beyond its present size; no limit without /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except OSError:
        return
    limit = pages * os.sysconf("SC_PAGE_SIZE") + (MEGABYTES << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
