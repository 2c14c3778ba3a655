"""What a stranger's file can make the processor do without end, done in a child process with bounds on its
time and its memory: chat templates, which are programs, and tokenizers, whose patterns may never end.

No bound can be set on one call from within: a pattern, or `"a" * 10**9` in a template, holds the interpreter
until it is done. Imports nothing heavy.
"""

from __future__ import annotations

import json
import math
import os
import select
import signal
import struct
import time
import warnings
from collections.abc import Callable

from finetune.runtime.errors import UserError

try:
    import resource
except ImportError:  # Windows, where nothing is forked
    resource = None

SECONDS = 5  # of the processor, for one call; honest ones take milliseconds
PATIENCE = 12.0  # seconds to wait for it, on a machine with much else to do
MEGABYTES = 768  # that a child may need beyond what it shares with its parent
LONGEST = 1 << 24  # bytes of an answer
_HEAD = struct.Struct("<Q")  # length of a message that follows


class Sandbox:
    """A function whose calls are made in a child process, which is forked at the first one and kept.

    Args:
        function: takes and returns what JSON holds.
        what: is blamed in the message: flag, file and key.

    Where processes cannot be forked (Windows) it is called as it is, without bounds.
    """

    def __init__(self, function: Callable, what: str):
        self._function, self.what = function, what
        self._child = self._owner = 0  # process ids
        self._ears = self._mouth = -1  # file descriptors
        self._over = ""  # why nothing is tried any more

    def __call__(self, *given):
        """What the function returns.

        Raises:
            UserError: it took too long or too much memory; so will every later call.
            ValueError: the function raised an error, with its words.
        """
        if self._over:
            raise UserError(self._over)
        if not hasattr(os, "fork"):
            return self._function(*given)
        if self._owner != os.getpid():  # a fork of ours has no child yet
            self._child = 0
        if not self._child:
            self._start()
        try:
            answer = self._ask(json.dumps(given).encode())
        except (OSError, EOFError):
            answer = None
        except BaseException:  # Ctrl-C: an answer would come that nobody waits for
            self.close()
            raise
        if answer is None:
            self.close()
            bounds = f"{SECONDS} 秒、{MEGABYTES} MB"
            self._over = f"{self.what}：執行超過上限（{bounds}），不使用"
            raise UserError(self._over)
        value, error = json.loads(answer)
        if error is not None:
            raise ValueError(error)
        return value

    def close(self) -> None:
        """Ends the child."""
        if self._child and self._owner == os.getpid():
            os.close(self._mouth)
            os.close(self._ears)
            os.kill(self._child, signal.SIGKILL)
            os.waitpid(self._child, 0)
        self._child = 0

    __del__ = close

    def _start(self) -> None:
        theirs, self._mouth = os.pipe()
        self._ears, answers = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python's, of forks beside threads
            self._child = os.fork()
        self._owner = os.getpid()
        if not self._child:
            try:
                os.close(self._mouth)
                os.close(self._ears)
                _bound_memory()
                _serve(self._function, theirs, answers)
            finally:
                os._exit(0)
        os.close(theirs)
        os.close(answers)

    def _ask(self, question: bytes) -> bytes | None:
        """None when time is up."""
        end = time.monotonic() + PATIENCE
        waiting = memoryview(_HEAD.pack(len(question)) + question)
        os.set_blocking(self._mouth, False)
        while waiting:
            if not select.select([], [self._mouth], [], max(0.0, end - time.monotonic()))[1]:
                return None
            waiting = waiting[os.write(self._mouth, waiting) :]
        head = _read(self._ears, _HEAD.size, end)
        return head and _read(self._ears, _HEAD.unpack(head)[0], end)


def _read(source: int, size: int, end: float = float("inf")) -> bytes | None:
    """So many bytes; None when time is up. Raises EOFError when the other side is gone."""
    found = bytearray()
    while len(found) < size:
        left = end - time.monotonic()
        if left <= 0 or (left < float("inf") and not select.select([source], [], [], left)[0]):
            return None
        piece = os.read(source, min(size - len(found), 1 << 20))
        if not piece:
            raise EOFError
        found += piece
    return bytes(found)


def _serve(function: Callable, questions: int, answers: int) -> None:
    """The child: answers until its parent is gone. What ends a run is its parent's to heed."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    silent = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(silent, stream)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads were not forked
    while True:
        given = json.loads(_read(questions, _HEAD.unpack(_read(questions, _HEAD.size))[0]))
        used = math.ceil(time.process_time())
        resource.setrlimit(resource.RLIMIT_CPU, (used + SECONDS, resource.RLIM_INFINITY))
        try:
            said = json.dumps([function(*given), None]).encode()
        except MemoryError:
            return
        except BaseException as error:  # a panic of Rust is no Exception
            said = json.dumps([None, str(error)[:2000] or type(error).__name__]).encode()
        if len(said) > LONGEST:
            return
        waiting = memoryview(_HEAD.pack(len(said)) + said)
        while waiting:
            waiting = waiting[os.write(answers, waiting) :]


def _bound_memory() -> None:
    """Of address space, so much beyond what there is now; where the system counts none, time alone bounds."""
    try:
        pages = int(open("/proc/self/statm").read().split()[0])
    except OSError:
        return
    limit = pages * os.sysconf("SC_PAGE_SIZE") + (MEGABYTES << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
