"""Attention in fp32 on a CPU whose digits do not depend on the other rows of a batch.

The kernels choose the order of their sums by the shape of the matrices. So every row attends in a rectangle
whose width follows from the row alone, together with the rows that have the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

# Close enough that little padding is computed, and few enough that a batch has few groups. Multiples of 16
# keep all rows of fp32 numbers on the same 64-byte alignment, which kernels look at too.
WIDTHS = (16, 32, 64, 96, 128, 192, 256, 320, 384, 448, 512)
STEP = 128  # between wider ones
FEW = 8  # slots for the queries of a row with few: kernels treat fewer than six differently


def canonical_width(count: int) -> int:
    """Return the width of the rectangle in which a row of `count` tokens attends."""
    return next((width for width in WIDTHS if count <= width), -(-count // STEP) * STEP)


class _Group(NamedTuple):
    """R rows with Q slots for queries and W for keys.

    Attributes:
        size: R.
        queries: (R · Q,) number of the query in each slot; None for all, in their order.
        keys: (R · W,) number of the token in each slot; None for all, in their order.
        bias: (R, 1, 1, W), -inf where a slot holds no token.
    """

    size: int
    queries: Tensor | None
    keys: Tensor | None
    bias: Tensor


class RowGroups:
    """The rows of a batch in groups of equal width, each of which attends in one call.

    A slot without a token of its own repeats one of the same row, so that no row meets another one's numbers.

    Args:
        real: (B, T), True at tokens that are attended to.
        numbers: (B · T,) number of the token in each cell; None where it is the number of the cell.
        cells: (N,) cell of each token, ascending; None as for `numbers`.
        wanted: (U,) cells of the queries, ascending; None for those of all N tokens.
    """

    def __init__(
        self, real: Tensor, numbers: Tensor | None, cells: Tensor | None, wanted: Tensor | None = None
    ):
        self._real, self._numbers = real, numbers
        size, length = real.shape
        widths = [canonical_width(last) for last in (real * torch.arange(1, length + 1)).amax(1).tolist()]
        self._groups: list[_Group] = []
        self._order: Tensor | None = None  # (U,) place of each query in the slots of all groups
        is_whole = cells is None and set(widths) == {length}  # rows that fill one rectangle
        if wanted is not None:
            self._group_queries(widths, wanted, is_whole)
        elif is_whole:
            self._groups.append(_Group(size, None, None, _bias(real)))
        else:
            self._group_tokens(widths, torch.arange(size * length) if cells is None else cells)

    def _group_tokens(self, widths: list[int], cells: Tensor) -> None:
        """Form groups in which every token attends to its row."""
        starts = torch.zeros(
            len(widths), dtype=torch.long
        )  # (B,) place of each row in the slots of all groups
        start = 0
        for width, rows in _classes(widths).items():
            starts[rows] = start + width * torch.arange(len(rows))
            start += width * len(rows)
            keys, bias = self._keys(rows, width)
            self._groups.append(_Group(len(rows), keys, keys, bias))
        row = cells // self._real.shape[1]
        # a token of padding may stand beyond its row's width: nothing reads it
        columns = torch.minimum(cells % self._real.shape[1], torch.tensor(widths)[row] - 1)
        self._order = starts[row] + columns

    def _group_queries(self, widths: list[int], wanted: Tensor, is_whole: bool) -> None:
        """Form groups in which the queries in some cells (U,) attend to their rows."""
        row = wanted // self._real.shape[1]
        counts = torch.bincount(row, minlength=len(widths))
        firsts = counts.cumsum(0) - counts  # (B,) number of each row's first query
        slots = [canonical_width(count) if count > FEW else FEW * (count > 0) for count in counts.tolist()]
        starts = torch.zeros_like(firsts)
        start = 0
        for (width, queries), rows in _classes([*zip(widths, slots, strict=True)]).items():
            if not queries:
                continue
            starts[rows] = start + queries * torch.arange(len(rows))
            start += queries * len(rows)
            slot = torch.minimum(torch.arange(queries), counts[rows, None] - 1)
            whole = is_whole and len(rows) == len(widths)
            keys, bias = (None, _bias(self._real)) if whole else self._keys(rows, width)
            self._groups.append(_Group(len(rows), (firsts[rows, None] + slot).flatten(), keys, bias))
        self._order = starts[row] + torch.arange(len(wanted)) - firsts[row]

    def _keys(self, rows: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Return the number (R · W,) of the token in each slot of these rows, and the bias of the slots."""
        length = self._real.shape[1]
        columns = torch.arange(width)
        real = self._real[rows]
        inside = real[:, columns.clamp(max=length - 1)] & (columns < length)
        own = real.int().argmax(1, keepdim=True)  # a token of the row
        cells = (rows[:, None] * length + torch.where(inside, columns, own)).flatten()
        return (cells if self._numbers is None else self._numbers[cells]), _bias(inside)

    def __call__(self, attention: Any, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Compute multi-head attention of queries (U, H) to keys and values (N, H) -> (U, H).

        Args:
            attention: transformers' module, for its heads and its scale.
        """
        heads, width = attention.num_attention_heads, queries.shape[1]
        found = []
        for group in self._groups:
            parts = [
                (part if index is None else part.index_select(0, index))
                .view(group.size, -1, heads, width // heads)
                .transpose(1, 2)
                for part, index in ((queries, group.queries), (keys, group.keys), (values, group.keys))
            ]
            context = functional.scaled_dot_product_attention(
                parts[0], parts[1], parts[2], attn_mask=group.bias, scale=attention.scaling
            )  # (R, heads, Q, h)
            found.append(context.transpose(1, 2).reshape(-1, width))
        joined = found[0] if len(found) == 1 else torch.cat(found)
        return joined if self._order is None else joined.index_select(0, self._order)


def _classes(shapes: Sequence[Any]) -> dict[Any, Tensor]:
    """Return the numbers of the rows of each shape."""
    found: dict[Any, list[int]] = {}
    for row, shape in enumerate(shapes):
        found.setdefault(shape, []).append(row)
    return {shape: torch.tensor(rows) for shape, rows in found.items()}


def _bias(inside: Tensor) -> Tensor:
    """Return what is added to the scores of slots (R, W), as (R, 1, 1, W): -inf where one holds no token."""
    return torch.zeros(inside.shape).masked_fill(~inside, -torch.inf)[:, None, None]
