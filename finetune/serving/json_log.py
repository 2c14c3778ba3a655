"""A log of JSON lines that never holds up who writes it."""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable
from datetime import datetime
from typing import Any

from finetune.runtime.console import as_json

WAITING = 10_000  # lines that wait to be written; more are dropped
AT_ONCE = 500  # lines of one write
CLOSE_SECONDS = 2.0  # for the last lines


class JsonLog:
    """A log of JSON lines on stderr, written by a thread of its own.

    A pipe whose reader is stuck would otherwise stop the thread that answers all requests.

    Args:
        dropped: told how many lines were dropped.
        with_texts: remarks that hold what clients sent are written too.
        with_tracebacks: those of errors are written.

    Attributes:
        show: writes lines that are ready.
    """

    def __init__(
        self, dropped: Callable[[int], None], with_texts: bool = False, with_tracebacks: bool = False
    ):
        self.with_texts, self._with_tracebacks, self._dropped = with_texts, with_tracebacks, dropped
        self.show: Callable[[str], object] = _print
        self._lines: queue.Queue[str | None] = queue.Queue(WAITING)
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def write(self, event: str, **fields: Any) -> None:
        """Write a line.

        Args:
            event: what happened.
        """
        now = datetime.fromtimestamp(time.time()).astimezone().isoformat(timespec="milliseconds")
        try:
            self._lines.put_nowait(as_json({"time": now, "event": event, **fields}))
        except queue.Full:
            self._dropped(1)

    def remark(self, text: str) -> None:
        """Write a remark of the model's, which may quote what a client sent: only where texts are wanted."""
        if self.with_texts:
            self.write("remark", message=text)

    def error(self, error: BaseException, **fields: Any) -> None:
        """Write that something failed that should not; its message may quote what a client sent."""
        if self.with_texts:
            fields["message"] = str(error)
        if self._with_tracebacks:
            fields["traceback"] = "".join(traceback.format_exception(error))
        self.write("error", error=type(error).__name__, **fields)

    def close(self) -> None:
        """Write what waits, as far as somebody reads it, and end the thread."""
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=CLOSE_SECONDS)
        self._thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        line: str | None = ""
        while line is not None:
            lines = []
            line = self._lines.get()
            while line is not None:
                lines.append(line)
                if len(lines) == AT_ONCE or self._lines.empty():
                    break
                line = self._lines.get()
            if lines:
                self.show("\n".join(lines))


def _print(lines: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # a closed or full stderr ends no server
        print(lines, file=sys.stderr, flush=True)
