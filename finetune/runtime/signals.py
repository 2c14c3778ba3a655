"""Signals that end a run: as a wish, granted between two steps."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Iterator

from finetune.runtime.console import is_main_process
from finetune.runtime.errors import Stopped

ECHO_SECONDS = 2.0  # a second signal within this time is the launcher's echo of the first
# SIGUSR1 is what Slurm sends before the time of a job is up (--signal=USR1@120), SIGHUP what a terminal sends
# that is closed; Windows has neither.
OUTSIDE = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name))
SIGNALS = (signal.SIGINT, *OUTSIDE)


class StopRequest:
    """SIGINT, SIGTERM, SIGUSR1 and SIGHUP. They end the run in order, as `Stopped`; but within `patient` they
    are a wish, granted between two steps. A second one there ends the process at once. A SIGHUP that was
    ignored when the process started, as under nohup, stays ignored.

    A launcher passes a Ctrl-C on as a SIGTERM right after the terminal's own SIGINT: that is one wish, not
    two.

    Args:
        signals: those to be taken; OUTSIDE leaves Ctrl-C a KeyboardInterrupt.

    `signum`: that of the wish, SIGTERM for all but SIGINT; 0 without one.
    """

    def __init__(self, signals: tuple[int, ...] = SIGNALS):
        self.signals = signals
        self.signum = 0
        self.asked_at = math.inf
        self._patient = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python does not allow handlers
            for signum in self.signals:
                if signum != getattr(signal, "SIGHUP", 0) or signal.getsignal(signum) != signal.SIG_IGN:
                    self._before[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, *_) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    @contextlib.contextmanager
    def patient(self) -> Iterator[None]:
        """Within it a signal is a wish."""
        self._patient = True
        try:
            yield
        finally:
            self._patient = False

    def _note(self, signum, frame) -> None:
        wish = signal.SIGINT if signum == signal.SIGINT else signal.SIGTERM
        if self.signum:
            if time.monotonic() - self.asked_at > ECHO_SECONDS:
                os._exit(128 + wish)
            return
        self.signum = wish  # before any call: the launcher's echo may be handled within it
        self.asked_at = time.monotonic()
        if not self._patient:
            raise Stopped(wish, "已中斷")
        if is_main_process():  # not `say`: a buffered stream may be in the middle of a line already
            with contextlib.suppress(OSError):
                os.write(2, "\n收到停止訊號：做完這一步、存好檢查點就結束（再按一次立刻結束）\n".encode())
