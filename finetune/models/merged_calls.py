"""Several calls of a forward pass as one: their rows stand under one another, padded to one width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Call(NamedTuple):
    """Arguments of a forward pass at M positions, in its order; see `forward.TokenLogits`.

    Attributes:
        input_ids, attention_mask: (B, T).
        rows, cols: (M,).
        segments: (B, T); None where all tokens are of segment 0.
    """

    input_ids: Tensor
    attention_mask: Tensor
    rows: Tensor
    cols: Tensor
    segments: Tensor | None = None


def merge(calls: Sequence[Call], pad_id: int) -> Call:
    """Return one call that asks for what all of these ask for, in their order.

    Args:
        calls: at least one, all on one device.
        pad_id: fills rows that are shorter than the longest.
    """
    width = max(call.input_ids.shape[1] for call in calls)
    starts, start = [], 0
    for call in calls:
        starts.append(start)
        start += len(call.input_ids)

    def joined(parts: Sequence[Tensor], filler: int) -> Tensor:
        return torch.cat([functional.pad(part, (0, width - part.shape[1]), value=filler) for part in parts])

    segments = None
    if any(call.segments is not None for call in calls):
        given = [
            torch.zeros_like(call.input_ids) if call.segments is None else call.segments for call in calls
        ]
        segments = joined(given, 0)
    return Call(
        joined([call.input_ids for call in calls], pad_id),
        joined([call.attention_mask for call in calls], 0),
        torch.cat([call.rows + begin for call, begin in zip(calls, starts, strict=True)]),
        torch.cat([call.cols for call in calls]),
        segments,
    )


def split(output: Tensor, calls: Sequence[Call], per_token: bool = False) -> list[Tensor]:
    """Return the output of each call from that of the merged one.

    Args:
        output: (M, …) of the merged call.
        calls: as they were merged.
        per_token: the second dimension of the output is T of the merged call, as that of `heads.SpanLogits`;
            each call gets its own T back.
    """
    parts = output.split([len(call.rows) for call in calls])
    if not per_token:
        return list(parts)
    return [part[:, : call.input_ids.shape[1]] for part, call in zip(parts, calls, strict=True)]
