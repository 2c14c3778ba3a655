"""A forward pass that requests share: those that wait at the same time run in one pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from finetune.evaluation.queries import BATCH_BLANKS, BATCH_TOKENS, Forward
from finetune.serving.compute import ComputeThread
from finetune.serving.shared_calls import SharedCalls

Call = tuple[Tensor, ...]  # input_ids, attention_mask, rows, cols and, of pairs, segments


class SharedForward:
    """A model's forward pass for many threads, called as the pass itself.

    Args:
        forward: (input_ids, attention_mask, rows, cols[, segments]) -> (M, …).
        compute: the thread that runs it.
        mergeable: calls that wait together run as one; else one after another.

    Attributes:
        calls: its calls, and how many there were.
        fp32_forward: the same of a pass in bf16 for what it cannot tell apart; None of others.
    """

    def __init__(self, forward: Forward, compute: ComputeThread, mergeable: bool = False):
        self._forward, self._mergeable = forward, mergeable
        self.calls: SharedCalls[Call, Tensor] = SharedCalls(compute, self._run, self._fit)
        exact = getattr(forward, "fp32_forward", None)
        self.fp32_forward = None if exact is None else SharedForward(exact, compute, mergeable)

    def __call__(self, *call: Tensor) -> Tensor:
        """Return the output (M, …) of one call. Raises CancelledError for a request that was given up."""
        return self.calls(call)

    @torch.no_grad()
    def _run(self, calls: Sequence[Call]) -> list[Tensor]:
        return [self._forward(*call) for call in calls]

    def _fit(self, calls: Sequence[Call]) -> bool:
        """Return whether calls fit into one pass, as the batches of `evaluation.queries` do."""
        if not self._mergeable:
            return False
        rows, width = sum(len(call[0]) for call in calls), max(call[0].shape[1] for call in calls)
        return rows * width <= BATCH_TOKENS and sum(len(call[2]) for call in calls) <= BATCH_BLANKS
