"""Training on a CPU: memory allocation, the choice of bf16, and a dropout whose random numbers cost little.

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
from torch.nn import functional

SMALL = 256  # models of a smaller hidden size gain nothing: converting costs what the products save
FASTER = 1.5  # the least speedup by bf16 that is worth its fewer digits
# parameters of mallopt(3)
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4


def tune_malloc() -> bool:
    """Make malloc keep freed memory for the next tensor instead of returning it to the system.

    The system would fill every large new tensor with zeros, page by page: a third of the time of a step with
    long rows.

    Returns:
        True where it worked (glibc).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    return all(mallopt(*option) for option in ((MMAP_MAX, 0), (TRIM_THRESHOLD, -1), (TOP_PAD, 1 << 26)))


def choose_precision(hidden_size: int) -> tuple[str, str]:
    """Return `fp32` or `bf16` for a model of this width on this CPU, and the message that says why."""
    if hidden_size < SMALL:
        return "fp32", "精度：fp32（CPU，模型小，bf16 不會更快）"
    gain = bf16_speedup()
    if gain < FASTER:
        return "fp32", f"精度：fp32（這顆 CPU 算 bf16 沒有比較快：{gain:.1f} 倍）"
    return "bf16", f"精度：bf16（這顆 CPU 算 bf16 快 {gain:.1f} 倍；要 fp32 請加 --precision fp32）"


@lru_cache(maxsize=1)
def bf16_speedup() -> float:
    """Return how many times as fast as in fp32 a matrix product is in bf16: median of five, some 0.1 s."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        rows, weight = torch.ones(512, 768, dtype=dtype), torch.ones(3072, 768, dtype=dtype)
        functional.linear(rows, weight)  # the first one prepares
        taken = []
        for _ in range(5):
            began = time.perf_counter()
            functional.linear(rows, weight)
            taken.append(time.perf_counter() - began)
        seconds[dtype] = statistics.median(taken)
    return seconds[torch.float32] / seconds[torch.bfloat16]


BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


def dropout_mask(like: Tensor, p: float, shape: tuple[int, ...] | None = None) -> Tensor:
    """Draw dropout factors: 0 with probability `p`, else 1 / (1 - p), in the dtype of `like`.

    The seed of the bits is drawn by torch, so that torch's seed and generator state determine the mask.
    `p` is kept to a 65,536th; 1 / (1 - p) is rounded to the dtype, as torch rounds it.

    Args:
        like: on the CPU, of a floating-point dtype.
        shape: shape of the result; that of `like` when None.
    """
    shape = like.shape if shape is None else shape
    dtype = BITS[like.dtype]
    count, per_draw = math.prod(shape), 8 // dtype.itemsize
    generator = np.random.Generator(np.random.SFC64(int(torch.randint(1 << 62, ()))))
    drawn = generator.integers(
        -(1 << 63), (1 << 63) - 1, -(-count // per_draw), dtype=np.int64, endpoint=True
    )
    bits = torch.from_numpy(drawn).view(dtype)[:count].view(shape)
    kept = int(torch.tensor(1 / (1 - p)).to(like.dtype).view(dtype))  # the bits of that number
    lowest = torch.iinfo(dtype).min
    # all in one integer type, which is vectorised; a comparison into booleans is not
    return bits.ge_(lowest + round(p * (1 << 8 * dtype.itemsize))).mul_(kept).view(like.dtype)


class Dropout(nn.Dropout):
    """nn.Dropout with `dropout_mask` on a CPU."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Drop inputs while training, through torch for other devices and dtypes."""
        if not self.training or not self.p:
            return inputs
        if inputs.device.type != "cpu" or inputs.dtype not in BITS:
            return super().forward(inputs)
        return inputs * dropout_mask(inputs, self.p)


def use_fast_dropout(model: nn.Module) -> nn.Module:
    """Replace torch's dropout by this one, everywhere in a model."""
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.__class__ = Dropout
    return model
