"""Figures of an exam, each with what is needed to judge it. scikit-learn and scipy do what they have.

`predictions` are indices of options, -1 where a question could not be asked: never right. Scores are rows of
log-probabilities, one per option. Accuracies and shares are 0 to 1.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

import numpy

from .questions import LETTERS, Question, majority_answer, normalised
from .scoring import best
from .subjects import CATEGORIES, category_of

RESAMPLES = 10_000  # of a bootstrap: the ends of its interval then move by a fiftieth of its width
BINS = 15  # equal-width bins of confidence (arXiv:1706.04599, section 2)
INTERVAL = (2.5, 97.5)  # percentiles


# ---- accuracy ----------------------------------------------------------------------------------------------


def accuracy(questions: Sequence[Question], predictions: Sequence[int]) -> dict:
    """Accuracy per question (micro) with its 95 % Wilson interval and what it must be held against.

    `chance` guesses blindly; `majority_letter` answers the letter most often right on these rows;
    `longest_option` and `shortest_option` answer by length, `overlap` the option that shares the largest
    part of its characters with the stem; between equals they guess. Empty when there is no question.
    """
    if not questions:
        return {}
    common = majority_answer(questions)
    return {
        **share(*_counted(questions, predictions)),
        "chance": fmean(1 / len(q.options) for q in questions),
        "majority_letter": fmean(q.answer == common for q in questions),
        "majority_letter_is": LETTERS[common],
        "longest_option": _rule(questions, lambda q, text: len(text)),
        "shortest_option": _rule(questions, lambda q, text: -len(text)),
        "overlap": _rule(questions, _overlap),
    }


def share(right: int, n: int) -> dict:
    """accuracy, right, n and interval_95."""
    return {"accuracy": right / n, "right": right, "n": n, "interval_95": list(wilson(right, n))}


def _counted(questions: Sequence[Question], predictions: Sequence[int]) -> tuple[int, int]:
    """How many are right, of how many."""
    return sum(q.answer == p for q, p in zip(questions, predictions, strict=True)), len(questions)


def _rule(questions: Sequence[Question], worth) -> float:
    """The accuracy to be expected of answering the option that is worth most."""
    shares = []
    for question in questions:
        worths = [worth(question, text) for text in question.options]
        top = max(worths)
        shares.append((worths[question.answer] == top) / worths.count(top))
    return fmean(shares)


def _overlap(question: Question, text: str) -> float:
    mine, stem = set(normalised(text)), set(normalised(question.stem))
    return len(mine & stem) / len(mine) if mine else 0.0


def wilson(right: int, count: int) -> tuple[float, float]:
    """95 % Wilson score interval of a share (E. B. Wilson 1927; scipy's `proportion_ci`)."""
    from scipy.stats import binomtest

    interval = binomtest(right, count).proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.low), float(interval.high)


def by_subject(questions: Sequence[Question], predictions: Sequence[int]) -> dict[str, dict]:
    """accuracy, right, n and interval_95 of each subject."""
    rows: dict[str, list[bool]] = defaultdict(list)
    for question, chosen in zip(questions, predictions, strict=True):
        rows[question.subject].append(question.answer == chosen)
    return {subject: share(sum(hits), len(hits)) for subject, hits in sorted(rows.items())}


def by_category(subjects: dict[str, dict]) -> dict[str, dict]:
    """The same of each category, per question; only those of which there is a subject here."""
    rows: dict[str, list[dict]] = defaultdict(list)
    for subject, figures in subjects.items():
        if category := category_of(subject):
            rows[category].append(figures)
    return {
        category: {
            **share(sum(row["right"] for row in rows[category]), sum(row["n"] for row in rows[category])),
            "subjects": len(rows[category]),
        }
        for category in CATEGORIES
        if category in rows
    }


def macro_4(subjects: dict[str, dict]) -> dict | None:
    """Mean of four category means, each the mean of its subjects: as published for TMMLU+ (ievals).

    Its interval is a bootstrap stratified by subject. None when a category has no subject here: the figure
    would be another one.
    """
    weights = _macro_weights(subjects)
    if weights is None:
        return None
    names = list(weights)
    categories = {
        category: fmean(subjects[name]["accuracy"] for name in names if category_of(name) == category)
        for category in CATEGORIES
    }
    rng = numpy.random.default_rng(0)
    drawn = numpy.zeros(RESAMPLES)
    for name, weight in weights.items():  # n draws with replacement from n hits and misses are a binomial
        figures = subjects[name]
        drawn += weight * rng.binomial(figures["n"], figures["accuracy"], RESAMPLES) / figures["n"]
    return {
        "macro_4": fmean(categories.values()),
        "interval_95": numpy.percentile(drawn, INTERVAL).tolist(),
        "categories": categories,
        "subjects": len(names),
    }


