"""Work in threads whose results come as they are finished; a Ctrl-C need not wait for the work under way."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from queue import Empty, SimpleQueue
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(
    work: Callable[[Item], Result], items: Sequence[Item], count: int
) -> Iterator[tuple[int, Result]]:
    """Yield (number of the item, result) in the order in which they are finished.

    Threads of `concurrent.futures` are waited for when the process ends; these are not.

    Args:
        count: items worked on at once.

    Raises:
        whatever `work` raised first, once the results finished by then were yielded; no item is begun after.
    """
    numbers = iter(range(len(items)))
    lock, stopped = threading.Lock(), threading.Event()
    finished: SimpleQueue[tuple[int, Result | None, BaseException | None]] = SimpleQueue()

    def run() -> None:
        while not stopped.is_set():
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            try:
                finished.put((number, work(items[number]), None))
            except BaseException as error:
                stopped.set()
                finished.put((number, None, error))

    for _ in range(min(count, len(items))):
        threading.Thread(target=run, daemon=True).start()
    try:
        failure: BaseException | None = None
        for _ in range(len(items)):
            try:
                number, result, error = finished.get(block=failure is None)
            except Empty:
                break
            if error is not None:
                failure = failure or error
            else:
                yield number, result  # type: ignore[misc]  # there is a result where there is no error
        if failure is not None:
            raise failure
    finally:
        stopped.set()
