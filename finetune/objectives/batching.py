"""Examples become batches: alike lengths together, the same rows per optimizer step however it is cut.

An epoch is planned as a list of global batches, a pure function of (lengths, seed, epoch). How a global
batch is cut into ranks and micro batches changes memory and speed, never the sum of the gradient.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from finetune.models.padding import padded, padded_width

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
    segments: tuple[int, ...] = ()  # of a pair of sentences: 0 for the tokens of the first, 1 for the second
    importance: tuple[float, ...] = ()  # of each target, beside the others; () where they are equal

    @property
    def weights(self) -> list[float]:
        """Of each target in the loss."""
        share = 1.0 if self.by_token else 1.0 / len(self.positions)
        return [share * factor for factor in self.importance or [1.0] * len(self.positions)]


@dataclass(frozen=True)
class MultipleChoiceExample:
    """A question whose options compete, each read in a row of the model's: their scores are made of `cells`.

    A cell (option, row, position, token) is the log-probability of `token` at that position or, of a
    multiple-choice head, the row's one number; an option's score is the mean of its cells.
    """

    rows: tuple[tuple[int, ...], ...]  # token ids
    cells: tuple[tuple[int, int, int, int], ...]
    options: int
    answer: int
    row: str = ""  # id of the question
    by_token = False

    @property
    def ids(self) -> tuple[int, ...]:
        """The first row."""
        return self.rows[0]


class ExampleIndex(Sequence):
    """What is to be made of an epoch's rows, as (kind, row): made when asked for; there may be millions.

    Args:
        parts: a kind with the rows that are made so.
    """

    def __init__(self, *parts: tuple[str, Sequence[int]]):
        self._parts = parts

    def __len__(self) -> int:
        return sum(len(rows) for _, rows in self._parts)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        for kind, rows in self._parts:
            if index < len(rows):
                return kind, rows[index]
            index -= len(rows)


@dataclass(frozen=True)
class EpochPlan(Sequence):
    """The global batches of an epoch.

    Args:
        batches: of each, which of the entries.
    """

    entries: Sequence
    batches: list[Sequence[int]]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return EpochPlan(self.entries, self.batches[index])
        return [self.entries[at] for at in self.batches[index]]


@dataclass
class Batch:
    """B padded rows of length T with M targets, up to K candidates each."""

    input_ids: Tensor  # (B, T)
    attention_mask: Tensor  # (B, T): 0 is padding; of packed rows, the number of the document
    rows: Tensor  # (M,) row of each target
    cols: Tensor  # (M,) its position
    targets: Tensor  # (M,)
    # (M,) 1 / targets of its row: every example counts once; 1 where every target does; times its importance
    weights: Tensor
    # (M, K) token ids that compete; -1 pads, and fills the row when the whole vocabulary does
    candidates: Tensor
    num_targets: int  # rows, or targets, that count (rows that keep ranks in step do not)
    names: list[str]
    segments: Tensor | None = None  # (B, T), of pairs of sentences

    def to(self, device: torch.device) -> Batch:
        moved = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What a forward pass takes, see models/forward.py."""
        more = () if self.segments is None else (self.segments,)
        return (self.input_ids, self.attention_mask, self.rows, self.cols, *more)

    @property
    def tokens(self) -> int:
        return int((self.attention_mask > 0).sum())


@dataclass
class MultipleChoiceBatch(Batch):
    """Contests: M cells make the scores of Q questions with up to K options. `targets` (Q,) are the answers,
    `weights` (Q,).
    """

    wanted: Tensor | None = None  # (M,) token ids
    slots: Tensor | None = None  # (M,) question × K + option
    width: int = 0  # K