def _macro_weights(subjects: dict[str, dict]) -> dict[str, float] | None:
    """How much a subject's accuracy weighs in macro-4; None when a category has no subject."""
    of_category: dict[str, list[str]] = defaultdict(list)
    for name in subjects:
        if category := category_of(name):
            of_category[category].append(name)
    if of_category.keys() != CATEGORIES.keys():
        return None
    return {name: 1 / (4 * len(names)) for names in of_category.values() for name in names}


# ---- two models on the same questions ----------------------------------------------------------------------


def paired(questions: Sequence[Question], first: Sequence[int], second: Sequence[int]) -> dict:
    """McNemar's test, and the difference first − second with its paired-bootstrap interval: micro, and
    macro-4 where it exists."""
    return {**mcnemar(questions, first, second), **difference(questions, first, second)}


def mcnemar(questions: Sequence[Question], first: Sequence[int], second: Sequence[int]) -> dict:
    """Exact McNemar test of two models on the same questions, by those that only one of them gets right."""
    from scipy.stats import binomtest

    only_first = only_second = 0
    for question, a, b in zip(questions, first, second, strict=True):
        only_first += a == question.answer != b
        only_second += b == question.answer != a
    p = float(binomtest(only_first, only_first + only_second).pvalue) if only_first + only_second else 1.0
    return {"only_first_right": only_first, "only_second_right": only_second, "p_value": p}


def difference(questions: Sequence[Question], first: Sequence[int], second: Sequence[int]) -> dict:
    """first − second in accuracy; 95 % by a paired bootstrap, which draws whole questions (for macro-4 within
    each subject)."""
    steps: dict[str, list[int]] = defaultdict(list)
    for question, a, b in zip(questions, first, second, strict=True):
        steps[question.subject].append((a == question.answer) - (b == question.answer))
    rng = numpy.random.default_rng(0)
    everything = [step for row in steps.values() for step in row]
    found = {
        "difference": fmean(everything),
        "difference_interval_95": numpy.percentile(_resampled(rng, everything), INTERVAL).tolist(),
    }
    if weights := _macro_weights(steps):
        drawn = sum(weight * _resampled(rng, steps[name]) for name, weight in weights.items())
        found["macro_4_difference"] = sum(weights[name] * fmean(steps[name]) for name in weights)
        found["macro_4_difference_interval_95"] = numpy.percentile(drawn, INTERVAL).tolist()
    return found


def _resampled(rng, steps: Sequence[int]) -> numpy.ndarray:
    """Means of RESAMPLES draws with replacement from values −1, 0, 1: multinomial counts."""
    shares = [steps.count(value) / len(steps) for value in (-1, 0, 1)]
    counts = rng.multinomial(len(steps), shares, RESAMPLES)
    return (counts[:, 2] - counts[:, 0]) / len(steps)


# ---- letters and orders ------------------------------------------------------------------------------------


def letters(questions: Sequence[Question], predictions: Sequence[int]) -> dict:
    """How the letters of the key are met: recall, precision, F1 and support of each, their confusion, how
    often each is chosen, macro F1, and RStd, the standard deviation of the recalls (arXiv:2309.03882,
    section 2.2). A question that could not be asked counts as chosen nothing: a column of its own, `?`."""
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    gold = [question.answer for question in questions]
    places = list(range(max(len(question.options) for question in questions)))
    precision, recall, f1, support = precision_recall_fscore_support(
        gold, predictions, labels=places, zero_division=0.0
    )
    columns = [*places, -1] if -1 in predictions else places
    confusion = confusion_matrix(gold, predictions, labels=columns)[: len(places)]
    asked = [recall[i] for i in range(len(places)) if support[i]]
    return {
        "letters": [LETTERS[place] for place in places],
        "recall": recall.tolist(),
        "precision": precision.tolist(),
        "f1": f1.tolist(),
        "support": support.tolist(),
        "chosen": [sum(p == place for p in predictions) / len(predictions) for place in places],
        "columns": [LETTERS[place] if place >= 0 else "?" for place in columns],
        "confusion": confusion.tolist(),
        "macro_f1": fmean(f1[i] for i in range(len(places)) if support[i]),
        "recall_std": float(numpy.std(asked)),
    }


