"""Pad token sequences into a (B, T) tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MULTIPLE = 8  # matrix units are fastest at widths that are multiples of it


def padded_width(longest: int) -> int:
    """Return the width of a tensor that holds a row of `longest` tokens, a MULTIPLE."""
    return -(-longest // MULTIPLE) * MULTIPLE


def padded(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Return input_ids and attention_mask, both (B, T); T is the longest row, rounded up to a MULTIPLE."""
    width = padded_width(max(map(len, rows)))
    input_ids = torch.tensor([[*row, *[pad_id] * (width - len(row))] for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    return input_ids, (torch.arange(width) < lengths[:, None]).long()
