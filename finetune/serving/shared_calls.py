"""Calls of many threads that the compute thread runs together."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

from finetune.serving.compute import ComputeThread
from finetune.serving.metrics import Pass
from finetune.serving.tickets import wait_for

Call = TypeVar("Call")
Result = TypeVar("Result")


class SharedCalls(Generic[Call, Result]):
    """A function of calls, whose calls come from many threads one by one and run together.

    A call that comes alone runs at once: what runs together is what came while the round before was running,
    so nobody waits for others to come.

    Args:
        compute: the thread that runs them.
        run: returns the result of each call.
        fit: returns whether calls are few and small enough to run together; a single one always runs.
        measure: returns the rows of calls that run together, and their tokens.

    Attributes:
        num_calls, num_rounds: calls that were run, and the rounds they took.
    """

    def __init__(
        self,
        compute: ComputeThread,
        run: Callable[[Sequence[Call]], Sequence[Result]],
        fit: Callable[[Sequence[Call]], bool],
        measure: Callable[[Sequence[Call]], tuple[int, int]],
    ):
        self._compute, self._run, self._fit, self._measure = compute, run, fit, measure
        self._waiting: deque[tuple[Call, Future[Result], float]] = deque()  # and since when
        self.num_calls = self.num_rounds = 0
        compute.add(self)

    def __call__(self, call: Call) -> Result:
        """Return the result of one call, from the thread of a request or from the compute thread.

        Raises:
            CancelledError: the request has been given up meanwhile.
        """
        if self._compute.is_current:
            return self._run([call])[0]
        future: Future[Result] = Future()
        with self._compute.changed:
            self._waiting.append((call, future, time.perf_counter()))
            self._compute.changed.notify_all()
        return wait_for(future)

    def has_work(self) -> bool:
        """Return whether a call waits."""
        return bool(self._waiting)

    def work(self) -> None:
        """Run the calls that wait, as many as fit; where that fails, one by one, each with its own error."""
        with self._compute.changed:
            taken, since = self._take()
        if not taken:
            return
        begun = time.perf_counter()
        self.num_calls, self.num_rounds = self.num_calls + len(taken), self.num_rounds + 1
        try:
            results = self._run([call for call, _ in taken])
        except Exception as error:
            if len(taken) == 1:
                taken[0][1].set_exception(error)
                return
            for call, future in taken:
                _settle(future, lambda call=call: self._run([call])[0])  # type: ignore[misc]
            return
        size = self._measure([call for call, _ in taken])
        waits = tuple(begun - moment for moment in since)
        self._compute.passed(Pass(*size, waits, time.perf_counter() - begun))
        for (_, future), result in zip(taken, results, strict=True):
            future.set_result(result)

    def _take(self) -> tuple[list[tuple[Call, Future[Result]]], list[float]]:
        """Remove the first calls that fit together and that somebody still waits for, and since when."""
        taken: list[tuple[Call, Future[Result]]] = []
        times: list[float] = []
        while self._waiting:
            call, future, since = self._waiting[0]
            if taken and not self._fit([*(other for other, _ in taken), call]):
                break
            self._waiting.popleft()
            if future.set_running_or_notify_cancel():
                taken.append((call, future))
                times.append(since)
        return taken, times


def _settle(future: Future[Result], work: Callable[[], Result]) -> None:
    """Put the result of some work, or its error, into a future."""
    try:
        future.set_result(work())
    except BaseException as error:
        future.set_exception(error)
