"""Baseline classifier that a model must beat: TF-IDF of characters with logistic regression.

By scikit-learn, trained on the very same rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy

from finetune.data.labelled import Labelled
from finetune.data.question import seeded_hash
from finetune.evaluation import metrics
from finetune.evaluation.classification import BASELINE, compute_metrics, exact_match
from finetune.runtime.console import log

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

GRAMS = (1, 3)  # characters: no segmentation is needed
ROWS = 20_000  # rows: most to train on, most of a set to predict
ANSWERS = 400_000  # most rows × classes to train on: half a minute, whatever the texts
CHARACTERS = 1_000  # characters read of a text
FEATURES = 50_000  # the commonest sequences of characters
WEIGHTS = 1_000_000  # features × classes: of many classes fewer features
STEPS = 200  # solver steps, at most


class Baseline:
    """TF-IDF (character 1- to 3-grams) with logistic regression.

    Multi-label: one regression for each label. Pairs: the features of both texts side by side.

    Args:
        rows: rows to train on; of more than ROWS, a fixed sample.
        count: number of classes, K.
        multi: a row may have any number of labels.
    """

    def __init__(self, rows: Sequence[Labelled], count: int, multi: bool):
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.multiclass import OneVsRestClassifier

        rows = [rows[index] for index in sampled(rows, ANSWERS // count)]
        self.count, self.multi, self.rows = count, multi, len(rows)
        self.pairs = any(row.pair for row in rows)
        features = min(FEATURES, WEIGHTS // count)
        self.vectorizer = TfidfVectorizer(
            analyzer="char", ngram_range=GRAMS, max_features=features, sublinear_tf=True, dtype=numpy.float32
        )
        self.vectorizer.fit([text for row in rows for text in self._texts(row)])
        self.model: Any = LogisticRegression(max_iter=STEPS, C=10)  # 10: texts are short vectors of length 1
        truth = numpy.array([row.labels[0] for row in rows]) if not multi else _indicators(rows, count)
        if multi:
            self.model = OneVsRestClassifier(self.model)
        with warnings.catch_warnings():  # warnings: a label that all rows or none have; steps ran out
            warnings.simplefilter("ignore")
            self.model.fit(self._features(rows), truth)

    def _texts(self, row: Labelled) -> list[str]:
        return [text[:CHARACTERS] for text in ((row.text, row.pair) if self.pairs else (row.text,))]

    def _features(self, rows: Sequence[Labelled]) -> csr_matrix:
        """Return (n, features), of pairs (n, 2 features), sparse."""
        from scipy.sparse import hstack

        columns = zip(*map(self._texts, rows), strict=True)
        return hstack([self.vectorizer.transform(texts) for texts in columns], format="csr")

    def probabilities(self, rows: Sequence[Labelled]) -> numpy.ndarray:
        """Return (n, K) probabilities; 0 for a class that no training row has."""
        predicted = self.model.predict_proba(self._features(rows))
        if self.multi:
            return predicted
        of_all_classes = numpy.zeros((len(rows), self.count))
        of_all_classes[:, self.model.classes_] = predicted
        return of_all_classes


def _indicators(rows: Sequence[Labelled], count: int) -> numpy.ndarray:
    """Return (n, K) of 0 and 1: the labels of each row."""
    indicators = numpy.zeros((len(rows), count), dtype=int)
    for indicator, row in zip(indicators, rows, strict=True):
        indicator[list(row.labels)] = 1
    return indicators


def sampled(rows: Sequence[Labelled], most: int = ROWS) -> list[int]:
    """Return the indices of at most ROWS rows, and at most `most`, the same ones each time."""
    most = min(ROWS, most)
    if len(rows) <= most:
        return list(range(len(rows)))
    return sorted(sorted(range(len(rows)), key=lambda index: seeded_hash(0, rows[index].fingerprint))[:most])


def add_baseline(
    figures: dict[str, dict], trained: Sequence[Labelled], predicted: dict[str, tuple], names: Sequence[str]
) -> None:
    """Add to the metrics of each set the `baseline`, trained on the same rows.

    `baseline` holds `accuracy`, `right`, `n`, `interval_95`, `macro_f1`; the model's accuracy on the same
    rows minus the baseline's (`difference` with its interval), the paired test (`p_value`, see
    metrics.paired_test), and `trained_on`, the number of rows it was trained on.

    Args:
        figures: by set, see `classification.compute_metrics`.
        trained: the rows that the model was trained on.
        predicted: by set, its rows and the model's probabilities, (n, K).
        names: names of the classes.
    """
    multi = next(iter(figures.values()))["multi"]
    log(f"簡單的基準（{BASELINE}）：以同樣的 {len(trained):,} 列訓練…")
    baseline = Baseline(trained, len(names), multi)
    if len(trained) > baseline.rows:
        log(f"  只取其中 {baseline.rows:,} 列")
    for name, (rows, of_model) in predicted.items():
        indices = sampled(rows)
        sample = [rows[index] for index in indices]
        truth, of_baseline = [row.labels for row in sample], baseline.probabilities(sample)
        first, second = (
            exact_match(truth, p, multi) for p in (numpy.asarray(of_model)[indices], of_baseline)
        )
        all_metrics = compute_metrics(truth, of_baseline, names, multi)
        paired = {
            **metrics.paired_test(first.tolist(), second.tolist()),
            **metrics.mean_difference((first - second).tolist()),
        }
        kept = {key: all_metrics[key] for key in ("accuracy", "right", "n", "interval_95", "macro_f1")}
        figures[name]["baseline"] = {**kept, **paired, "trained_on": baseline.rows}
