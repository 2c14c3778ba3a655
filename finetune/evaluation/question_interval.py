"""Interval of a mean of question scores, which takes the questions as the sample."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from finetune.evaluation.metrics import wilson


def question_interval(credited: Sequence[float]) -> dict[str, list[float]]:
    """Return the 95 % interval of a mean of question scores, each from 0 to 1.

    Wilson's interval for as many questions as would give hits and misses the standard error of these scores
    (effective sample size, Kish 1965): that of `metrics.wilson` where all runs agree, narrower where runs
    average out, and never beyond 0 and 1, as a normal interval would be.
    """
    n, mean = len(credited), fmean(credited)
    variance = fmean((one - mean) ** 2 for one in credited)
    size = n * mean * (1 - mean) / variance if variance > 1e-12 else float(n)
    return {"interval_95": list(wilson(mean * size, size))}
