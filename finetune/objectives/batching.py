"""Examples and their batches: similar lengths together, the same rows per optimizer step however it is cut.

An epoch is planned as a list of global batches, a pure function of (lengths, seed, epoch). How a global
batch is cut into ranks and micro batches changes memory and speed, never the sum of the gradient.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, overload

import torch
from torch import Tensor

from finetune.models.padding import padded, padded_width

Row = TypeVar("Row")
SORT_WINDOW = 32  # global batches sorted by length together: little padding, and still a shuffle


@dataclass(frozen=True)
class Example:
    """One training example: the row the model reads and the targets it must predict.

    `targets[i]` is the target at `positions[i]`: a token id or, when `candidates` is given, an index into
    `candidates` (the only token ids that compete there).
    """

    ids: Sequence[int]
    positions: tuple[int, ...]
    targets: tuple[int, ...]
    candidates: tuple[int, ...] = ()
    row: str = ""  # id of the question or statement, for messages
    by_token: bool = False  # every target counts once; else the example does, however many it has
    documents: tuple[int, ...] = ()  # in a packed row: the number of each token's document, from 1
    segments: Sequence[int] = ()  # for a pair of sentences: 0 for the tokens of the first, 1 for the second
    importance: tuple[float, ...] = ()  # relative weight of each target; () where they are equal
    # of an encoder-decoder: what its decoder reads; positions are then its tokens
    decoder_ids: Sequence[int] = ()

    @property
    def weights(self) -> list[float]:
        """Weight of each target in the loss."""
        share = 1.0 if self.by_token else 1.0 / len(self.positions)
        return [share * factor for factor in self.importance or [1.0] * len(self.positions)]


@dataclass(frozen=True)
class MultipleChoiceExample:
    """A question whose options compete: each is in a row of the model's input, and cells make its score.

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


class ExampleIndex(Sequence[tuple[str, int]]):
    """Keys (kind, row) of an epoch's examples, made when they are read; there may be millions.

    Args:
        parts: a kind of example with the rows that become such examples.
    """

    def __init__(self, *parts: tuple[str, Sequence[int]]):
        self._parts = parts

    def __len__(self) -> int:
        return sum(len(rows) for _, rows in self._parts)

    @overload
    def __getitem__(self, index: int) -> tuple[str, int]: ...

    @overload
    def __getitem__(self, index: slice) -> list[tuple[str, int]]: ...

    def __getitem__(self, index: int | slice) -> tuple[str, int] | list[tuple[str, int]]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        for kind, rows in self._parts:
            if index < len(rows):
                return kind, rows[index]
            index -= len(rows)
        raise AssertionError("an index of a range lies in one of the parts")


@dataclass(frozen=True)
class EpochPlan(Sequence):
    """The global batches of an epoch.

    Args:
        entries: keys of the epoch's examples.
        batches: for each batch, the indices of its entries.
    """

    entries: Sequence
    batches: Sequence[Sequence[int]]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return EpochPlan(self.entries, self.batches[index])
        return [self.entries[at] for at in self.batches[index]]


@dataclass
class Batch:
    """Batch of B padded rows of length T with M targets, up to K candidates each."""

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
    decoder_ids: Tensor | None = None  # (B, S), what the decoder of an encoder-decoder reads

    def to(self, device: torch.device) -> Batch:
        """Return the batch with its tensors on a device."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Arguments of a forward pass, see models/forward.py."""
        inputs = self.input_ids, self.attention_mask, self.rows, self.cols
        if self.decoder_ids is not None:
            return (*inputs, self.segments, self.decoder_ids)  # type: ignore[return-value]  # None: no segments
        return inputs if self.segments is None else (*inputs, self.segments)

    @property
    def tokens(self) -> int:
        """Number of tokens, padding left out."""
        return int((self.attention_mask > 0).sum())


def _no_indices() -> Tensor:
    return torch.empty(0, dtype=torch.long)


@dataclass
class MultipleChoiceBatch(Batch):
    """Batch of Q questions with up to K options, whose scores are made of M cells.

    `targets` (Q,) are the answers, `weights` (Q,).
    """

    wanted: Tensor = field(default_factory=_no_indices)  # (M,) token ids
    slots: Tensor = field(default_factory=_no_indices)  # (M,) question × K + option
    width: int = 0  # K


