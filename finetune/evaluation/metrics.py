"""Metrics of an exam, each with what is needed to judge it; by scikit-learn and scipy where they have it.

`predictions` are indices of options, -1 where a question could not be scored: never right. Where k options
share the highest score, the prediction is the tuple of them: right by 1/k if the answer is one, whatever the
order they stand in (see `credit`). Scores are rows of log-probabilities, one per option. Accuracies and
shares are 0 to 1.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean
from typing import Any

import numpy

from finetune.data.question import LETTERS, Question, majority_answer, normalised
from finetune.data.subjects import CATEGORIES, SUBJECTS, category_of
from finetune.evaluation.scores import tied


@dataclass(frozen=True)
class Repeated:
    """Predictions of one question in several runs: its credit is the mean over them."""

    runs: tuple[int | tuple[int, ...], ...]


Prediction = int | tuple[int, ...] | Repeated
RESAMPLES = 10_000  # bootstrap samples: the ends of the interval then move by a fiftieth of its width
MOST_DRAWN = 1 << 24  # counts of a bootstrap that are held at a time
BINS = 15  # equal-width bins of confidence (arXiv:1706.04599, section 2)
INTERVAL = (2.5, 97.5)  # percentiles
SIGNIFICANT, CERTAIN = 0.05, 1e-4  # p-values


# ---- accuracy ----------------------------------------------------------------------------------------------


def credit(answer: int | None, prediction: Prediction) -> float:
    """Return 1 for the answer, 1/k for k options of which it is one, else 0; of several runs the mean."""
    if isinstance(prediction, Repeated):
        return fmean(credit(answer, chosen) for chosen in prediction.runs)
    if isinstance(prediction, tuple):
        return (answer in prediction) / max(1, len(prediction))
    return float(answer == prediction)


def credits(questions: Sequence[Question], predictions: Sequence[Prediction]) -> list[float]:
    """Return the credit of each question."""
    return [credit(question.answer, chosen) for question, chosen in zip(questions, predictions, strict=True)]


def accuracy(questions: Sequence[Question], predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Return accuracy per question (micro) with its 95 % Wilson interval and what to hold it against.

    `chance` guesses blindly; `majority_letter` answers the letter most often right on these rows;
    `longest_option` and `shortest_option` answer by length, `overlap` the option that shares the largest
    part of its characters with the stem; between equals they guess. Empty when there is no question.
    """
    if not questions:
        return {}
    common = majority_answer(questions)
    return {
        **share(sum(credits(questions, predictions)), len(questions)),
        "chance": fmean(1 / len(q.options) for q in questions),
        "majority_letter": fmean(q.answer == common for q in questions),
        "majority_letter_is": LETTERS[common],
        "longest_option": _rule(questions, lambda q, text: len(text)),
        "shortest_option": _rule(questions, lambda q, text: -len(text)),
        "overlap": _rule(questions, _overlap),
    }


def share(right: float, n: int) -> dict[str, Any]:
    """Return accuracy, right, n and interval_95; `right` is no whole number where ties counted in part."""
    right = _whole(right)
    return {"accuracy": right / n, "right": right, "n": n, "interval_95": list(wilson(right, n))}


def _whole(right: float) -> float:
    """Round a sum of shares such as 1/3 that is a whole number but for rounding errors."""
    return round(right) if abs(right - round(right)) < 1e-9 else right


def _rule(questions: Sequence[Question], value: Callable[[Question, str], float]) -> float:
    """Return the accuracy expected of answering the option of the highest value, a random one of equals."""
    shares = []
    for question in questions:
        values = [value(question, text) for text in question.options]
        top = max(values)
        best = tuple(option for option, worth in enumerate(values) if worth == top)
        shares.append(credit(question.answer, best))
    return fmean(shares)


def _overlap(question: Question, text: str) -> float:
    """Return the share of an option's characters that its question's stem has too."""
    option, stem = set(normalised(text)), set(normalised(question.stem))
    return len(option & stem) / len(option) if option else 0.0


