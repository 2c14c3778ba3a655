"""Figures against scikit-learn, scipy and statsmodels, and against slow loops where those have none."""

from __future__ import annotations

import math
import random
import statistics

import numpy
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
import sklearn.metrics
import statsmodels.stats.proportion

from finetune.data.question import Question
from finetune.data.subjects import category_of
from finetune.evaluation import evaluator, metrics
from finetune.evaluation.scores import Scores

SUBJECTS = ("physics", "junior_math_exam", "taxation", "trade", "music", "education", "economics")


def world(count=400, seed=0, subjects=SUBJECTS):
    """Questions of four options, and two models, the first better than the second."""
    rng = random.Random(seed)
    questions = [
        Question(f"q{i}", tuple("abcd"), rng.randrange(4), rng.choice(subjects), str(i)) for i in range(count)
    ]
    first = [q.answer if rng.random() < 0.5 else rng.randrange(4) for q in questions]
    second = [q.answer if rng.random() < 0.2 else rng.randrange(4) for q in questions]
    return questions, first, second


def scored(count=300, seed=1):
    """Rows of scores and answers; number of options 2 to 5, the right one a little ahead."""
    rng = random.Random(seed)
    rows, answers = [], []
    for _ in range(count):
        width = rng.randint(2, 5)
        answers.append(rng.randrange(width))
        rows.append([rng.gauss(0, 2) + 2.5 * (i == answers[-1]) for i in range(width)])
    return rows, answers


def test_recall_precision_f1_and_confusion_are_those_of_scikit_learn():
    questions, predictions, _ = world()
    gold = [q.answer for q in questions]
    found = metrics.letters(questions, predictions)
    for name, reference in (
        ("recall", sklearn.metrics.recall_score),
        ("precision", sklearn.metrics.precision_score),
        ("f1", sklearn.metrics.f1_score),
    ):
        assert found[name] == pytest.approx(reference(gold, predictions, average=None).tolist(), abs=1e-9)
    assert found["macro_f1"] == pytest.approx(
        sklearn.metrics.f1_score(gold, predictions, average="macro"), abs=1e-9
    )
    assert found["confusion"] == sklearn.metrics.confusion_matrix(gold, predictions).tolist()
    assert found["recall_std"] == pytest.approx(numpy.std(found["recall"]), abs=1e-9)
    assert found["chosen"] == pytest.approx([predictions.count(i) / len(predictions) for i in range(4)])


def test_a_question_that_was_not_scored_is_confused_with_nothing_and_never_right():
    questions = [Question("q", ("a", "b"), 0), Question("r", ("a", "b"), 1)]
    found = metrics.letters(questions, [0, -1])
    assert found["columns"] == ["A", "B", "?"] and found["confusion"] == [[1, 0, 0], [0, 0, 1]]
    assert found["recall"] == [1.0, 0.0] and metrics.accuracy(questions, [0, -1])["accuracy"] == 0.5


def test_categories_are_counted_by_question_with_the_interval_of_statsmodels():
    questions, predictions, _ = world()
    found = metrics.by_category(metrics.by_subject(questions, predictions))
    assert set(found) == {category_of(subject) for subject in SUBJECTS}
    for category, figures in found.items():
        hits = [
            q.answer == p
            for q, p in zip(questions, predictions, strict=True)
            if category_of(q.subject) == category
        ]
        assert (figures["right"], figures["n"]) == (sum(hits), len(hits))
        expected = statsmodels.stats.proportion.proportion_confint(sum(hits), len(hits), method="wilson")
        assert figures["interval_95"] == pytest.approx(expected, abs=1e-9)


def statistic_of_macro(subjects):
    """macro-4 of one array of hits a subject, for scipy's bootstrap."""

    def statistic(*samples, axis=-1):
        means = {name: sample.mean(axis=axis) for name, sample in zip(subjects, samples, strict=True)}
        of_category = {}
        for name, mean in means.items():
            of_category.setdefault(category_of(name), []).append(mean)
        return sum(sum(values) / len(values) for values in of_category.values()) / len(of_category)

    return statistic