def collate(examples: Sequence[Example | MultipleChoiceExample | None], pad_id: int) -> Batch:
    """Collate examples into one batch.

    Args:
        examples: all of one class; None is a row of no weight, which keeps this rank in step with others.
        pad_id: id of the padding token.
    """
    if any(isinstance(example, MultipleChoiceExample) for example in examples):
        questions = [
            example for example in examples if example is None or isinstance(example, MultipleChoiceExample)
        ]
        return _collate_multiple_choice(questions, pad_id)
    real = [example for example in examples if isinstance(example, Example)]
    stand_in = real[0] if real else Example((pad_id, pad_id), (0,), (0,))
    filled = [example if isinstance(example, Example) else stand_in for example in examples]
    input_ids, attention_mask = padded([example.ids for example in filled], pad_id)
    if any(example.documents for example in filled):
        attention_mask = padded([example.documents or [1] * len(example.ids) for example in filled], 0)[0]
    widest = max(1, *(len(example.candidates) for example in filled))
    flat = [
        (row, position, target, 0.0 if original is None else weight, example.candidates)
        for row, (original, example) in enumerate(zip(examples, filled, strict=True))
        for position, target, weight in zip(example.positions, example.targets, example.weights, strict=True)
    ]
    segments = None
    if any(example.segments for example in filled):
        segments = padded([example.segments or [0] * len(example.ids) for example in filled], 0)[0]
    decoder_ids = None
    if any(example.decoder_ids for example in filled):
        decoder_ids = padded([example.decoder_ids or [pad_id] for example in filled], pad_id)[0]
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
        decoder_ids=decoder_ids,
    )


def _collate_multiple_choice(
    examples: Sequence[MultipleChoiceExample | None], pad_id: int
) -> MultipleChoiceBatch:
    real = [example for example in examples if example is not None]
    filled = [example or real[0] for example in examples]
    width = max(example.options for example in filled)
    cells, first_row = [], 0
    for number, example in enumerate(filled):
        cells += [
            (first_row + row, position, token, number * width + option)
            for option, row, position, token in example.cells
        ]
        first_row += len(example.rows)
    input_ids, attention_mask = padded([ids for example in filled for ids in example.rows], pad_id)
    rows, cols, wanted, slots = torch.tensor(cells).T
    return MultipleChoiceBatch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        rows=rows,
        cols=cols,
        targets=torch.tensor([example.answer for example in filled]),
        weights=torch.tensor([0.0 if example is None else 1.0 for example in examples]),
        candidates=torch.empty(0, 1, dtype=torch.long),
        num_targets=len(real),
        names=[example.row for example in real],
        wanted=wanted,
        slots=slots,
        width=width,
    )


def plan_epoch(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Plan the global batches of an epoch: every row once, similar lengths together, in random order."""
    rng = random.Random(f"plan:{seed}:{epoch}")
    order = list(range(len(lengths)))
    rng.shuffle(order)
    window = SORT_WINDOW * batch_size
    batches = []
    for start in range(0, len(order), window):
        by_length = sorted(order[start : start + window], key=lambda row: lengths[row])
        batches += [by_length[i : i + batch_size] for i in range(0, len(by_length), batch_size)]
    rng.shuffle(batches)
    return batches


def split_micro_batches(
    batch: Sequence[Row], rank: int, world_size: int, micro_batches: int
) -> list[list[Row | None]]:
    """Split this rank's share of a global batch into `micro_batches` parts, as many on every rank.

    A batch too small to give every part a row (the last of an epoch) is filled up with None.
    """
    rows: list[Row | None] = list(batch[rank::world_size])
    rows += [None] * (max(micro_batches, -(-len(batch) // world_size)) - len(rows))
    size = -(-len(rows) // micro_batches)
    parts = [rows[i * size : (i + 1) * size] for i in range(micro_batches)]
    return [part or [None] for part in parts]


def split_by_tokens(
    batch: Sequence, length: Callable[[Any], int], rank: int, world_size: int, most: int
) -> list[list]:
    """Split this rank's share of a global batch into as few parts as `most` tokens allow.

    Rows of similar length stand together; there are as many parts on every rank, filled up with None.

    Args:
        batch: the global batch.
        length: returns the length of a row, in tokens.
        rank: this one.
        world_size: number of ranks.
        most: tokens of a part, with padding (a single row may be longer).
    """
    parts = [_within(sorted(batch[at::world_size], key=length), length, most) for at in range(world_size)]
    return parts[rank] + [[None]] * (max(map(len, parts)) - len(parts[rank]))


def _within(rows: Sequence, length: Callable, most: int) -> list[list]:
    """Split sorted rows into parts within `most` tokens, the shortest rows first.

    The parts are filled from the longest rows, so that what is left over is short.
    """
    parts: list[list] = []
    for row in reversed(rows):
        if not parts or (len(parts[-1]) + 1) * padded_width(length(parts[-1][0])) > most:
            parts.append([])
        parts[-1].append(row)
    return parts[::-1]
