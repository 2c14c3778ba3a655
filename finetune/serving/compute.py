"""The one thread that runs the model, and what waits for it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

from finetune.serving.metrics import Pass
from finetune.serving.tickets import wait_for

T = TypeVar("T")
LOOK = 0.2  # seconds after which a thread that waits looks whether a signal came


class Source(Protocol):
    """Work for the compute thread, done in small portions so that no source waits long for another."""

    def has_work(self) -> bool:
        """Return whether `work` has something to do. Called with the thread's condition held."""

    def work(self) -> None:
        """Do one portion. What fails in it is its requests' failure: it must not raise."""


class ComputeThread:
    """The thread that runs the model.

    One thread computes: two passes at once would share the same cores, and each would take longer than both
    one after another. Best it is the thread that has loaded the model (`adopt`): another one makes OpenMP
    keep a second team of threads, more than there are cores, and all wait less patiently for one another:
    the pass of a small model takes twice as long.

    Args:
        passed: told of each pass.
        failed: told of what should not fail.

    Attributes:
        changed: held while what waits is looked at or added to.
        is_alive: the thread takes work.
    """

    def __init__(
        self,
        passed: Callable[[Pass], object] = lambda ran: None,
        failed: Callable[[BaseException], object] = lambda error: None,
    ):
        self.passed, self._failed = passed, failed
        self.changed = threading.Condition()
        self._sources: list[Source] = [Jobs(self)]
        self.is_alive = False
        self._stopped = False
        self._thread: threading.Thread | None = None
        self._owned: threading.Thread | None = None  # a thread of its own

    def start(self) -> None:
        """Start a thread of its own."""
        self.is_alive = True
        self._thread = self._owned = threading.Thread(target=self.work, name="compute", daemon=True)
        self._owned.start()

    def adopt(self) -> None:
        """Make the current thread the one; `work` must follow in it."""
        self.is_alive, self._thread = True, threading.current_thread()

    def stop(self) -> None:
        """End `work` after the portion that it is at, and wait for a thread of its own."""
        with self.changed:
            self._stopped = True
            self.changed.notify_all()
        if self._owned is not None:
            self._owned.join()

    @property
    def is_current(self) -> bool:
        """True in the thread itself, which must not wait for itself."""
        return threading.current_thread() is self._thread

    def add(self, source: Source) -> None:
        """Have a source's work done from now on."""
        with self.changed:
            self._sources.append(source)
            self.changed.notify_all()

    def run(self, job: Callable[[], T]) -> T:
        """Run a job in the thread, wait for it and return what it returns; raise what it raises.

        Raises:
            CancelledError: the request has been given up before the job began.
        """
        if self.is_current:
            return job()
        jobs = self._sources[0]
        assert isinstance(jobs, Jobs)
        return wait_for(jobs.add(job))

    def work(self) -> None:
        """Run what waits until `stop`."""
        try:
            while ready := self._wait():
                for source in ready:
                    try:
                        source.work()
                    except Exception as error:  # the server goes on: other requests are none the worse
                        self._failed(error)
        finally:
            self.is_alive = False

    def _wait(self) -> list[Source]:
        """Wait for work, and return the sources that have some; none once the thread is stopped.

        Never without end: Python handles a signal in the main thread alone, and one that comes right before
        that thread waits, or reaches another thread, does not interrupt the wait.
        """
        with self.changed:
            while not (self._stopped or any(source.has_work() for source in self._sources)):
                self.changed.wait(LOOK)
            return [] if self._stopped else [source for source in self._sources if source.has_work()]


class Jobs:
    """Jobs that need the model for themselves, in the order in which they came."""

    def __init__(self, thread: ComputeThread):
        self._thread = thread
        self._waiting: deque[tuple[Callable[[], Any], Future]] = deque()

    def add(self, job: Callable[[], T]) -> Future:
        """Add a job; its result appears in the future."""
        future: Future = Future()
        with self._thread.changed:
            self._waiting.append((job, future))
            self._thread.changed.notify_all()
        return future

    def has_work(self) -> bool:
        """Return whether a job waits."""
        return bool(self._waiting)

    def work(self) -> None:
        """Run the first job."""
        with self._thread.changed:
            job, future = self._waiting.popleft()
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(job())
        except BaseException as error:
            future.set_exception(error)
