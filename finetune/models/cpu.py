"""What the CPU at hand is good at: its memory, bf16, and dropout whose random numbers cost little.

torch draws a Bernoulli variable for each element with a Mersenne Twister in one thread, which takes as long
as a quarter of all matrix products of a bf16 step. Here 64 random bits serve four elements (two of fp32),
from SFC64, which numpy draws in a nanosecond.
"""

from __future__ import annotations

import ctypes
import math
import statistics
import time
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

SMALL = 256  # hidden size of models that gain nothing: converting costs what the products save
FASTER = 1.5  # times, from which fewer digits are worth it
# of mallopt(3)
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4


def tune_malloc() -> bool:
    """Has freed memory kept for the next tensor instead of given back to the system, which would fill every
    large new one with zeros, page by page: a third of the time of a step with long rows. True where it worked
    (glibc).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    return all(mallopt(*option) for option in ((MMAP_MAX, 0), (TRIM_THRESHOLD, -1), (TOP_PAD, 1 << 26)))


def choose_precision(hidden_size: int) -> tuple[str, str]:
    """`fp32` or `bf16` for a model of this width on this CPU, and the sentence that says why."""
    if hidden_size < SMALL:
        return "fp32", "精度：fp32（CPU，模型小，bf16 不會更快）"
    gain = bf16_speedup()
    if gain < FASTER:
        return "fp32", f"精度：fp32（這顆 CPU 算 bf16 沒有比較快：{gain:.1f} 倍）"
    return "bf16", f"精度：bf16（這顆 CPU 算 bf16 快 {gain:.1f} 倍；要 fp32 請加 --precision fp32）"


@lru_cache(maxsize=1)
def bf16_speedup() -> float:
    """How many times as fast as in fp32 a matrix product is here in bf16: median of five, some 0.1 s."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        rows, weight = torch.ones(512, 768, dtype=dtype), torch.ones(3072, 768, dtype=dtype)
        F.linear(rows, weight)  # the first one prepares
        taken = []
        for _ in range(5):
            began = time.perf_counter()
            F.linear(rows, weight)
            taken.append(time.perf_counter() - began)
        seconds[dtype] = statistics.median(taken)
    return seconds[torch.float32] / seconds[torch.bfloat16]


BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


def dropout_mask(like: Tensor, p: float, shape: tuple[int, ...] | None = None) -> Tensor:
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
        return inputs * dropout_mask(inputs, self.p)


def use_fast_dropout(model: nn.Module) -> nn.Module:
    """Puts this dropout in the place of torch's, everywhere in a model."""
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.__class__ = Dropout
    return model
