"""Log-probability queries: rows for a model that ask for log-probabilities of tokens at chosen positions.

They run in batches whose memory is bounded however many rows there are and however long they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from finetune.models.forward import TokenLogits
from finetune.models.heads import Seq2SeqLogits, SequenceLogits, SpanLogits, TaggingLogits, forward_of
from finetune.models.padding import padded, padded_width
from finetune.runtime.distributed import Distributed

BATCH_TOKENS = 4096  # padded tokens of a forward pass
BATCH_BLANKS = 512  # positions of a forward pass: their logits are (M, vocabulary)

PASSES = (TokenLogits, SequenceLogits, TaggingLogits, SpanLogits, Seq2SeqLogits)
Forward = Callable[..., Tensor]  # called with input_ids, attention_mask, rows, cols and, for pairs, segments


def as_forward(model: nn.Module | Forward) -> Forward:
    """Return the forward pass of a model at chosen positions; a forward pass is returned as it is."""
    if isinstance(model, nn.Module) and not isinstance(model, PASSES):
        return forward_of(model).eval()
    return model


@dataclass
class LogprobQuery:
    """One row for the model: at `positions[i]` the log-probabilities of the tokens `wanted[i]`.

    Of raw logits `wanted` may be empty: all of them.
    """

    ids: Sequence[int]
    positions: tuple[int, ...]
    wanted: tuple[tuple[int, ...], ...]
    softmax_over_candidates: bool = False  # softmax over `wanted` instead of the vocabulary
    raw_logits: bool = False  # logits, of a head that has no vocabulary
    segments: Sequence[int] = ()  # for a pair of sentences: 0 or 1, the sentence that each token belongs to
    results: list[list[float]] = field(default_factory=list)  # log-probabilities, shaped like `wanted`


@dataclass
class LogprobRunner:
    """Run queries through a model in batches.

    With several ranks each runs every size-th batch; then all ranks exchange the results.

    Args:
        forward: (input_ids, attention_mask, rows, cols[, segments]) -> logits (M, V), or (M,) of a head that
            gives one number.
        pad_id: id of the padding token.
        device: the model's device.
        world: ranks that share the batches; every rank gets all results.
    """

    forward: Forward
    pad_id: int
    device: torch.device | str = "cpu"
    world: Distributed | None = None

    def __call__(self, queries: Sequence[LogprobQuery]) -> None:
        """Fill in the `results` of the queries."""
        batches = batched(queries, lambda query: len(query.ids), _vocabulary_rows)
        count = len(batches)
        indices: Any = ((number, True) for number in range(count))
        if self.world:
            indices = self.world.rank_indices(count)
        results = [(number, self._run(batches[number])) for number, _ in indices]
        for number, of_batch in self.world.all_gather(results) if self.world else results:
            for query, result in zip(batches[number], of_batch, strict=True):
                query.results = result

    def _run(self, queries: list[LogprobQuery]) -> list[list[list[float]]]:
        """Return the results of one batch: of each query (positions, width of the widest `wanted`)."""
        input_ids, mask = padded([query.ids for query in queries], self.pad_id)
        rows = torch.tensor([row for row, query in enumerate(queries) for _ in query.positions])
        cols = torch.tensor([position for query in queries for position in query.positions])
        inputs = [input_ids, mask, rows, cols]
        if any(query.segments for query in queries):
            inputs.append(padded([query.segments or [0] * len(query.ids) for query in queries], 0)[0])
        logits = self.forward(*(tensor.to(self.device) for tensor in inputs)).float()  # (M, V)
        logits = logits[:, None] if logits.ndim == 1 else logits
        results, start = [], 0
        for query in queries:
            row_logits = logits[start : start + len(query.positions)]
            start += len(query.positions)
            if query.raw_logits and not query.wanted:
                results.append(row_logits.tolist())
                continue
            width = max(map(len, query.wanted))
            wanted = [[*tokens, *[0] * (width - len(tokens))] for tokens in query.wanted]
            picked = row_logits.gather(1, torch.tensor(wanted, device=row_logits.device))
            if not query.raw_logits:
                candidates = picked if query.softmax_over_candidates else row_logits
                picked = picked - candidates.logsumexp(-1, keepdim=True)
            results.append(picked.tolist())
        return results


def _vocabulary_rows(query: LogprobQuery) -> int:
    """Count the logit rows as wide as the vocabulary that a query takes; a small head's count as one."""
    return 1 if query.raw_logits else len(query.positions)


def batched(rows: Sequence, length: Callable, positions: Callable) -> list[list]:
    """Group rows of similar length, within BATCH_TOKENS padded tokens and BATCH_BLANKS positions a batch.

    Args:
        rows: any objects.
        length: returns the length of a row, in tokens.
        positions: number of positions whose logits a row needs.
    """
    batches: list[list] = []
    tokens = blanks = 0
    for row in sorted(rows, key=lambda row: -length(row)):
        width = padded_width(length(batches[-1][0])) if batches else 0  # the first is the longest
        tokens, blanks = tokens + width, blanks + positions(row)
        if not batches or tokens > BATCH_TOKENS or blanks > BATCH_BLANKS:
            batches.append([])
            tokens, blanks = padded_width(length(row)), positions(row)
        batches[-1].append(row)
    return batches
