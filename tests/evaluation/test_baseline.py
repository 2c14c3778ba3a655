"""The classifier that must be beaten, against scikit-learn put together by hand; what is said beside it."""

from __future__ import annotations

import json
import random

import numpy
import pytest
from conftest import random_text
from scipy.stats import binomtest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from finetune.data.labelled import Labelled
from finetune.evaluation import baseline
from finetune.evaluation.classification import BASELINE, compute_metrics, exact_match, summary_metrics
from finetune.reports.classification import notes, overview, verdict

NAMES = ["正面", "負面", "中立"]


def rows(count: int, seed: int, pair: bool = False, multi: bool = False) -> list[Labelled]:
    """Texts whose class a character tells nine times in ten; of pairs it stands in the second text."""
    rng, found = random.Random(seed), []
    for _ in range(count):
        label = rng.randrange(3)
        told = "天地玄"[label if rng.random() < 0.9 else rng.randrange(3)] * 2
        text = random_text(rng, 5, 20)
        labels = (0, label) if multi and label else (label,)
        found.append(Labelled(text if pair else told + text, told if pair else "", labels))
    return found


def test_single_labels_are_those_of_scikit_learns_pipeline_and_the_test_is_mcnemars():
    train_rows, test_rows = rows(300, 0), rows(120, 1)
    reference = make_pipeline(
        TfidfVectorizer(analyzer="char", ngram_range=(1, 3), sublinear_tf=True), LogisticRegression(C=10)
    ).fit([row.text for row in train_rows], [row.labels[0] for row in train_rows])
    expected = reference.predict_proba([row.text for row in test_rows])
    found = baseline.Baseline(train_rows, 3, False).probabilities(test_rows)
    assert found == pytest.approx(expected, abs=2e-3)
    truth, rng = [row.labels for row in test_rows], numpy.random.default_rng(0)
    mine = rng.dirichlet([1] * 3, len(test_rows))
    figures = {"test": compute_metrics(truth, mine, NAMES, False)}
    baseline.add_baseline(figures, train_rows, {"test": (test_rows, mine)}, NAMES)
    beside = json.loads(json.dumps(figures))["test"]["baseline"]
    right = [
        [p.argmax() == there[0] for p, there in zip(shares, truth, strict=True)]
        for shares in (mine, expected)
    ]
    assert beside["accuracy"] == pytest.approx(numpy.mean(right[1])) and beside["accuracy"] > 0.8
    only = (
        sum(a and not b for a, b in zip(*right, strict=True)),
        sum(b and not a for a, b in zip(*right, strict=True)),
    )
    assert beside["p_value"] == pytest.approx(binomtest(only[0], sum(only)).pvalue)
    assert beside["difference"] == pytest.approx((only[0] - only[1]) / len(test_rows))


@pytest.mark.parametrize("kind", ["pair", "multi"])
def test_pairs_are_read_with_both_texts_and_several_labels_one_by_one(kind):
    train_rows, test_rows = rows(300, 0, **{kind: True}), rows(100, 1, **{kind: True})
    shares = baseline.Baseline(train_rows, 3, kind == "multi").probabilities(test_rows)
    truth = [row.labels for row in test_rows]
    assert exact_match(truth, shares, kind == "multi").mean() > 0.7
    assert shares.shape == (100, 3)
    assert kind == "multi" or shares.sum(axis=1) == pytest.approx(numpy.ones(100))


def test_a_class_never_trained_on_has_no_chance_and_rows_are_bounded(monkeypatch):
    monkeypatch.setattr(baseline, "ROWS", 50)
    train_rows = [row for row in rows(300, 0) if row.labels != (2,)]
    made = baseline.Baseline(train_rows, 3, False)
    assert made.rows == 50 and not made.probabilities(rows(60, 1))[:, 2].any()


@pytest.mark.parametrize("skill", [0.0, 1.0])
def test_a_model_below_the_baseline_says_so_everywhere_and_one_above_does_not(skill):
    train_rows, test_rows = rows(300, 0), rows(150, 1)
    truth = [row.labels for row in test_rows]
    mine = numpy.array([[1.0 - skill, skill / 2, skill / 2]] * len(test_rows))
    if skill:
        mine = numpy.eye(3)[[there[0] for there in truth]]
    figures = {"test": compute_metrics(truth, mine, NAMES, False)}
    baseline.add_baseline(figures, train_rows, {"test": (test_rows, mine)}, NAMES)
    told = "\n".join(verdict(figures))
    warned = notes("test", figures["test"])
    assert ("還不值得用" in told) == (skill == 0) == any("還不值得用" in line for line in warned)
    assert (f"不如 {BASELINE}" in told) == (skill == 0)
    assert any(label == BASELINE for label, _ in overview(figures["test"]))
    assert "baseline_accuracy" in summary_metrics(figures["test"])
