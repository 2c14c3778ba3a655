"""Rows for a masked language model that ask for log-probabilities at chosen positions, run in batches whose
memory is bounded however many rows there are and however long they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from finetune.models.forward import SequenceLogits, TokenLogits, forward_of
from finetune.models.padding import padded, padded_width

BATCH_TOKENS = 4096  # padded tokens a forward pass
BATCH_BLANKS = 512  # positions a forward pass: their logits are (M, vocabulary)

Forward = Callable[..., Tensor]  # of input_ids, attention_mask, rows, cols, and segments where there are any


def as_forward(model: nn.Module | Forward) -> Forward:
    """The forward pass of a model at chosen positions."""
    plain = isinstance(model, nn.Module) and not isinstance(model, (TokenLogits, SequenceLogits))
    return forward_of(model).eval() if plain else model


@dataclass
class LogprobQuery:
    """One row for the model: at `positions[i]` the log-probabilities of `wanted[i]` are asked for."""

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    wanted: tuple[tuple[int, ...], ...]
    among_wanted: bool = False  # softmax over `wanted` instead of the vocabulary
    as_they_are: bool = False  # logits, of a head that has no vocabulary
    segments: tuple[int, ...] = ()  # of a pair of sentences: which one each token is of
    results: list[list[float]] = field(default_factory=list)  # log-probabilities, like `wanted`


@dataclass
class LogprobRunner:
    """Puts probes through a model. Of several processes each takes every size-th batch; then they
    exchange.
    """

    forward: Forward
    pad_id: int
    device: torch.device | str = "cpu"
    world: object = None

    def __call__(self, probes: Sequence[LogprobQuery]) -> None:
        """Fills in `results`."""
        batches = batched(probes, lambda probe: len(probe.ids), _blanks)
        world = self.world
        count = len(batches)
        shares = world.rank_indices(count) if world else ((number, True) for number in range(count))
        found = [(number, self._pass(batches[number])) for number, _ in shares]
        for number, results in world.all_gather(found) if world else found:
            for probe, result in zip(batches[number], results, strict=True):
                probe.results = result

    def _pass(self, probes: list[LogprobQuery]) -> list[list[list[float]]]:
        input_ids, mask = padded([probe.ids for probe in probes], self.pad_id)
        rows = torch.tensor([row for row, probe in enumerate(probes) for _ in probe.positions])
        cols = torch.tensor([at for probe in probes for at in probe.positions])
        inputs = [input_ids, mask, rows, cols]
        if any(probe.segments for probe in probes):
            inputs.append(padded([probe.segments or [0] * len(probe.ids) for probe in probes], 0)[0])
        logits = self.forward(*(tensor.to(self.device) for tensor in inputs)).float()  # (M, V)
        logits = logits[:, None] if logits.ndim == 1 else logits
        results, at = [], 0
        for probe in probes:
            own = logits[at : at + len(probe.positions)]
            at += len(probe.positions)
            width = max(map(len, probe.wanted))
            wanted = [[*tokens, *[0] * (width - len(tokens))] for tokens in probe.wanted]
            picked = own.gather(1, torch.tensor(wanted, device=own.device))  # (positions, width)
            if not probe.as_they_are:
                scale = picked if probe.among_wanted else own
                picked = picked - scale.logsumexp(-1, keepdim=True)
            results.append(picked.tolist())
        return results


def _blanks(probe: LogprobQuery) -> int:
    """Rows of a vocabulary's width that a probe takes; a head's few numbers count as one."""
    return 1 if probe.as_they_are else len(probe.positions)


def batched(rows: Sequence, length: Callable, asked: Callable) -> list[list]:
    """Rows of alike length together, within BATCH_TOKENS padded tokens and BATCH_BLANKS positions."""
    batches: list[list] = []
    tokens = blanks = 0
    for row in sorted(rows, key=lambda row: -length(row)):
        width = padded_width(length(batches[-1][0])) if batches else 0  # the first is the longest
        tokens, blanks = tokens + width, blanks + asked(row)
        if not batches or tokens > BATCH_TOKENS or blanks > BATCH_BLANKS:
            batches.append([])
            tokens, blanks = padded_width(length(row)), asked(row)
        batches[-1].append(row)
    return batches