def order_bias(by_order: Sequence[Sequence[tuple[tuple[int, ...], Sequence[float]]]], answers) -> dict:
    """What the order of the options does: share of questions whose answer is not the same in every order,
    accuracy over all orders, and how often each place is chosen against how often it was right.

    Args:
        by_order: of each question (order, scores by option) of every order it was asked in.
        answers: the right option of each.

    Returns:
        {} when no question was asked in more than one order.
    """
    rows = [(asked, answer) for asked, answer in zip(by_order, answers, strict=True) if len(asked) > 1]
    if not rows:
        return {}
    flips, hits, as_written = 0, [], []
    width = max(len(order) for asked, _ in rows for order, _ in asked)
    chosen, right = [0] * width, [0] * width
    for asked, answer in rows:
        picked = [best(row) for _, row in asked]
        flips += len(set(picked)) > 1
        hits += [option == answer for option in picked]
        as_written.append(picked[0] == answer)
        for (order, _), option in zip(asked, picked, strict=True):
            chosen[order.index(option)] += 1
            right[order.index(answer)] += 1
    return {
        "questions": len(rows),
        "orders": sum(len(asked) for asked, _ in rows) / len(rows),
        "flips": flips / len(rows),
        "accuracy_as_written": fmean(as_written),
        "accuracy_of_one_order": fmean(hits),
        "places": list(LETTERS[:width]),
        "chosen": [count / len(hits) for count in chosen],
        "right": [count / len(hits) for count in right],
    }


# ---- calibration -------------------------------------------------------------------------------------------


def probabilities(scores: Sequence[float], temperature: float = 1.0) -> numpy.ndarray:
    """Softmax of one question's scores over its options."""
    from scipy.special import softmax

    return softmax(numpy.asarray(scores, dtype=float) / temperature)


def fit_temperature(rows: Sequence[Sequence[float]], answers: Sequence[int]) -> float:
    """The temperature with the least negative log-likelihood (arXiv:1706.04599, section 4.2), within 0.05 to
    100. To be fitted on rows that are neither taught nor examined."""
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda log_t: _nll(rows, answers, math.exp(log_t)), bounds=(math.log(0.05), math.log(100)),
        method="bounded",
    )  # fmt: skip
    return float(math.exp(found.x))


def _nll(rows, answers, temperature: float) -> float:
    from scipy.special import log_softmax

    return fmean(
        -float(log_softmax(numpy.asarray(row, dtype=float) / temperature)[answer])
        for row, answer in zip(rows, answers, strict=True)
    )


def calibration(rows: Sequence[Sequence[float]], answers: Sequence[int], temperature: float = 1.0) -> dict:
    """Does the model know what it knows? Of the answers' softmax over the options:

    `nll` mean −log p(right); `brier` mean Σ (p − right)² over the options (Brier 1950, 0 to 2); `ece` mean
    |accuracy − confidence| over BINS bins of confidence, weighted by their questions (arXiv:1706.04599,
    equation 3), and the bins themselves. {} without rows.
    """
    if not rows:
        return {}
    confidence, hits, brier = [], [], []
    for row, answer in zip(rows, answers, strict=True):
        p = probabilities(row, temperature)
        chosen = int(p.argmax())
        confidence.append(float(p[chosen]))
        hits.append(chosen == answer)
        brier.append(float(((p - (numpy.arange(len(p)) == answer)) ** 2).sum()))
    place = numpy.minimum((numpy.asarray(confidence) * BINS).astype(int), BINS - 1)
    bins = []
    for number in range(BINS):
        inside = [i for i in range(len(rows)) if place[i] == number]
        if inside:
            bins.append(
                {
                    "from": number / BINS, "to": (number + 1) / BINS, "n": len(inside),
                    "confidence": fmean(confidence[i] for i in inside),
                    "accuracy": fmean(hits[i] for i in inside),
                }
            )  # fmt: skip
    return {
        "temperature": temperature,
        "nll": _nll(rows, answers, temperature),
        "brier": fmean(brier),
        "ece": sum(b["n"] * abs(b["accuracy"] - b["confidence"]) for b in bins) / len(rows),
        "confidence": fmean(confidence),
        "bins": bins,
    }
