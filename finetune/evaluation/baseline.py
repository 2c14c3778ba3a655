"""The classifier that a model must beat to be worth its trouble: TF-IDF of characters with logistic
regression, by scikit-learn, trained on the very same rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy

from finetune.data.labelled import Labelled
from finetune.data.question import seeded_hash
from finetune.evaluation import metrics
from finetune.evaluation.classification import BASELINE, compute_metrics, hits
from finetune.runtime.console import log

GRAMS = (1, 3)  # characters: no words need be found
ROWS = 20_000  # that it is trained on, and of a set that it answers, at most
ANSWERS = 400_000  # rows × classes, in training: half a minute, however odd the texts
CHARACTERS = 1_000  # of a text that it reads
FEATURES = 50_000  # the commonest sequences of characters
WEIGHTS = 1_000_000  # features × classes: of many classes fewer features
STEPS = 200  # of the solver, at most


class Baseline:
    """TF-IDF (character 1- to 3-grams) with logistic regression; of several labels one for each of them, of
    pairs both texts side by side.

    Args:
        rows: to be trained on; of more than ROWS a fixed sample.
        count: of classes, K.
        multi: a row may have any number of labels.
    """

    def __init__(self, rows: Sequence[Labelled], count: int, multi: bool):
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.multiclass import OneVsRestClassifier

        rows = [rows[place] for place in sampled(rows, ANSWERS // count)]
        self.count, self.multi, self.rows = count, multi, len(rows)
        self.pairs = any(row.pair for row in rows)
        features = min(FEATURES, WEIGHTS // count)
        self.writer = TfidfVectorizer(
            analyzer="char", ngram_range=GRAMS, max_features=features, sublinear_tf=True, dtype=numpy.float32
        )
        self.writer.fit([text for row in rows for text in self._texts(row)])
        model = LogisticRegression(max_iter=STEPS, C=10)  # 10: texts are short vectors of length 1
        if multi:
            truth = numpy.zeros((len(rows), count), dtype=int)
            for told, row in zip(truth, rows, strict=True):
                told[list(row.labels)] = 1
            self.model = OneVsRestClassifier(model)
        else:
            truth, self.model = [row.labels[0] for row in rows], model
        with warnings.catch_warnings():  # of a label that all rows have, or none; of steps that ran out
            warnings.simplefilter("ignore")
            self.model.fit(self._written(rows), truth)

    def _texts(self, row: Labelled) -> list[str]:
        return [text[:CHARACTERS] for text in ((row.text, row.pair) if self.pairs else (row.text,))]

    def _written(self, rows: Sequence[Labelled]):
        """(n, features), of pairs (n, 2 features), sparse."""
        from scipy.sparse import hstack

        columns = zip(*map(self._texts, rows), strict=True)
        return hstack([self.writer.transform(texts) for texts in columns], format="csr")

    def probabilities(self, rows: Sequence[Labelled]) -> numpy.ndarray:
        """(n, K); 0 for a class that no row it was trained on has."""
        found = self.model.predict_proba(self._written(rows))
        if self.multi:
            return found
        whole = numpy.zeros((len(rows), self.count))
        whole[:, self.model.classes_] = found
        return whole


def sampled(rows: Sequence[Labelled], most: int = ROWS) -> list[int]:
    """The places of at most ROWS of them, and at most `most`, the same ones each time."""
    most = min(ROWS, most)
    if len(rows) <= most:
        return list(range(len(rows)))
    return sorted(sorted(range(len(rows)), key=lambda place: seeded_hash(0, rows[place].fingerprint))[:most])


def stand_beside(
    figures: dict[str, dict], taught: Sequence[Labelled], answered: dict[str, tuple], names: Sequence[str]
) -> None:
    """Writes into the figures of each set (classes.figures) its `baseline`: `accuracy`, `right`, `n`,
    `interval_95`, `macro_f1`; the model's on the same rows less these (`difference` with its interval), and
    the paired test (`p_value`, see metrics.paired_test). `trained_on`: rows.

    Args:
        taught: the rows that the model was trained on.
        answered: of each set its rows and the model's probabilities, (n, K).
    """
    multi = next(iter(figures.values()))["multi"]
    log(f"簡單的基準（{BASELINE}）：以同樣的 {len(taught):,} 列訓練…")
    baseline = Baseline(taught, len(names), multi)
    if len(taught) > baseline.rows:
        log(f"  只取其中 {baseline.rows:,} 列")
    for name, (rows, mine) in answered.items():
        places = sampled(rows)
        some = [rows[place] for place in places]
        truth, theirs = [row.labels for row in some], baseline.probabilities(some)
        first, second = (hits(truth, p, multi) for p in (numpy.asarray(mine)[places], theirs))
        whole = compute_metrics(truth, theirs, names, multi)
        paired = {**metrics.paired_test(first, second), **metrics.mean_difference(first - second)}
        own = {key: whole[key] for key in ("accuracy", "right", "n", "interval_95", "macro_f1")}
        figures[name]["baseline"] = {**own, **paired, "trained_on": baseline.rows}