def test_the_interval_of_macro_4_is_that_of_scipys_bootstrap_stratified_by_subject():
    questions, predictions, _ = world()
    found = metrics.macro_4(metrics.by_subject(questions, predictions))
    subjects = sorted(SUBJECTS)
    hits = [
        numpy.array(
            [q.answer == p for q, p in zip(questions, predictions, strict=True) if q.subject == name], float
        )
        for name in subjects
    ]
    reference = scipy.stats.bootstrap(
        hits, statistic_of_macro(subjects), n_resamples=4000, method="percentile",
        rng=numpy.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    assert found["interval_95"] == pytest.approx([reference.low, reference.high], abs=0.005)
    assert found["macro_4"] == pytest.approx(float(statistic_of_macro(subjects)(*hits)), abs=1e-9)


def test_the_paired_difference_and_its_interval_are_those_of_scipys_bootstrap():
    questions, first, second = world()
    found = metrics.difference(questions, first, second)
    steps = numpy.array(
        [(a == q.answer) - (b == q.answer) for q, a, b in zip(questions, first, second, strict=True)], float
    )
    reference = scipy.stats.bootstrap(
        (steps,), numpy.mean, n_resamples=4000, method="percentile", rng=numpy.random.default_rng(1)
    ).confidence_interval
    assert found["difference"] == pytest.approx(steps.mean(), abs=1e-9)
    assert found["difference_interval_95"] == pytest.approx([reference.low, reference.high], abs=0.006)
    subjects = sorted(SUBJECTS)
    by_subject = [steps[[q.subject == name for q in questions]] for name in subjects]
    reference = scipy.stats.bootstrap(
        by_subject, statistic_of_macro(subjects), n_resamples=4000, method="percentile",
        rng=numpy.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    assert found["macro_4_difference"] == pytest.approx(statistic_of_macro(subjects)(*by_subject), abs=1e-9)
    assert found["macro_4_difference_interval_95"] == pytest.approx(
        [reference.low, reference.high], abs=0.008
    )


def test_a_subject_of_one_question_has_its_figures_too():
    questions, first, second = world(count=7, subjects=SUBJECTS)
    questions = [Question(q.stem, q.options, q.answer, s) for q, s in zip(questions, SUBJECTS, strict=True)]
    assert metrics.paired(questions, first, second)["macro_4_difference_interval_95"]
    assert metrics.macro_4(metrics.by_subject(questions, first))["interval_95"]


def test_nll_and_brier_are_those_of_scikit_learn():
    rows, answers = scored()
    for width in (2, 3, 4, 5):
        some = [i for i, row in enumerate(rows) if len(row) == width]
        p = scipy.special.softmax([rows[i] for i in some], axis=1)
        gold = [answers[i] for i in some]
        found = metrics.calibration([rows[i] for i in some], gold)
        expected = sklearn.metrics.log_loss(gold, p, labels=range(width))
        assert found["nll"] == pytest.approx(expected, abs=1e-9)
        brier = sklearn.metrics.brier_score_loss(gold, p, labels=range(width), scale_by_half=False)
        assert found["brier"] == pytest.approx(brier, abs=1e-9)


def test_ece_is_the_gap_of_each_bin_weighted_by_its_questions():
    rows, answers = scored()
    rows, answers = [*rows, [45.0, 0.0]], [*answers, 1]  # wholly sure, and wrong
    found = metrics.calibration(rows, answers)
    gaps = 0.0
    for number in range(15):
        low, high = number / 15, (number + 1) / 15
        inside = []
        for row, answer in zip(rows, answers, strict=True):
            shares = [math.exp(value) for value in row]
            top = max(shares) / sum(shares)
            if low <= top < high or (number == 14 and top == 1.0):
                inside.append((top, row.index(max(row)) == answer))
        if inside:
            confidence, hits = (sum(column) / len(inside) for column in zip(*inside, strict=True))
            gaps += abs(confidence - hits) * len(inside) / len(rows)
    assert found["ece"] == pytest.approx(gaps, abs=1e-9)
    assert sum(b["n"] for b in found["bins"]) == len(rows)


@pytest.mark.slow
def test_the_temperature_is_the_one_with_the_least_loss():
    rows, answers = scored()
    overconfident = [[4 * value for value in row] for row in rows]
    found = metrics.fit_temperature(overconfident, answers)
    reference = scipy.optimize.minimize(
        lambda t: metrics.calibration(overconfident, answers, float(t[0]))["nll"], [1.0],
        method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-12},
    ).x[0]  # fmt: skip
    assert found == pytest.approx(reference, rel=1e-3)
    assert found == pytest.approx(4 * metrics.fit_temperature(rows, answers), rel=1e-3)
    before, after = (metrics.calibration(overconfident, answers, t)["ece"] for t in (1.0, found))
    assert after < before


def test_orders_tell_how_many_answers_flip_and_which_places_are_favoured():
    asked = [
        [((0, 1), [-0.1, -2.0]), ((1, 0), [-2.0, -0.1])],  # always the first place: the answer flips
        [((0, 1), [-0.1, -2.0]), ((1, 0), [-0.1, -2.0])],  # always option 0
        [((0, 1), [-0.1, -2.0])],  # asked once: says nothing
    ]
    found = metrics.order_bias(asked, [0, 0, 0])
    assert (found["questions"], found["flips"]) == (2, 0.5)
    assert found["chosen"] == [0.75, 0.25] and found["right"] == [0.5, 0.5]
    assert found["accuracy_as_written"] == 1.0 and found["accuracy_of_one_order"] == 0.75
    assert metrics.order_bias([[], []], [0, 1]) == {}


def test_between_options_of_equal_worth_a_rule_guesses():
    questions = [Question("天", ("甲乙", "丙丁", "戊己", "庚辛"), i) for i in range(4)]
    found = metrics.accuracy(questions, [0, 0, 0, 0])
    assert found["longest_option"] == found["shortest_option"] == found["overlap"] == 0.25


def test_rules_that_read_no_question_score_what_they_should():
    rows = [("天地", ("天天", "日"), 0), ("月", ("星", "月月月"), 1), ("辰", ("辰宿", "列"), 1)]
    questions = [Question(stem, options, answer) for stem, options, answer in rows]
    found = metrics.accuracy(questions, [0, 0, 0])
    assert found["longest_option"] == pytest.approx(2 / 3)
    assert found["shortest_option"] == pytest.approx(1 / 3)
    assert found["overlap"] == pytest.approx(2 / 3) and found["chance"] == 0.5


def test_k_options_of_equal_score_count_one_kth_in_every_figure():
    """As the mean over all ways to break the ties, told by scores of which none are equal."""
    rng = random.Random(3)
    questions, scores, broken = [], [], []
    for number in range(60):
        width = rng.randint(2, 4)
        row = [rng.choice((-1.0, -2.0)) for _ in range(width)]
        questions.append(Question(f"q{number}", tuple("甲乙丙丁"[:width]), rng.randrange(width), "physics"))
        scores.append(row)
        top = [i for i in range(width) if row[i] == max(row)]
        broken.append([top[turn % len(top)] for turn in range(12)])  # 12: by 2, 3 and 4
    result = evaluator.ExamResult(questions, Scores(scores), "joint", "1")
    ways = [[one[turn] for one in broken] for turn in range(12)]
    expected = statistics.fmean(
        sum(q.answer == p for q, p in zip(questions, way, strict=True)) / 60 for way in ways
    )
    found = metrics.accuracy(questions, result.predictions)
    assert found["accuracy"] == pytest.approx(expected) == pytest.approx(result.accuracy)
    assert found["right"] == pytest.approx(60 * expected)
    assert metrics.by_subject(questions, result.predictions)["physics"] == metrics.share(found["right"], 60)
    letters = metrics.letters(questions, result.predictions)
    single = [metrics.letters(questions, way) for way in ways]
    assert letters["recall"] == pytest.approx(numpy.mean([one["recall"] for one in single], axis=0))
    assert letters["chosen"] == pytest.approx(numpy.mean([one["chosen"] for one in single], axis=0))
    confusion = numpy.mean([one["confusion"] for one in single], axis=0)
    assert numpy.array(letters["confusion"]) == pytest.approx(confusion)
    assert metrics.calibration(scores, [q.answer for q in questions])["bins"][0]["accuracy"] <= 1
    hits = sum(
        b["n"] * b["accuracy"] for b in metrics.calibration(scores, [q.answer for q in questions])["bins"]
    )
    assert hits == pytest.approx(60 * expected)
    other = [rng.randrange(len(q.options)) for q in questions]
    gaps = [metrics.difference(questions, way, other)["difference"] for way in ways]
    assert metrics.difference(questions, result.predictions, other)["difference"] == pytest.approx(
        statistics.fmean(gaps)
    )


def test_with_ties_the_paired_test_is_scipys_permutation_of_pairs():
    rng = random.Random(5)
    first = [rng.choice((0, 1 / 3, 0.5, 1)) for _ in range(80)]
    second = [max(0, min(1, value - rng.choice((0, 0, 0.5, -0.25)))) for value in first]
    expected = scipy.stats.permutation_test(
        (numpy.array(first), numpy.array(second)), lambda a, b: numpy.mean(a) - numpy.mean(b),
        permutation_type="samples", n_resamples=4000, rng=1,
    ).pvalue  # fmt: skip
    assert metrics.paired_test(first, second)["p_value"] == pytest.approx(expected, abs=0.03)
    whole = [round(value) for value in first], [round(value) for value in second]
    only = [sum(a > b for a, b in zip(*whole, strict=True)), sum(a < b for a, b in zip(*whole, strict=True))]
    exact = scipy.stats.binomtest(only[0], sum(only)).pvalue
    assert metrics.paired_test(*whole)["p_value"] == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize(("right", "count"), [(0, 5), (5, 5), (3, 7), (250, 1000), (1, 1)])
def test_the_interval_of_whole_numbers_is_that_of_scipy(right, count):
    interval = scipy.stats.binomtest(right, count).proportion_ci(method="wilson")
    assert metrics.wilson(right, count) == pytest.approx((interval.low, interval.high), abs=1e-12)
    assert metrics.wilson(max(0, right - 0.5), count)[1] < metrics.wilson(right, count)[1] or right == 0
