"""Rows of unequal length as one rectangle."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MULTIPLE = 8  # matrix units like widths that are multiples of it


def padded_width(longest: int) -> int:
    """The width of a rectangle that holds a row of `longest` tokens."""
    return -(-longest // MULTIPLE) * MULTIPLE


def padded(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """input_ids and attention_mask, both (B, T); T is the longest row, rounded up to a MULTIPLE."""
    width = padded_width(max(map(len, rows)))
    input_ids = torch.tensor([[*row, *[pad_id] * (width - len(row))] for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    return input_ids, (torch.arange(width) < lengths[:, None]).long()
