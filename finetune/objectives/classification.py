"""Objective of a classifier: texts, or pairs of them, and their labels."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from finetune.data.labelled import Labelled
from finetune.evaluation.baseline import add_baseline
from finetune.evaluation.classification import compute_metrics, encode, probabilities
from finetune.evaluation.queries import Forward
from finetune.models.forward import is_multi
from finetune.models.kinds import names_of
from finetune.objectives.batching import Example
from finetune.objectives.objective import BaselineLoss

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from finetune.runtime.distributed import Distributed


class ClassificationObjective:
    """Classification of labelled texts.

    One label each: softmax over the classes. Several (`multi`): for every class a yes or a no.

    Args:
        tokenizer: writes a pair with its own separator.
        rows: rows to train or validate on.
        max_length: longest row, in tokens; a longer one loses its end, a pair that of its longer text.
        count: number of classes.
        multi: a row may have any number of labels.
        weights: weight of each class in the loss: of its rows or, with `multi`, of its yes. None: all equal.
    """

    name = "classify"
    packed = False
    rejected_by_template: Sequence[str] = ()
    remarks: Mapping[str, int] = {}
    compares = False

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        rows: Sequence[Labelled],
        max_length: int,
        count: int,
        multi: bool,
        weights: Sequence[float] | None = None,
    ):
        self.rows, self.count, self.multi = list(rows), count, multi
        self.weights = weights or [1.0] * count
        self.too_long: list[str] = []
        self.pad_id = tokenizer.pad_token_id
        self.encoded = [encode(tokenizer, row.text, row.pair, max_length) for row in rows]
        self.lengths = [len(row.ids) for row in self.encoded]
        self.truncated = sum(row.cut for row in self.encoded)

    @property
    def baseline_loss(self) -> BaselineLoss:
        """Losses of guesses that read no text."""
        n, counts = len(self.rows), Counter(label for row in self.rows for label in row.labels)
        masses = [self.weights[label] * counts[label] for label in range(self.count)]
        if not self.multi:
            return BaselineLoss(_entropy(masses) / n, math.log(self.count))
        entropies = [_entropy([mass, n - counts[label]]) / n for label, mass in enumerate(masses)]
        return BaselineLoss(sum(entropies) / self.count, math.log(2))

    def epoch(self, epoch: int) -> list[tuple[str, int]]:
        """Return every row once."""
        return [("label", index) for index in range(len(self.rows))]

    def example(self, kind: str, index: int, epoch: int) -> Example:
        """Return one row. There is nothing to draw."""
        row, labels = self.encoded[index], self.rows[index].labels
        positions: tuple[int, ...] = (0,)
        targets = labels
        importance = [self.weights[labels[0]]] if not self.multi else []
        if self.multi:
            positions = tuple(range(self.count))
            targets = tuple(int(label in labels) for label in positions)
            importance = [self.weights[label] if label in labels else 1.0 for label in positions]
        return Example(
            row.ids, positions, targets, row=self.rows[index].id, segments=row.segments,
            importance=tuple(importance),
        )  # fmt: skip

    def predict(self, forward: Forward, config: PreTrainedConfig, world: Distributed) -> list[list[float]]:
        """Return the probabilities (n, K) of the classes of each row. Collective."""
        return probabilities(forward, config, self.pad_id, self.encoded, world.device, world)

    def metrics(
        self, outputs: Sequence[Sequence[float]], config: PreTrainedConfig, before: Any = None
    ) -> dict[str, Any]:
        """Compute the metrics of probabilities, see `evaluation.classification`."""
        return compute_metrics([row.labels for row in self.rows], outputs, names_of(config), is_multi(config))

    def validation_metrics(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Return those that the log of an epoch shows."""
        return {
            "validation_loss": metrics["log_loss"], "validation_accuracy": metrics["accuracy"],
            "validation_macro_f1": metrics["macro_f1"], "validation_rows": metrics["n"],
        }  # fmt: skip

    @classmethod
    def add_baselines(
        cls,
        metrics: dict[str, dict[str, Any]],
        evaluated: Mapping[str, tuple[ClassificationObjective, list[list[float]]]],
        train: ClassificationObjective,
        config: PreTrainedConfig,
    ) -> None:
        """Add the metrics of scikit-learn's classifier on the same rows, see evaluation/baseline.py."""
        answered = {name: (objective.rows, outputs) for name, (objective, outputs) in evaluated.items()}
        add_baseline(metrics, train.rows, answered, names_of(config))


def _entropy(masses: Sequence[float]) -> float:
    """Return −Σ m ln(m / Σ m), in nats."""
    total = sum(masses)
    return -sum(mass * math.log(mass / total) for mass in masses if mass)
