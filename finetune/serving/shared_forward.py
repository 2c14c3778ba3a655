"""A forward pass that requests share: those that wait at the same time run in one pass."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from typing import Any

import torch
from torch import Tensor

from finetune.evaluation.queries import BATCH_BLANKS, BATCH_TOKENS, Forward
from finetune.serving import tickets
from finetune.serving.compute import ComputeThread
from finetune.serving.tickets import CancelledError


class SharedForward:
    """A model's forward pass for many threads.

    It is called as the pass itself, from the thread of a request, and waits until the compute thread has run
    it. A request that comes alone runs at once: what waits is what came while the pass before was running.

    Args:
        forward: (input_ids, attention_mask, rows, cols[, segments]) -> (M, …).
        compute: the thread that runs it.
        mergeable: calls that wait together run as one; else one after another.
    """

    def __init__(self, forward: Forward, compute: ComputeThread, mergeable: bool = False):
        self._forward, self._compute, self.mergeable = forward, compute, mergeable
        self._waiting: deque[tuple[tuple[Tensor, ...], Future]] = deque()
        compute.add(self)
        exact = getattr(forward, "fp32_forward", None)
        self.fp32_forward = None if exact is None else SharedForward(exact, compute, mergeable)

    def __call__(self, *call: Tensor) -> Tensor:
        """Return the output of one call.

        Raises:
            CancelledError: the request has been given up meanwhile.
        """
        if self._compute.is_current:
            return self._forward(*call)
        ticket = tickets.current.get()
        future: Future = Future()
        with self._compute.changed:
            self._waiting.append((call, future))
            self._compute.changed.notify_all()
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

    def has_work(self) -> bool:
        """Return whether a call waits."""
        return bool(self._waiting)

    @torch.no_grad()
    def work(self) -> None:
        """Run the calls that wait, as many as one pass takes."""
        with self._compute.changed:
            calls = self._take()
        for call, future in calls:
            try:
                future.set_result(self._forward(*call))
            except BaseException as error:
                future.set_exception(error)

    def _take(self) -> list[tuple[tuple[Tensor, ...], Future[Any]]]:
        """Remove the first calls that fit into one pass, at least one that somebody still waits for."""
        taken: list[tuple[tuple[Tensor, ...], Future]] = []
        rows = width = blanks = 0
        while self._waiting:
            call, future = self._waiting[0]
            size, length = call[0].shape
            full = (rows + size) * max(width, length) > BATCH_TOKENS or blanks + len(call[2]) > BATCH_BLANKS
            if taken and (full or not self.mergeable):
                break
            self._waiting.popleft()
            if future.set_running_or_notify_cancel():
                taken.append((call, future))
                rows, width, blanks = rows + size, max(width, length), blanks + len(call[2])
        return taken
