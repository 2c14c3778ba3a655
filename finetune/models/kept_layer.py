"""Keys and values of a layer whose batch changes: rows join it and leave it between two steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.cache_utils import DynamicLayer

RESERVED = 64  # tokens that memory is kept for beyond those that are there


def left_padded(tensor: Tensor, length: int, dim: int, value: float = 0) -> Tensor:
    """Return a tensor with `value` before its first element, so that it has `length` along `dim`."""
    missing = length - tensor.shape[dim]
    return functional.pad(tensor, [0, 0] * (tensor.ndim - 1 - dim) + [missing, 0], value=value)


class KeptLayer(DynamicLayer):
    """Keys and values (B, heads, T, size) of a layer, in memory that is reserved ahead of the tokens.

    A new token is written into its place, where `DynamicLayer` copies all that is there.
    """

    keys: Tensor
    values: Tensor
    _reserved: tuple[Tensor, Tensor]
    _begin: int  # of `keys` and `values` in what is reserved

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Begin without a token."""
        super().lazy_initialization(key_states, value_states)
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self._reserved, self._begin = (self.keys, self.values), 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values of new tokens and return all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        new_tokens = key_states.shape[2]
        if self._begin + self.keys.shape[2] + new_tokens > self._reserved[0].shape[2]:
            self._keep(self.keys, self.values, new_tokens + RESERVED)
        end = self._begin + self.keys.shape[2]
        new_end = end + new_tokens
        for held, new in zip(self._reserved, (key_states, value_states), strict=True):
            held[:, :, end:new_end] = new
        self.keys, self.values = (held[:, :, self._begin : new_end] for held in self._reserved)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Continue with these rows of the batch."""
        if self.is_initialized:
            self._keep(self.keys[beam_idx], self.values[beam_idx], RESERVED)

    def drop_first(self, columns: int) -> None:
        """Forget the first tokens of every row."""
        self._begin += columns
        self.keys, self.values = self.keys[:, :, columns:], self.values[:, :, columns:]

    def join(self, other: KeptLayer) -> None:
        """Append the rows of another layer; the last tokens of both stand in the same column."""
        length = max(self.keys.shape[2], other.keys.shape[2])
        pairs = (self.keys, other.keys), (self.values, other.values)
        keys, values = (torch.cat([left_padded(part, length, 2) for part in pair]) for pair in pairs)
        self._keep(keys, values, RESERVED)

    def _keep(self, keys: Tensor, values: Tensor, spare: int) -> None:
        """Move keys and values to new memory with `spare` places behind them."""
        length = keys.shape[2]
        keys, values = (functional.pad(part, (0, 0, 0, spare)) for part in (keys, values))
        self._reserved, self._begin = (keys, values), 0
        self.keys, self.values = keys[:, :, :length], values[:, :, :length]
