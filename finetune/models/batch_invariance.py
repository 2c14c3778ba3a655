"""Whether a forward pass gives a row the same digits alone and beside others, tried on a few rows.

models/products.py and models/row_groups.py see to it for the families of models/encoder.py in fp32 on a CPU.
But they stand on libraries that choose their kernels by the processor, and other families run modules of
their own: so it is not promised but tried, once for each model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from finetune.models.merged_calls import Call, merge, split
from finetune.models.padding import MULTIPLE, padded

# Tokens of the rows, on either side of where kernels change; those of one merged call together. Models that
# are not invariant mostly fail at the first, which costs little.
LENGTHS = ((1, 9, 16, 31), (33, 2, 65, 127, 200, 400))
COUNTS = (1, 3, 17)  # positions that rows ask for, in turn


@torch.no_grad()
def is_batch_invariant(
    forward: Callable[..., Tensor],
    pad_id: int,
    vocab_size: int,
    device: torch.device | str,
    longest: int = 512,
) -> bool:
    """Return whether rows have the same digits alone and merged with others.

    Args:
        forward: as `heads.forward_of` returns it, in evaluation mode.
        pad_id: id of the padding token.
        vocab_size: rows are made of ids below it.
        device: the model's device.
        longest: tokens of the longest row that the model can read.
    """
    longest = max(longest - longest % MULTIPLE, 1)  # rows are padded to a MULTIPLE
    calls: list[Call] = []
    alone: list[Tensor] = []
    for lengths in LENGTHS:
        for length in lengths:
            call = _call(forward, min(length, longest), len(calls), (pad_id, vocab_size))
            moved: Any = [part if part is None else part.to(device) for part in call]
            calls.append(Call(*moved))
            alone.append(forward(*calls[-1]))
        together = split(forward(*merge(calls, pad_id)), calls, getattr(forward, "per_token", False))
        if not all(torch.equal(one, other) for one, other in zip(alone, together, strict=True)):
            return False
    return True


def _call(forward: Callable[..., Tensor], length: int, number: int, ids: tuple[int, int]) -> Call:
    """Return a call with one row of this length, the same at every time.

    Args:
        number: of the call; every third one has segments.
        ids: of the padding token, and of the end of the vocabulary.
    """
    pad_id, size = ids
    row = [(7919 * (at + 1) * (number + 2)) % size for at in range(length)]
    row = [(token + 1) % size if token == pad_id else token for token in row]
    input_ids, mask = padded([row], pad_id)
    segments = (torch.arange(input_ids.shape[1]) >= length // 2).long()[None] * mask
    cols = torch.arange(min(length, COUNTS[number % len(COUNTS)]))
    if not getattr(forward, "cols_are_tokens", True):
        cols = torch.zeros_like(cols)
    return Call(input_ids, mask, torch.zeros_like(cols), cols, segments if number % 3 == 2 else None)
