"""Tickets: what the threads that work for a request know of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")


class CancelledError(Exception):
    """Nobody waits for the answer any more."""


class Ticket:
    """A request that was accepted.

    Attributes:
        event_loop: where it is answered; None before it is worked for.
        cancelled: its client is gone, or its time is up.
    """

    def __init__(self) -> None:
        self.event_loop: asyncio.AbstractEventLoop | None = None
        self.cancelled = False
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], object]] = []

    def cancel(self) -> None:
        """Note that nobody waits for the answer any more, and wake what waits for a part of it."""
        with self._lock:
            self.cancelled = True
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def on_cancel(self, callback: Callable[[], object]) -> None:
        """Call something when the request is cancelled; at once where it is already."""
        with self._lock:
            if not self.cancelled:
                self._callbacks.append(callback)
                return
        callback()

    def forget(self, callback: Callable[[], object]) -> None:
        """Forget a callback."""
        with self._lock:
            if callback in self._callbacks:
                self._callbacks.remove(callback)

    def check(self) -> None:
        """Raise CancelledError where the request was cancelled."""
        if self.cancelled:
            raise CancelledError


current: ContextVar[Ticket | None] = ContextVar("ticket", default=None)  # of the request worked for


def wait_for(future: Future[T]) -> T:
    """Return the result of a future; one that has not begun is cancelled with the request worked for.

    Raises:
        CancelledError: the request has been given up meanwhile.
    """
    ticket = current.get()
    if ticket is None:
        return future.result()
    ticket.on_cancel(future.cancel)
    try:
        return future.result()
    except BaseException as error:
        if future.cancelled():
            raise CancelledError from error
        raise
    finally:
        ticket.forget(future.cancel)
