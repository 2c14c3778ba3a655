"""Constrained decoding of tags: the likeliest sequence among those that a scheme allows (Viterbi 1967).

Transitions have no weights, only legality, and a tag either begins something, after whatever may end there,
or goes on with a span of its own label. So a step costs K, not K².
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy

from finetune.data.tag_schemes import TagSet

LARGEST = 1 << 22  # scores of a batch: rows × longest × tags


def decode(rows: Sequence[numpy.ndarray], tags: TagSet) -> list[list[int]]:
    """Return the likeliest legal tags of each row, by number; of equals the first.

    A row that allows no legal sequence, which takes a tag set without its last tags, gets the likeliest tag
    of each unit.

    Args:
        rows: log-probabilities (n, K) of the tags at the n units of each row; n may be 0.
        tags: the K tags.
    """
    rules = _Rules(tags)
    found: list[list[int]] = [[] for _ in rows]
    for numbers in _batches(rows):
        for number, path in zip(numbers, rules.decode([rows[number] for number in numbers]), strict=True):
            found[number] = path.tolist()
    return found


def _batches(rows: Sequence[numpy.ndarray]) -> Iterator[list[int]]:
    """Yield numbers of rows, the longest first, whose scores fit into LARGEST; empty rows in none."""
    order = sorted(
        (number for number, row in enumerate(rows) if len(row)), key=lambda number: -len(rows[number])
    )
    start = 0
    while start < len(order):
        count = max(1, LARGEST // rows[order[start]].size)
        yield order[start : start + count]
        start += count


class _Rules:
    """Which tag may stand where, as arrays over the K tags."""

    def __init__(self, tags: TagSet):
        self.first = numpy.where(tags.begins, 0.0, -numpy.inf)
        self.last = numpy.where(tags.ends, 0.0, -numpy.inf)
        self.inner = numpy.flatnonzero(~numpy.asarray(tags.begins))  # tags that go on with a span
        width = max((len(tags.before[tag]) for tag in self.inner), default=0)
        none = len(tags.names)  # a column of -inf
        padded = [[*tags.before[tag], *[none] * (width - len(tags.before[tag]))] for tag in self.inner]
        self.before = numpy.asarray(padded, dtype=numpy.int64).reshape(len(self.inner), width)

    def decode(self, rows: list[numpy.ndarray]) -> list[numpy.ndarray]:
        """Decode rows that are sorted by length, the longest first."""
        lengths = numpy.asarray([len(row) for row in rows])
        count, longest, k = len(rows), int(lengths[0]), len(self.first)
        emissions = numpy.zeros((count, longest, k))
        for number, row in enumerate(rows):
            emissions[number, : len(row)] = row
        back = numpy.zeros((longest, count, k), dtype=numpy.int32)
        score = emissions[:, 0] + self.first
        for place in range(1, longest):
            live = int((lengths > place).sum())  # rows that are so long come first
            best, back[place, :live] = self._step(score[:live])
            score[:live] = best + emissions[:live, place]
        final = score + self.last
        tag = final.argmax(axis=1)
        legal = numpy.isfinite(final[numpy.arange(count), tag])
        paths = numpy.zeros((count, longest), dtype=numpy.int64)
        for place in range(longest - 1, -1, -1):
            live = int((lengths > place).sum())
            paths[:live, place] = tag[:live]
            tag[:live] = back[place, numpy.arange(live), tag[:live]]
        return [
            path[:length] if sound else row.argmax(axis=1)
            for path, length, sound, row in zip(paths, lengths, legal, rows, strict=True)
        ]

    def _step(self, score: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray]:
        """Return the best of scores (R, K) that each tag may follow, and the tag it is of: both (R, K)."""
        rows = numpy.arange(len(score))
        ending = score + self.last
        ended = ending.argmax(axis=1)
        best = numpy.repeat(ending[rows, ended][:, None], score.shape[1], axis=1)
        back = numpy.repeat(ended[:, None], score.shape[1], axis=1)
        if len(self.inner):
            choices = numpy.pad(score, ((0, 0), (0, 1)), constant_values=-numpy.inf)[
                :, self.before
            ]  # (R, C, P)
            chosen = choices.argmax(axis=2)
            best[:, self.inner] = numpy.take_along_axis(choices, chosen[:, :, None], 2)[:, :, 0]
            back[:, self.inner] = numpy.where(
                chosen < self.before.shape[1], self.before[numpy.arange(len(self.inner)), chosen], 0
            ).clip(max=score.shape[1] - 1)
        return best, back
