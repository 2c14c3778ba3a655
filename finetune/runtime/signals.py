"""Signals that end a run: during training they are deferred to the end of the current step."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from finetune.runtime.console import is_main_process
from finetune.runtime.errors import Stopped

ECHO_SECONDS = 2.0  # a second signal within this time is the launcher's echo of the first
# Slurm sends SIGUSR1 before the time of a job is up (--signal=USR1@120), a terminal that is closed sends
# SIGHUP; Windows has neither.
EXTERNAL_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name)
)
SIGNALS = (signal.SIGINT, *EXTERNAL_SIGNALS)
SAVES = "收到停止訊號：做完這一步、存好檢查點就結束（再按一次立刻結束）"


class StopRequest:
    """Context manager that handles SIGINT, SIGTERM, SIGUSR1 and SIGHUP.

    A signal raises `Stopped`; within `deferring` it is only recorded, for the training loop to stop between
    two steps, and a second one there ends the process at once. A SIGHUP that was ignored when the process
    started, as under nohup, stays ignored. A launcher passes a Ctrl-C on as a SIGTERM right after the
    terminal's own SIGINT: the two count as one signal.

    Args:
        signals: those to handle; EXTERNAL_SIGNALS leaves Ctrl-C a KeyboardInterrupt.

    Attributes:
        signum: SIGINT, or SIGTERM for every other signal received; 0 without one.
        requested_at: time of the signal, by time.monotonic.
    """

    def __init__(self, signals: tuple[int, ...] = SIGNALS):
        self.signals = signals
        self.signum = 0
        self.requested_at = math.inf
        self._deferring = ""  # what is said then
        self._before: dict[int, Any] = {}  # handlers to restore

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers there alone
            for signum in self.signals:
                if signum != getattr(signal, "SIGHUP", 0) or signal.getsignal(signum) != signal.SIG_IGN:
                    self._before[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *_) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    @contextlib.contextmanager
    def deferring(self, notice: str = SAVES) -> Iterator[None]:
        """Record a signal instead of raising `Stopped` while the block runs.

        Args:
            notice: shown when one comes: what is still done.
        """
        self._deferring = notice
        try:
            yield
        finally:
            self._deferring = ""

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        reported = signal.SIGINT if signum == signal.SIGINT else signal.SIGTERM
        if self.signum:
            if time.monotonic() - self.requested_at > ECHO_SECONDS:
                os._exit(128 + reported)
            return
        self.signum = reported  # before any call: the launcher's echo may be handled within it
        self.requested_at = time.monotonic()
        if not self._deferring:
            raise Stopped(reported, "已中斷")
        if is_main_process():  # not `log`: a buffered stream may be in the middle of a line already
            with contextlib.suppress(OSError):
                os.write(2, f"\n{self._deferring}\n".encode())