def collate(examples: Sequence[Example | MultipleChoiceExample | None], pad_id: int) -> Batch:
    """Examples as one batch. None is a row that weighs nothing, and keeps this rank in step with others."""
    real = [example for example in examples if example is not None]
    if real and isinstance(real[0], MultipleChoiceExample):
        return _collate_multiple_choice(examples, pad_id)
    stand_in = real[0] if real else Example((pad_id, pad_id), (0,), (0,))
    filled = [stand_in if example is None else example for example in examples]
    input_ids, attention_mask = padded([example.ids for example in filled], pad_id)
    if any(example.documents for example in filled):
        attention_mask = padded([example.documents or [1] * len(example.ids) for example in filled], 0)[0]
    widest = max(1, *(len(example.candidates) for example in filled))
    flat = [
        (row, position, target, 0.0 if given is None else weight, example.candidates)
        for row, (given, example) in enumerate(zip(examples, filled, strict=True))
        for position, target, weight in zip(example.positions, example.targets, example.weights, strict=True)
    ]
    segments = None
    if any(example.segments for example in filled):
        segments = padded([example.segments or [0] * len(example.ids) for example in filled], 0)[0]
    rows, cols, targets, weights, candidates = zip(*flat, strict=True)
    return Batch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        rows=torch.tensor(rows),
        cols=torch.tensor(cols),
        targets=torch.tensor(targets),
        weights=torch.tensor(weights),
        candidates=torch.tensor([[*choice, *[-1] * (widest - len(choice))] for choice in candidates]),
        num_targets=sum(len(example.positions) if example.by_token else 1 for example in real),
        names=[example.row for example in real],
        segments=segments,
    )


def _collate_multiple_choice(
    contests: Sequence[MultipleChoiceExample | None], pad_id: int
) -> MultipleChoiceBatch:
    real = [contest for contest in contests if contest is not None]
    filled = [contest or real[0] for contest in contests]
    width = max(contest.options for contest in filled)
    cells, at = [], 0
    for number, contest in enumerate(filled):
        cells += [(at + row, place, token, number * width + i) for i, row, place, token in contest.cells]
        at += len(contest.rows)
    input_ids, attention_mask = padded([ids for contest in filled for ids in contest.rows], pad_id)
    rows, cols, wanted, slots = torch.tensor(cells).T
    return MultipleChoiceBatch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        rows=rows,
        cols=cols,
        targets=torch.tensor([contest.answer for contest in filled]),
        weights=torch.tensor([0.0 if contest is None else 1.0 for contest in contests]),
        candidates=torch.empty(0, 1, dtype=torch.long),
        num_targets=len(real),
        names=[contest.row for contest in real],
        wanted=wanted,
        slots=slots,
        width=width,
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


def split_micro_batches(
    batch: Sequence[int], rank: int, world_size: int, micro_batches: int
) -> list[list[int | None]]:
    """This rank's share of a global batch as `micro_batches` parts, equally many on every rank.

    A batch too small to give every part a row (the last of an epoch) is filled up with None.
    """
    mine: list[int | None] = list(batch[rank::world_size])
    mine += [None] * (max(micro_batches, -(-len(batch) // world_size)) - len(mine))
    size = -(-len(mine) // micro_batches)
    parts = [mine[i * size : (i + 1) * size] for i in range(micro_batches)]
    return [part or [None] for part in parts]


def split_by_tokens(
    batch: Sequence, length: Callable[[object], int], rank: int, world_size: int, most: int
) -> list[list]:
    """This rank's share of a global batch, rows of like length together, in as few parts as hold `most`
    tokens with padding (a single row may be longer); equally many on every rank, and filled up with None.

    Args:
        length: of a row, in tokens.
    """
    shares = [_within(sorted(batch[at::world_size], key=length), length, most) for at in range(world_size)]
    mine = shares[rank]
    return mine + [[None]] * (max(map(len, shares)) - len(mine))


def _within(rows: Sequence, length: Callable, most: int) -> list[list]:
    """Sorted rows in parts within `most` tokens. The shortest rows come first, and the parts are filled from
    the longest, so that what is left over is short.
    """
    parts: list[list] = []
    for row in reversed(rows):
        if not parts or (len(parts[-1]) + 1) * padded_width(length(parts[-1][0])) > most:
            parts.append([])
        parts[-1].append(row)
    return parts[::-1]
