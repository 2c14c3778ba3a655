"""Examples become batches: alike lengths together, the same rows per optimizer step however it is cut.

An epoch is planned as a list of global batches, a pure function of (lengths, seed, epoch). How a global
batch is cut into ranks and micro batches changes memory and speed, never the sum of the gradient.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .padding import padded

SORT_WINDOW = 32  # global batches sorted by length together: little padding, and still a shuffle


@dataclass(frozen=True)
class Example:
    """What the model sees and what it must say.

    `targets[i]` is wanted at `positions[i]`: a token id or, when `candidates` is given, an index into
    `candidates` (the only token ids that compete there).
    """

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    targets: tuple[int, ...]
    candidates: tuple[int, ...] = ()
    row: str = ""  # id of the question or statement, for messages
    by_token: bool = False  # every target counts once; else the example does, however many it has
    documents: tuple[int, ...] = ()  # of a packed row: the number of each token's document, from 1

    @property
    def weight(self) -> float:
        """Of each target in the loss."""
        return 1.0 if self.by_token else 1.0 / len(self.positions)


@dataclass
class Batch:
    """B padded rows of length T with M targets, up to K candidates each."""

    input_ids: Tensor  # (B, T)
    attention_mask: Tensor  # (B, T): 0 is padding; of packed rows, the number of the document
    rows: Tensor  # (M,) row of each target
    cols: Tensor  # (M,) its position
    targets: Tensor  # (M,)
    weights: Tensor  # (M,) 1 / targets of its row: every example counts once; 1 where every target does
    # (M, K) token ids that compete; -1 pads, and fills the row when the whole vocabulary does
    candidates: Tensor
    mass: int  # sum of the weights: rows, or targets, that count (rows that keep ranks in step have none)
    names: list[str]

    def to(self, device: torch.device) -> Batch:
        moved = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return Batch(**{**vars(self), **moved})

    @property
    def tokens(self) -> int:
        return int((self.attention_mask > 0).sum())


def collate(examples: Sequence[Example | None], pad_id: int) -> Batch:
    """Examples as one batch. None is a row that weighs nothing, and keeps this rank in step with others."""
    real = [example for example in examples if example is not None]
    stand_in = real[0] if real else Example((pad_id, pad_id), (0,), (0,))
    filled = [stand_in if example is None else example for example in examples]
    input_ids, attention_mask = padded([example.ids for example in filled], pad_id)
    if any(example.documents for example in filled):
        attention_mask = padded([example.documents or [1] * len(example.ids) for example in filled], 0)[0]
    widest = max(1, *(len(example.candidates) for example in filled))
    flat = [
        (row, position, target, 0.0 if given is None else example.weight, example.candidates)
        for row, (given, example) in enumerate(zip(examples, filled, strict=True))
        for position, target in zip(example.positions, example.targets, strict=True)
    ]
    rows, cols, targets, weights, candidates = zip(*flat, strict=True)
    return Batch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        rows=torch.tensor(rows),
        cols=torch.tensor(cols),
        targets=torch.tensor(targets),
        weights=torch.tensor(weights),
        candidates=torch.tensor([[*choice, *[-1] * (widest - len(choice))] for choice in candidates]),
        mass=sum(len(example.positions) if example.by_token else 1 for example in real),
        names=[example.row for example in real],
    )


def plan_epoch(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """The global batches of an epoch: every row once, alike lengths together, batches in random order."""
    rng = random.Random(f"plan:{seed}:{epoch}")
    order = list(range(len(lengths)))
    rng.shuffle(order)
    window = SORT_WINDOW * batch_size
    batches = []
    for start in range(0, len(order), window):
        alike = sorted(order[start : start + window], key=lambda row: lengths[row])
        batches += [alike[i : i + batch_size] for i in range(0, len(alike), batch_size)]
    rng.shuffle(batches)
    return batches


def cut(batch: Sequence[int], rank: int, world_size: int, micro_batches: int) -> list[list[int | None]]:
    """This rank's share of a global batch as `micro_batches` parts, equally many on every rank.

    A batch too small to give every part a row (the last of an epoch) is filled up with None.
    """
    mine: list[int | None] = list(batch[rank::world_size])
    mine += [None] * (max(micro_batches, -(-len(batch) // world_size)) - len(mine))
    size = -(-len(mine) // micro_batches)
    parts = [mine[i * size : (i + 1) * size] for i in range(micro_batches)]
    return [part or [None] for part in parts]
