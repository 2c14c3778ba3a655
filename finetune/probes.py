"""Rows for a masked language model that ask for log-probabilities at chosen positions, run in batches whose
memory is bounded however many rows there are and however long they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .logits import BlankLogits
from .padding import padded, padded_width

BATCH_TOKENS = 4096  # padded tokens a forward pass
BATCH_BLANKS = 512  # positions a forward pass: their logits are (M, vocabulary)

Forward = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def as_forward(model: nn.Module | Forward) -> Forward:
    """The forward pass of a model at chosen positions."""
    plain = isinstance(model, nn.Module) and not isinstance(model, BlankLogits)
    return BlankLogits(model).eval() if plain else model


@dataclass
class Probe:
    """One row for the model: at `positions[i]` the log-probabilities of `wanted[i]` are asked for."""

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    wanted: tuple[tuple[int, ...], ...]
    among_wanted: bool = False  # softmax over `wanted` instead of the vocabulary
    results: list[list[float]] = field(default_factory=list)  # log-probabilities, like `wanted`


@dataclass
class Prober:
    """Puts probes through a model. Of several processes each takes every size-th batch; then they
    exchange."""

    forward: Forward
    pad_id: int
    device: torch.device | str = "cpu"
    world: object = None

    def __call__(self, probes: Sequence[Probe]) -> None:
        """Fills in `results`."""
        batches = batched(probes, lambda probe: len(probe.ids), lambda probe: len(probe.positions))
        world = self.world
        shares = world.shares(len(batches)) if world else ((number, True) for number in range(len(batches)))
        found = [(number, self._pass(batches[number])) for number, _ in shares]
        for number, results in world.gather(found) if world else found:
            for probe, result in zip(batches[number], results, strict=True):
                probe.results = result

    def _pass(self, probes: list[Probe]) -> list[list[list[float]]]:
        input_ids, mask = padded([probe.ids for probe in probes], self.pad_id)
        rows = torch.tensor([row for row, probe in enumerate(probes) for _ in probe.positions])
        cols = torch.tensor([at for probe in probes for at in probe.positions])
        inputs = (tensor.to(self.device) for tensor in (input_ids, mask, rows, cols))
        logits = self.forward(*inputs).float()  # (M, V)
        results, at = [], 0
        for probe in probes:
            own = logits[at : at + len(probe.positions)]
            at += len(probe.positions)
            width = max(map(len, probe.wanted))
            wanted = [[*tokens, *[0] * (width - len(tokens))] for tokens in probe.wanted]
            picked = own.gather(1, torch.tensor(wanted, device=own.device))  # (positions, width)
            scale = picked if probe.among_wanted else own
            results.append((picked - scale.logsumexp(-1, keepdim=True)).tolist())
        return results


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
