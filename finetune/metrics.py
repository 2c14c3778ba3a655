"""Figures of an exam, each with what is needed to judge it. scipy does the statistics."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

from .exams import LETTERS, Question, majority_answer
from .subjects import CATEGORIES, category_of


def accuracy(questions: Sequence[Question], predictions: Sequence[int]) -> dict:
    """Accuracy per question (micro) with its 95 % Wilson interval and what it must be held against.

    `chance` guesses blindly; `majority_letter` answers the letter most often right on these rows;
    `longest_option` answers the longest text. Empty when there is no question.
    """
    if not questions:
        return {}
    right = sum(q.answer == p for q, p in zip(questions, predictions, strict=True))
    low, high = wilson(right, len(questions))
    common = majority_answer(questions)
    longest = [max(range(len(q.options)), key=lambda i, q=q: len(q.options[i])) for q in questions]
    return {
        "accuracy": right / len(questions),
        "right": right,
        "n": len(questions),
        "interval_95": [low, high],
        "chance": fmean(1 / len(q.options) for q in questions),
        "majority_letter": fmean(q.answer == common for q in questions),
        "majority_letter_is": LETTERS[common],
        "longest_option": fmean(q.answer == guess for q, guess in zip(questions, longest, strict=True)),
    }


def wilson(right: int, count: int) -> tuple[float, float]:
    """95 % Wilson score interval of a share (E. B. Wilson 1927; scipy's `proportion_ci`)."""
    from scipy.stats import binomtest

    interval = binomtest(right, count).proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.low), float(interval.high)


def by_subject(questions: Sequence[Question], predictions: Sequence[int]) -> dict[str, dict]:
    """right, n, accuracy and interval of each subject."""
    rows: dict[str, list[bool]] = defaultdict(list)
    for question, prediction in zip(questions, predictions, strict=True):
        rows[question.subject].append(question.answer == prediction)
    return {
        subject: {
            "right": sum(hits),
            "n": len(hits),
            "accuracy": fmean(hits),
            "interval_95": list(wilson(sum(hits), len(hits))),
        }
        for subject, hits in sorted(rows.items())
    }


def macro_4(subjects: dict[str, dict]) -> dict | None:
    """Mean of four category means, each the mean of its subjects: as published for TMMLU+ (ievals).

    None when a category has no subject here: the figure would be another one.
    """
    means: dict[str, list[float]] = defaultdict(list)
    for subject, figures in subjects.items():
        if category := category_of(subject):
            means[category].append(figures["accuracy"])
    if means.keys() != CATEGORIES.keys():
        return None
    categories = {category: fmean(means[category]) for category in CATEGORIES}
    return {
        "macro_4": fmean(categories.values()),
        "categories": categories,
        "subjects": sum(map(len, means.values())),
    }


def mcnemar(questions: Sequence[Question], first: Sequence[int], second: Sequence[int]) -> dict:
    """Exact McNemar test of two models on the same questions, by those that only one of them gets right."""
    from scipy.stats import binomtest

    only_first = only_second = 0
    for question, a, b in zip(questions, first, second, strict=True):
        only_first += a == question.answer != b
        only_second += b == question.answer != a
    p = float(binomtest(only_first, only_first + only_second).pvalue) if only_first + only_second else 1.0
    return {"only_first_right": only_first, "only_second_right": only_second, "p_value": p}