def wilson(right: float, count: float) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a share (E. B. Wilson 1927).

    scipy's takes whole numbers alone; `right` may hold shares of ties.
    """
    z = NormalDist().inv_cdf(0.975)
    share, width = right / count, z * z / count
    middle, spread = share + width / 2, z * math.sqrt(share * (1 - share) / count + width / (4 * count))
    low, high = (middle - spread) / (1 + width), (middle + spread) / (1 + width)
    return 0.0 if right == 0 else low, 1.0 if right == count else high


def by_subject(questions: Sequence[Question], predictions: Sequence[Prediction]) -> dict[str, dict]:
    """Return accuracy, right, n and interval_95 of each subject."""
    rows: dict[str, list[float]] = defaultdict(list)
    for question, right in zip(questions, credits(questions, predictions), strict=True):
        rows[question.subject].append(right)
    return {subject: share(sum(hits), len(hits)) for subject, hits in sorted(rows.items())}


def by_category(subjects: dict[str, dict]) -> dict[str, dict]:
    """Return the same of each category, per question; only of those with a subject here."""
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


def macro_4(subjects: dict[str, dict]) -> dict[str, Any] | None:
    """Return the mean of four category means, each the mean of its subjects, as TMMLU+ is published (ievals).

    Its interval is a bootstrap stratified by subject. None when a category has no subject here: the figure
    would be another one.
    """
    weights = macro_weights(subjects)
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


def macro_weights(subjects: Mapping[str, object]) -> dict[str, float] | None:
    """Return the weight of each subject's accuracy in macro-4; None when a category has no subject.

    Only the 66 published subjects have one: linear_algebra has a category and is in no published figure.
    """
    of_category: dict[str, list[str]] = defaultdict(list)
    for name in subjects:
        if name in SUBJECTS and (category := category_of(name)):
            of_category[category].append(name)
    if of_category.keys() != CATEGORIES.keys():
        return None
    return {name: 1 / (4 * len(names)) for names in of_category.values() for name in names}


# ---- two models on the same questions ----------------------------------------------------------------------


def paired(questions: Sequence[Question], first: Sequence[Prediction], second: Sequence[Prediction]) -> dict:
    """Return McNemar's test, and the difference first − second with its paired-bootstrap interval.

    The difference is micro, and macro-4 where it exists.
    """
    return {**mcnemar(questions, first, second), **difference(questions, first, second)}


def mcnemar(questions: Sequence[Question], first: Sequence[Prediction], second: Sequence[Prediction]) -> dict:
    """Test two models on the same questions by McNemar's test, see `paired_test`."""
    return paired_test(credits(questions, first), credits(questions, second))


def paired_test(first: Sequence[float], second: Sequence[float]) -> dict:
    """Test whether two models differ on the same rows, by the rows whose credit differs.

    Exact McNemar; where ties count in part, its generalisation: the sign of each difference is as likely the
    other one (Fisher's randomisation test, two-sided, RESAMPLES draws).

    Args:
        first: credit of each row for the first model, 0 to 1.
        second: the same for the second.
    """
    from scipy.stats import binomtest

    differences = [round(float(a - b), 9) for a, b in zip(first, second, strict=True)]
    only_first, only_second = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    sizes = Counter(abs(d) for d in differences if d)
    if not sizes:
        p = 1.0
    elif len(sizes) == 1:
        p = float(binomtest(only_first, only_first + only_second).pvalue)
    else:
        rng = numpy.random.default_rng(0)
        drawn = sum(size * (2 * rng.binomial(n, 0.5, RESAMPLES) - n) for size, n in sizes.items())
        p = float((1 + (numpy.abs(drawn) >= abs(sum(differences)) - 1e-6).sum()) / (1 + RESAMPLES))
    return {"only_first_right": only_first, "only_second_right": only_second, "p_value": p}


def difference(
    questions: Sequence[Question], first: Sequence[Prediction], second: Sequence[Prediction]
) -> dict:
    """Return first − second in accuracy, see `difference_of_credits`."""
    subjects = [question.subject for question in questions]
    return difference_of_credits(subjects, credits(questions, first), credits(questions, second))


