"""A forward pass that requests share: those that wait at the same time run in one pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from finetune.evaluation.queries import BATCH_BLANKS, BATCH_TOKENS, Forward
from finetune.models.merged_calls import Call, merge, split
from finetune.serving.compute import ComputeThread
from finetune.serving.shared_calls import SharedCalls


class SharedForward:
    """A model's forward pass for many threads, called as the pass itself.

    Args:
        forward: (input_ids, attention_mask, rows, cols[, segments]) -> (M, …).
        compute: the thread that runs it.
        pad_id: id of the padding token.
        mergeable: calls that wait together run as one pass; else one after another.

    Attributes:
        calls: its calls, and how many there were.
        fp32_forward: the same of a pass in bf16 for what it cannot tell apart; None of others.
    """

    def __init__(self, forward: Forward, compute: ComputeThread, pad_id: int, mergeable: bool):
        self._forward, self._pad_id, self._mergeable = forward, pad_id, mergeable
        self._per_token: bool = getattr(forward, "per_token", False)
        self.calls: SharedCalls[Call, Tensor] = SharedCalls(compute, self._run, self._fit, _measure)
        exact = getattr(forward, "fp32_forward", None)
        self.fp32_forward = None if exact is None else SharedForward(exact, compute, pad_id, mergeable)

    def __call__(self, *call: Tensor) -> Tensor:
        """Return the output (M, …) of one call. Raises CancelledError for a request that was given up."""
        return self.calls(Call(*call))

    @torch.no_grad()
    def _run(self, calls: Sequence[Call]) -> list[Tensor]:
        if len(calls) == 1:
            return [self._forward(*calls[0])]
        return split(self._forward(*merge(calls, self._pad_id)), calls, self._per_token)

    def _fit(self, calls: Sequence[Call]) -> bool:
        """Return whether calls fit into one pass, as the batches of `evaluation.queries` do."""
        if not self._mergeable:
            return False
        return _measure(calls)[1] <= BATCH_TOKENS and sum(len(call.rows) for call in calls) <= BATCH_BLANKS


def _measure(calls: Sequence[Call]) -> tuple[int, int]:
    """Return the rows of a pass, and its tokens with their padding."""
    rows = sum(len(call.input_ids) for call in calls)
    return rows, rows * max(call.input_ids.shape[1] for call in calls)
