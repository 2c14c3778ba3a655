"""Bootstrap intervals over groups of rows that belong together, such as the questions about one article.

Whole groups are drawn: their rows are alike, so that intervals over rows would be too narrow (Cameron,
Gelbach and Miller 2008, "Bootstrap-based improvements for inference with clustered errors").
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy

from finetune.evaluation.metrics import INTERVAL, RESAMPLES

AT_ONCE = 200  # resamples held in memory together


def cluster_interval(
    values: Sequence[Sequence[float]] | numpy.ndarray, groups: Sequence[Hashable]
) -> list[list[float]]:
    """Return the 95 % interval of the mean of each column, by drawing groups with replacement.

    Args:
        values: (n, k).
        groups: of each of the n rows.

    Returns:
        k pairs (low, high); the mean twice where there is a single group.
    """
    table = numpy.asarray(values, dtype=numpy.float64)
    numbers: dict[Hashable, int] = {}
    places = [numbers.setdefault(group, len(numbers)) for group in groups]
    sums = numpy.zeros((len(numbers), table.shape[1]))
    counts = numpy.zeros(len(numbers))
    numpy.add.at(sums, places, table)
    numpy.add.at(counts, places, 1)
    rng = numpy.random.default_rng(0)
    means = []
    for begin in range(0, RESAMPLES, AT_ONCE):
        size = (min(AT_ONCE, RESAMPLES - begin), len(numbers))
        drawn = rng.integers(0, len(numbers), size)
        times = numpy.zeros(size)
        numpy.add.at(times, (numpy.arange(size[0])[:, None], drawn), 1)
        means.append(times @ sums / (times @ counts)[:, None])
    low, high = numpy.percentile(numpy.concatenate(means), INTERVAL, axis=0)
    return [[float(a), float(b)] for a, b in zip(low, high, strict=True)]