def difference_of_credits(
    subjects: Sequence[str], first: Sequence[float], second: Sequence[float]
) -> dict[str, Any]:
    """Return first − second in accuracy with its 95 % interval by a paired bootstrap.

    The bootstrap draws whole questions, for macro-4 within each subject.

    Args:
        subjects: of each question.
        first: credit of each question for the first model, 0 to 1.
        second: the same for the second.
    """
    differences: dict[str, list[float]] = defaultdict(list)
    for subject, a, b in zip(subjects, first, second, strict=True):
        differences[subject].append(a - b)
    rng = numpy.random.default_rng(0)
    figures = mean_difference([d for of_subject in differences.values() for d in of_subject], rng)
    if weights := macro_weights(differences):
        drawn = sum(weight * resampled(rng, differences[name]) for name, weight in weights.items())
        figures["macro_4_difference"] = sum(weights[name] * fmean(differences[name]) for name in weights)
        figures["macro_4_difference_interval_95"] = numpy.percentile(drawn, INTERVAL).tolist()
    return figures


def mean_difference(
    differences: Sequence[float], rng: numpy.random.Generator | None = None
) -> dict[str, Any]:
    """Return the mean difference of two models with its 95 % interval by a bootstrap of the rows.

    Args:
        differences: for each row, the credit of one model minus that of the other.
        rng: random numbers of the bootstrap; those of seed 0 when None.
    """
    drawn = resampled(rng or numpy.random.default_rng(0), differences)
    return {
        "difference": fmean(differences),
        "difference_interval_95": numpy.percentile(drawn, INTERVAL).tolist(),
    }


