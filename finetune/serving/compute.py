"""The one thread that runs the model, and what waits for it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

from finetune.serving.metrics import Pass

T = TypeVar("T")


class Source(Protocol):
    """Work for the compute thread, done in small portions so that no source waits long for another."""

    def has_work(self) -> bool:
        """Return whether `work` has something to do. Called with the thread's condition held."""

    def work(self) -> None:
        """Do one portion. What fails in it is its requests' failure: it must not raise."""


class ComputeThread:
    """The thread that runs the model.

    One thread computes: two passes at once would share the same cores, and each would take longer than both
    one after another.

    Args:
        passed: told of each pass.
        failed: told of what should not fail.

    Attributes:
        changed: held while what waits is looked at or added to.
    """

    def __init__(
        self,
        passed: Callable[[Pass], object] = lambda ran: None,
        failed: Callable[[BaseException], object] = lambda error: None,
    ):
        self.passed, self._failed = passed, failed
        self.changed = threading.Condition()
        self._sources: list[Source] = [Jobs(self)]
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="compute", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the portion that it is at, and wait for it."""
        with self.changed:
            self._stopped = True
            self.changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def is_current(self) -> bool:
        """True in the thread itself, which must not wait for itself."""
        return threading.current_thread() is self._thread

    @property
    def is_alive(self) -> bool:
        """True while the thread runs."""
        return self._thread.is_alive()

    def add(self, source: Source) -> None:
        """Have a source's work done from now on."""
        with self.changed:
            self._sources.append(source)
            self.changed.notify_all()

    def run(self, job: Callable[[], T]) -> T:
        """Run a job in the thread, wait for it and return what it returns; raise what it raises."""
        if self.is_current:
            return job()
        jobs = self._sources[0]
        assert isinstance(jobs, Jobs)
        return jobs.add(job).result()

    def _run(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(
                    lambda: self._stopped or any(source.has_work() for source in self._sources)
                )
                if self._stopped:
                    return
                ready = [source for source in self._sources if source.has_work()]
            for source in ready:
                try:
                    source.work()
                except Exception as error:  # the server goes on: other requests are none the worse
                    self._failed(error)


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
