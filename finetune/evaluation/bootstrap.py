"""Bootstrap intervals of figures that are no plain share: F1 over rows, means over groups of rows.

Percentiles of 10,000 resamples with a fixed seed (Efron and Tibshirani 1993, chapter 13), so that the same
rows give the same interval. Of paired models both are resampled together.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy

from finetune.evaluation.metrics import INTERVAL, MOST_DRAWN, RESAMPLES

Counts = Sequence[tuple[int, int, int]]  # of each row: right, predicted, gold


def f1(right: float, predicted: float, gold: float) -> float:
    """Return F1, 0 where nothing is right: the harmonic mean of right / predicted and right / gold."""
    return 2 * right / (predicted + gold) if right else 0.0


def f1_interval(counts: Counts) -> list[float]:
    """Return the 95 % interval of micro F1, by drawing rows."""
    return _percentiles(_f1s(resampled_sums(counts)))


def f1_difference_interval(first: Counts, second: Counts) -> list[float]:
    """Return the 95 % interval of the first micro F1 minus the second, by drawing rows."""
    sums = resampled_sums([(*one, *other) for one, other in zip(first, second, strict=True)])
    return _percentiles(_f1s(sums[:, :3]) - _f1s(sums[:, 3:]))


def cluster_interval(
    values: Sequence[Sequence[float]] | numpy.ndarray, groups: Sequence[Hashable]
) -> list[list[float]]:
    """Return the 95 % interval of the mean of each column, by drawing whole groups.

    The rows of a group are alike, such as the questions about one article, so that intervals over rows would
    be too narrow (Cameron, Gelbach and Miller 2008).

    Args:
        values: (n, k).
        groups: of each of the n rows.

    Returns:
        k pairs (low, high); the mean twice where there is a single group.
    """
    table = numpy.asarray(values, dtype=numpy.float64)
    numbers: dict[Hashable, int] = {}
    places = [numbers.setdefault(group, len(numbers)) for group in groups]
    sums = numpy.zeros((len(numbers), table.shape[1] + 1))
    numpy.add.at(sums, places, numpy.column_stack([table, numpy.ones(len(table))]))
    drawn = resampled_sums(sums)
    means = drawn[:, :-1] / drawn[:, -1:]
    return numpy.percentile(means, INTERVAL, axis=0).T.tolist()


def resampled_sums(rows: Sequence[Sequence[float]] | numpy.ndarray) -> numpy.ndarray:
    """Return the sums (RESAMPLES, C) of as many rows (n, C), drawn with replacement.

    Equal rows are drawn together: multinomial counts of the kinds that there are.
    """
    kinds, times = numpy.unique(numpy.asarray(rows), axis=0, return_counts=True)
    rng, shares = numpy.random.default_rng(0), times / len(rows)
    at_once = max(1, MOST_DRAWN // len(kinds))
    parts = [
        rng.multinomial(len(rows), shares, min(at_once, RESAMPLES - start)) @ kinds
        for start in range(0, RESAMPLES, at_once)
    ]
    return numpy.concatenate(parts)


def _f1s(sums: numpy.ndarray) -> numpy.ndarray:
    """Return the F1 of each line of right, predicted, gold."""
    right, all_found = sums[:, 0], sums[:, 1] + sums[:, 2]
    return 2 * right / numpy.maximum(all_found, 1)


def _percentiles(values: numpy.ndarray) -> list[float]:
    return numpy.percentile(values, INTERVAL).tolist()
