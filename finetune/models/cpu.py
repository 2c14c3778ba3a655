"""What the CPU at hand is good at, and how its memory is best used."""

from __future__ import annotations

import ctypes
import statistics
import time
from functools import lru_cache

import torch
from torch.nn import functional as F

SMALL = 256  # hidden size of models that gain nothing: converting costs what the products save
FASTER = 1.5  # times, from which fewer digits are worth it
# of mallopt(3)
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4


def keep_memory() -> bool:
    """Has freed memory kept for the next tensor instead of given back to the system, which would fill every
    large new one with zeros, page by page: a third of the time of a step with long rows. True where it worked
    (glibc)."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    return all(mallopt(*option) for option in ((MMAP_MAX, 0), (TRIM_THRESHOLD, -1), (TOP_PAD, 1 << 26)))


def choose_precision(hidden_size: int) -> tuple[str, str]:
    """`fp32` or `bf16` for a model of this width on this CPU, and the sentence that says why."""
    if hidden_size < SMALL:
        return "fp32", "精度：fp32（CPU，模型小，bf16 不會更快）"
    gain = bf16_gain()
    if gain < FASTER:
        return "fp32", f"精度：fp32（這顆 CPU 算 bf16 沒有比較快：{gain:.1f} 倍）"
    return "bf16", f"精度：bf16（這顆 CPU 算 bf16 快 {gain:.1f} 倍；要 fp32 請加 --precision fp32）"


@lru_cache(maxsize=1)
def bf16_gain() -> float:
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
