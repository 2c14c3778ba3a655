"""Dropout whose random numbers cost little on a CPU.

torch draws a Bernoulli variable for each element with a Mersenne Twister in one thread, which takes as long
as a quarter of all matrix products of a bf16 step. Here 64 random bits serve four elements (two of fp32),
from SFC64, which numpy draws in a nanosecond.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


def noise(like: Tensor, p: float, shape: tuple[int, ...] | None = None) -> Tensor:
    """What an activation is multiplied by: 0 with probability `p`, else 1 / (1 - p), in the dtype of `like`.

    The seed of its bits is drawn by torch, so that whoever sets torch's seed, or its state, sets this one's.
    `p` is kept to a 65,536th; 1 / (1 - p) is rounded to the dtype, as torch rounds it.

    Args:
        like: on the CPU, of a floating-point dtype.
        shape: of the result; that of `like` when None.
    """
    shape = like.shape if shape is None else shape
    whole = BITS[like.dtype]
    count, width = math.prod(shape), 8 // whole.itemsize
    bits = np.random.Generator(np.random.SFC64(int(torch.randint(1 << 62, ()))))
    drawn = bits.integers(-(1 << 63), (1 << 63) - 1, -(-count // width), dtype=np.int64, endpoint=True)
    bits = torch.from_numpy(drawn).view(whole)[:count].view(shape)
    kept = int(torch.tensor(1 / (1 - p)).to(like.dtype).view(whole))  # the bits of that number
    lowest = torch.iinfo(whole).min
    # all in one integer type, where the processor works on many at once; a comparison into booleans does not
    return bits.ge_(lowest + round(p * (1 << 8 * whole.itemsize))).mul_(kept).view(like.dtype)


class Dropout(nn.Dropout):
    """nn.Dropout with the noise from above on a CPU."""

    def forward(self, inputs: Tensor) -> Tensor:
        if not self.training or not self.p:
            return inputs
        if inputs.device.type != "cpu" or inputs.dtype not in BITS:
            return super().forward(inputs)
        return inputs * noise(inputs, self.p)


def lighten(model: nn.Module) -> nn.Module:
    """Puts this dropout in the place of torch's, everywhere in a model."""
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.__class__ = Dropout
    return model
