"""Products with weights on a CPU whose digits do not depend on the number of rows beside one another.

MKL's sgemm, which torch calls for fp32, chooses its kernel, and thereby the order of its sums, by the number
of rows. oneDNN's inner product sums in one order from two rows on; a single row is computed twice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

# Up to so many rows, and from so many numbers in the weights on, the product is computed the other way round:
# it has the same sums in the same order, and not the weights are copied but the rows.
FEW, LARGE = 128, 1 << 19


def are_invariant(tensor: Tensor) -> bool:
    """Return whether products with this tensor are to be invariant: fp32 on a CPU, outside of training.

    oneDNN's operator has no gradient, and under autocast the digits are those of bf16.
    """
    return (
        tensor.device.type == "cpu"
        and tensor.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
    )


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute inputs (…, K) · weight (N, K)ᵀ + bias (N,) -> (…, N) where `are_invariant` is True."""
    rows = inputs.contiguous() if inputs.ndim == 2 else inputs.reshape(-1, inputs.shape[-1]).contiguous()
    count = len(rows)
    if count == 0:
        return functional.linear(inputs, weight, bias)
    if count == 1:
        rows = torch.cat((rows, rows))
    if bias is not None and count <= FEW and weight.numel() >= LARGE:
        found = torch.add(_product(weight, rows).t(), bias, out=rows.new_empty(len(rows), len(weight)))
    else:
        found = _product(rows, weight, bias)
    found = found[:1] if count == 1 else found
    return found if inputs.ndim == 2 else found.view(*inputs.shape[:-1], -1)


def packed(weight: Tensor) -> Tensor:
    """Return a copy of weights (N, K), fewer than LARGE, that `linear` need not lay out anew."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)


def _product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute left (M, K) · right (N, K)ᵀ + bias (N,) in oneDNN, which copies the right one to lay it out."""
    # as torch.compile calls it for a model that is not trained
    return torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")


class _InvariantProducts(TorchFunctionMode):
    """Modules called within use `linear` above."""

    def __torch_function__(
        self, func: Callable, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is functional.linear and are_invariant(args[0]):
            func = linear
        return func(*args, **(kwargs or {}))


def invariant_modules(tensor: Tensor) -> Any:
    """Return a context in which the linear layers of any module are invariant, if `are_invariant`."""
    return _InvariantProducts() if are_invariant(tensor) else contextlib.nullcontext()
