"""What is taught to a classifier: texts, or pairs of them, and their labels."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from finetune.data.labelled import Labelled
from finetune.evaluation.classification import encode
from finetune.objectives.batching import Example


class ClassificationObjective:
    """Labelled texts as examples.

    One label each: softmax over the classes. Several (`multi`): every class is asked for with a yes or a no.

    Args:
        tokenizer: writes a pair with its own separator.
        max_length: of a row, in tokens; of a longer one the end is left out, of a pair that of the longer.
        count: of classes.
        weights: of each class in the loss: of the rows that have it or, of `multi`, of its yes. None: equal.
    """

    name = "classify"
    refused = ()

    def __init__(
        self, tokenizer, rows: Sequence[Labelled], max_length: int, count: int, multi: bool, weights=None
    ):
        self.rows, self.count, self.multi = list(rows), count, multi
        self.weights = weights or [1.0] * count
        self.too_long: list[str] = []
        self.encoded = [encode(tokenizer, row.text, row.pair, max_length) for row in rows]
        self.lengths = [len(row.ids) for row in self.encoded]
        self.truncated = sum(row.cut for row in self.encoded)

    def guess(self) -> tuple[float, float]:
        """The loss of always giving each class its share of these rows, weighted as the loss is; and what one
        decision is worth that knows nothing: ln K, of several labels ln 2. Nats.
        """
        n, found = len(self.rows), Counter(label for row in self.rows for label in row.labels)
        masses = [self.weights[at] * found[at] for at in range(self.count)]
        if not self.multi:
            return _entropy(masses) / n, math.log(self.count)
        each = [_entropy([mass, n - found[at]]) / n for at, mass in enumerate(masses)]
        return sum(each) / self.count, math.log(2)

    def epoch(self, epoch: int) -> list[tuple[str, int]]:
        """Every row once."""
        return [("label", index) for index in range(len(self.rows))]

    def example(self, kind: str, index: int, epoch: int) -> Example:
        """One row. There is nothing to draw."""
        row, labels = self.encoded[index], self.rows[index].labels
        if self.multi:
            classes = range(self.count)
            wanted = [int(at in labels) for at in classes]
            importance = [self.weights[at] if yes else 1.0 for at, yes in zip(classes, wanted, strict=True)]
        else:
            classes, wanted, importance = (0,), labels, [self.weights[labels[0]]]
        return Example(
            row.ids, tuple(classes), tuple(wanted), row=self.rows[index].id, segments=row.segments,
            importance=tuple(importance),
        )  # fmt: skip


def _entropy(masses: Sequence[float]) -> float:
    """−Σ m ln(m / Σ m)"""
    total = sum(masses)
    return -sum(mass * math.log(mass / total) for mass in masses if mass)
