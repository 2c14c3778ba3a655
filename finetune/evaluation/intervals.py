"""Bootstrap intervals of F1 scores over rows that each count several things."""

from __future__ import annotations

from collections.abc import Sequence

import numpy

from finetune.evaluation.metrics import INTERVAL

RESAMPLES = 1000


def f1(right: float, predicted: float, gold: float) -> float:
    """Return F1, 0 where nothing is right: the harmonic mean of right / predicted and right / gold."""
    return 2 * right / (predicted + gold) if right else 0.0


def f1_interval(counts: Sequence[tuple[int, int, int]]) -> list[float]:
    """Return the 95 % interval of micro F1 by a bootstrap of the rows (percentiles; seed 0).

    Args:
        counts: of each row: right, predicted, gold.
    """
    return _percentiles(_f1s(_resampled(counts)))


def f1_difference_interval(
    first: Sequence[tuple[int, int, int]], second: Sequence[tuple[int, int, int]]
) -> list[float]:
    """Return the 95 % interval of the first micro F1 minus the second, by a paired bootstrap of the rows.

    Args:
        first, second: of each row: right, predicted, gold.
    """
    sums = _resampled([(*one, *other) for one, other in zip(first, second, strict=True)])
    return _percentiles(_f1s(sums[:, :3]) - _f1s(sums[:, 3:]))


def _resampled(counts: Sequence[Sequence[int]]) -> numpy.ndarray:
    """Return the sums (RESAMPLES, C) of resampled rows: multinomial counts of the few kinds there are."""
    kinds, times = numpy.unique(numpy.asarray(counts), axis=0, return_counts=True)
    drawn = numpy.random.default_rng(0).multinomial(len(counts), times / len(counts), RESAMPLES)
    return drawn @ kinds


def _f1s(sums: numpy.ndarray) -> numpy.ndarray:
    """Return the F1 of each line of right, predicted, gold."""
    right, all_found = sums[:, 0], sums[:, 1] + sums[:, 2]
    return 2 * right / numpy.maximum(all_found, 1)


def _percentiles(values: numpy.ndarray) -> list[float]:
    return numpy.percentile(values, INTERVAL).tolist()
