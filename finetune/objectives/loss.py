"""Losses of a batch from its logits, and the sums that ranks add up."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from finetune.objectives.batching import Batch, MultipleChoiceBatch


def token_losses(logits: Tensor, batch: Batch) -> Tensor:
    """Return the negative log-likelihood of each target, in nats, fp32. logits (M, V) -> (M,).

    Where candidates are given, only they compete: softmax over the letters of the options, not over the
    vocabulary. In a `MultipleChoiceBatch` the options do, by their scores: one target a question, (Q,).
    Logits (M,) are each the log-odds of a yes.
    """
    logits = logits.float()
    if isinstance(batch, MultipleChoiceBatch):
        return functional.cross_entropy(option_scores(logits, batch), batch.targets, reduction="none")
    if logits.ndim == 1:
        return functional.binary_cross_entropy_with_logits(logits, batch.targets.float(), reduction="none")
    choosing = batch.candidates[:, 0] >= 0  # (M,)
    if not choosing.any():  # no copy of what may be 150,000 logits wide
        return functional.cross_entropy(logits, batch.targets, reduction="none")
    losses = logits.new_zeros(len(logits))
    if choosing.any():
        among = batch.candidates[choosing]  # (N, K)
        scores = logits[choosing].gather(1, among.clamp_min(0)).masked_fill(among < 0, float("-inf"))
        losses[choosing] = functional.cross_entropy(scores, batch.targets[choosing], reduction="none")
    if not choosing.all():
        losses[~choosing] = functional.cross_entropy(
            logits[~choosing], batch.targets[~choosing], reduction="none"
        )
    return losses


def option_scores(logits: Tensor, batch: MultipleChoiceBatch) -> Tensor:
    """Return the scores (Q, K) of the options of questions; -inf where a question has fewer than K.

    Args:
        logits: (M, V), or (M, 1) of a multiple-choice head.
        batch: Q questions with M cells.
    """
    if logits.shape[1] == 1:
        cells = logits[:, 0]
    else:
        cells = logits.gather(1, batch.wanted[:, None])[:, 0] - logits.logsumexp(1)
    places = len(batch.targets) * batch.width
    counts = cells.new_zeros(places).index_add(0, batch.slots, torch.ones_like(cells))
    sums = cells.new_zeros(places).index_add(0, batch.slots, cells)
    means = sums / counts.clamp_min(1)
    return means.masked_fill(counts == 0, float("-inf")).view(-1, batch.width)


@torch.no_grad()
def correct(logits: Tensor, batch: Batch) -> Tensor:
    """Return how far each target is predicted, 0 to 1: 1/k where it is one of k that share the highest.

    Shaped as the losses of `token_losses`.
    """
    if isinstance(batch, MultipleChoiceBatch):
        return _share_of_best(option_scores(logits.float(), batch), batch.targets)
    if logits.ndim == 1:
        return ((logits > 0) == batch.targets.bool()).float()
    choosing = batch.candidates[:, 0] >= 0
    by_vocabulary = _share_of_best(logits, batch.targets)
    if not choosing.any():
        return by_vocabulary
    among = logits.gather(1, batch.candidates.clamp_min(0)).masked_fill(batch.candidates < 0, float("-inf"))
    by_candidate = _share_of_best(among, batch.targets.clamp_max(among.shape[1] - 1))
    return torch.where(choosing, by_candidate, by_vocabulary)


def _share_of_best(scores: Tensor, targets: Tensor) -> Tensor:
    """Return 1/k for a target that shares the highest score with k-1 others, else 0; (M, K), (M,) -> (M,)."""
    best = scores == scores.max(1, keepdim=True).values
    return best.gather(1, targets[:, None])[:, 0] / best.sum(1)


def summed_loss(losses: Tensor, batch: Batch) -> Tensor:
    """Return the batch's share of the loss: the sum of each target's, times its weight.

    It is divided once, by the number of targets of the whole global batch (or validation set), so no batch
    boundary changes it.
    """
    return (losses * batch.weights).sum()


def loss_stats(losses: Tensor, batch: Batch) -> Tensor:
    """Return (num_targets, summed loss, tokens) in float64, to be added up over batches and ranks."""
    return torch.stack(
        [
            torch.tensor(float(batch.num_targets)),
            summed_loss(losses.detach(), batch).cpu(),
            torch.tensor(float(batch.tokens)),
        ]
    ).double()