def resampled(rng: numpy.random.Generator, differences: Sequence[float]) -> numpy.ndarray:
    """Return means of RESAMPLES draws with replacement: multinomial counts of the few values there are."""
    values, counts = numpy.unique(numpy.round(differences, 9), return_counts=True)
    count = len(differences)
    size = max(1, MOST_DRAWN // len(values))  # in parts: of thousands of values they would take gigabytes
    parts = [
        rng.multinomial(count, counts / count, min(size, RESAMPLES - start)) @ values / count
        for start in range(0, RESAMPLES, size)
    ]
    return numpy.concatenate(parts)


# ---- letters and orders ------------------------------------------------------------------------------------


def letters(questions: Sequence[Question], predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Return recall, precision, F1, support and confusion of the letters of the key.

    Also how often each is chosen, macro F1, and RStd, the standard deviation of the recalls
    (arXiv:2309.03882, section 2.2). A question that could not be scored has no letter chosen: a column of its
    own, `?`. Of k options that share the highest score each is chosen by 1/k, in each of R runs by 1/R.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    spread = [_spread(chosen) for chosen in predictions]
    gold = [question.answer for question, each in zip(questions, spread, strict=True) for _ in each]
    chosen = [place for each in spread for place, _ in each]
    weights = [weight for each in spread for _, weight in each]
    places = list(range(max(len(question.options) for question in questions)))
    precision, recall, f1, support = precision_recall_fscore_support(
        gold, chosen, labels=places, zero_division=0.0, sample_weight=weights
    )
    columns = [*places, -1] if -1 in chosen else places
    confusion = confusion_matrix(gold, chosen, labels=columns, sample_weight=weights)[: len(places)]
    recalls = [recall[i] for i in range(len(places)) if support[i]]
    return {
        "letters": [LETTERS[place] for place in places],
        "recall": recall.tolist(),
        "precision": precision.tolist(),
        "f1": f1.tolist(),
        "support": [round(count) for count in support],
        "chosen": [
            sum(w for p, w in zip(chosen, weights, strict=True) if p == place) / len(questions)
            for place in places
        ],
        "columns": [LETTERS[place] if place >= 0 else "?" for place in columns],
        "confusion": [[_whole(count) for count in row] for row in confusion.tolist()],
        "macro_f1": fmean(f1[i] for i in range(len(places)) if support[i]),
        "recall_std": float(numpy.std(recalls)),
    }


def _spread(chosen: Prediction) -> list[tuple[int, float]]:
    """Return the options that share a prediction, each with its part; -1 for none."""
    if isinstance(chosen, Repeated):
        parts = [part for run in chosen.runs for part in _spread(run)]
        return [(option, part / len(chosen.runs)) for option, part in parts]
    options = (chosen if isinstance(chosen, tuple) else (chosen,)) or (-1,)
    return [(option, 1 / len(options)) for option in options]


def order_bias(
    by_order: Sequence[Sequence[tuple[tuple[int, ...], Sequence[float]]]], answers: Sequence[Any]
) -> dict[str, Any]:
    """Measure how answers depend on the order of the options.

    Args:
        by_order: for each question (order, scores by option), once for every order it was scored in.
        answers: the right option of each.

    Returns:
        `flips` the share of questions whose answer is not the same in every order; accuracy over all orders;
        how often each place is chosen against how often it was right. {} when no question was scored in more
        than one order.
    """
    rows = [(orders, answer) for orders, answer in zip(by_order, answers, strict=True) if len(orders) > 1]
    if not rows:
        return {}
    flips = 0
    hits: list[float] = []
    as_written: list[float] = []
    width = max(len(order) for orders, _ in rows for order, _ in orders)
    chosen, right = [0.0] * width, [0] * width
    for orders, answer in rows:
        picked = [tied(row) for _, row in orders]
        flips += len(set(picked)) > 1
        hits += [credit(answer, options) for options in picked]
        as_written.append(credit(answer, picked[0]))
        for (order, _), options in zip(orders, picked, strict=True):
            for option in options:
                chosen[order.index(option)] += 1 / len(options)
            right[order.index(answer)] += 1
    return {
        "questions": len(rows),
        "orders": sum(len(orders) for orders, _ in rows) / len(rows),
        "flips": flips / len(rows),
        "accuracy_as_written": fmean(as_written),
        "accuracy_of_one_order": fmean(hits),
        "places": list(LETTERS[:width]),
        "chosen": [count / len(hits) for count in chosen],
        "right": [count / len(hits) for count in right],
    }


# ---- calibration -------------------------------------------------------------------------------------------


def probabilities(scores: Sequence[float], temperature: float = 1.0) -> numpy.ndarray:
    """Return the softmax of one question's scores over its options."""
    from scipy.special import softmax

    return softmax(numpy.asarray(scores, dtype=float) / temperature)


def fit_temperature(rows: Sequence[Sequence[float]], answers: Sequence[int]) -> float:
    """Fit the temperature of the least negative log-likelihood (arXiv:1706.04599, section 4.2).

    It lies within 0.05 to 100. To be fitted on rows that are neither trained nor evaluated on.
    """
    from scipy.optimize import minimize_scalar

    minimum = minimize_scalar(
        lambda log_t: _nll(rows, answers, math.exp(log_t)), bounds=(math.log(0.05), math.log(100)),
        method="bounded",
    )  # fmt: skip
    return float(math.exp(minimum.x))


def _nll(rows: Sequence[Sequence[float]], answers: Sequence[int], temperature: float) -> float:
    """Return the mean negative log-likelihood of the answers, in nats."""
    from scipy.special import log_softmax

    of_length: dict[int, list[int]] = defaultdict(list)  # as one array each: a fit asks dozens of times
    for index, row in enumerate(rows):
        of_length[len(row)].append(index)
    losses = numpy.empty(len(rows))
    for indices in of_length.values():
        logprobs = log_softmax(numpy.array([rows[i] for i in indices], dtype=float) / temperature, axis=1)
        losses[indices] = -logprobs[range(len(indices)), [answers[i] for i in indices]]
    return fmean(losses)


def calibration(rows: Sequence[Sequence[float]], answers: Sequence[int], temperature: float = 1.0) -> dict:
    """Measure the calibration of the softmax over the options.

    `nll` mean −log p(right); `brier` mean Σ (p − right)² over the options (Brier 1950, 0 to 2); `ece` mean
    |accuracy − confidence| over BINS bins of confidence, weighted by their questions (arXiv:1706.04599,
    equation 3), and the bins themselves. {} without rows.
    """
    if not rows:
        return {}
    confidence, hits, brier = [], [], []
    for row, answer in zip(rows, answers, strict=True):
        p = probabilities(row, temperature)
        confidence.append(float(p.max()))
        hits.append(credit(answer, tied(row)))
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
