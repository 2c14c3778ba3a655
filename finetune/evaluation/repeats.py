"""Several runs of one exam, each with its options in another order: figures of each run and of their mean.

The first run asks as written. Each further one shuffles the options of every question that may move, by the
run and the question's fingerprint, so that the same questions meet the same orders on every machine, whatever
stands beside them. Predictions are indices of the options as written.

Two uncertainties are kept apart (arXiv:2411.00640, sections 2 and 3.1). Questions are a sample: the score of
a question is its mean credit over the runs, and the interval comes from how these differ among questions.
The standard deviation over runs says how far one run is from another on these very questions; it gets no
smaller with more questions of the same kind, and says nothing of other questions.
"""

from __future__ import annotations

import functools
import random
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy

from finetune.data.question import Question, seeded_hash
from finetune.data.subjects import category_of
from finetune.evaluation import metrics
from finetune.evaluation.evaluator import ExamResult, letter
from finetune.evaluation.outcomes import NO_ANSWER, count_outcomes
from finetune.evaluation.question_interval import question_interval
from finetune.evaluation.scores import Order, Scores
from finetune.prompts.option_order import shuffled
from finetune.prompts.scoring_methods import GENERATE

Evaluate = Callable[[int, Sequence[Question], str], ExamResult]  # (run from 1, questions, title) -> result


@dataclass
class RepeatedResult(ExamResult):
    """Answers of one model in several runs; those of the first one where a question has one only.

    Args: as `ExamResult`: its scores are those of the first run, but `by_order`, which has one entry a run.

    Attributes:
        runs: the results, their scores by option as written.
    """

    runs: Sequence[ExamResult] = ()

    @property
    def predictions(self) -> list[metrics.Prediction]:
        """What was chosen in every run, for each question."""
        chosen: list[list[Any]] = [run.predictions for run in self.runs]
        return [metrics.Repeated(of_question) for of_question in zip(*chosen, strict=True)]

    @functools.cached_property
    def _letters(self) -> list[list[str | None]]:
        """The letter chosen in each run, for each question."""
        letters = [[letter(chosen) for chosen in run.predictions] for run in self.runs]
        return [list(of_question) for of_question in zip(*letters, strict=True)]

    def more_of(self, index: int) -> dict[str, Any]:
        """Return the letters chosen in the runs, of the options as written, and the replies if any."""
        record: dict[str, Any] = {"runs": self._letters[index]}
        if self.method == GENERATE:
            record["replies"] = [run.scores.replies.get(index, "") for run in self.runs]
        return record


def seed_of_run(seed: int | None, run: int) -> int | None:
    """Return the seed that a run samples with: the given one first, then others that follow from it."""
    if seed is None or run == 1:
        return seed
    return int.from_bytes(seeded_hash(seed, f"run {run}")[:4], "big")


def run_repeated(
    evaluate: Evaluate, questions: Sequence[Question], count: int | None, title: str
) -> ExamResult:
    """Evaluate questions `count` times, from the second run on with shuffled options.

    Args:
        evaluate: evaluates questions once, in the order of options that they have.
        questions: as written.
        count: number of runs; None and 1 are a single one, whose result is returned as it is.
        title: title of the progress bars.
    """
    if (count or 1) == 1 or not questions:
        return evaluate(1, questions, title)
    assert count is not None
    runs, orders_of_runs = [], []
    for run in range(1, count + 1):
        orders = [order_of_run(question, run) for question in questions]
        rows = [reordered(question, order) for question, order in zip(questions, orders, strict=True)]
        result = evaluate(run, rows, f"{title}（第 {run} 次，共 {count} 次）")
        scores = as_written(result.scores, orders)
        runs.append(ExamResult(list(questions), scores, result.method, result.orders))
        orders_of_runs.append(orders)
    first = runs[0]
    unanswered = {i for run in runs for i in (*run.scores.skipped, *run.scores.outcomes)}
    merged = copied(first.scores)
    merged.by_order = [
        []
        if index in unanswered
        else [
            (orders[index], run.scores[index])
            for orders, run in zip(orders_of_runs, runs, strict=True)
        ]
        for index in range(len(questions))
    ]  # fmt: skip
    return RepeatedResult(first.questions, merged, first.method, first.orders, runs=runs)


def order_of_run(question: Question, run: int) -> Order:
    """Return the order of options of a run, counted from 1: order[place] is the option shown there."""
    if run == 1:
        return tuple(range(len(question.options)))
    return shuffled(question.options, random.Random(seeded_hash(run, question.fingerprint)))


def reordered(question: Question, order: Order) -> Question:
    """Return the question with its options in another order."""
    answer = None if question.answer is None else order.index(question.answer)
    return replace(question, options=tuple(question.options[i] for i in order), answer=answer)


def as_written(scores: Scores, orders: Sequence[Order]) -> Scores:
    """Return scores of reordered questions by the options as written.

    Args:
        scores: of `reordered` questions.
        orders: the order of each.
    """
    written = copied(scores)
    for index, order in enumerate(orders):
        written[index] = _by_option(scores[index], order)
    written.by_order = [
        [(tuple(order[i] for i in shown), _by_option(row, order)) for shown, row in of_question]
        for of_question, order in zip(scores.by_order, orders, strict=False)  # none: of methods without
    ]
    return written


def copied(scores: Scores) -> Scores:
    """Return the same scores, with all that is known beside them, in an object of their own."""
    copy = Scores(scores)
    copy.__dict__ |= scores.__dict__
    return copy


def _by_option(row: Sequence[float], order: Order) -> list[float]:
    """Return scores by option as written, of scores by place."""
    return [row[order.index(option)] for option in range(len(order))]


# ---- figures -----------------------------------------------------------------------------------------------


def repeated_figures(
    result: ExamResult, other: ExamResult | None, figures: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the entries of results.json that differ for several runs; {} for a single one.

    Accuracies in `figures` are means over the runs already (`metrics.Repeated`); their intervals are
    replaced by those of question means. `repeats` holds what is known of each run.

    Args:
        result: the model's answers.
        other: a second model's answers to the same questions.
        figures: as `evaluator.compute_metrics` returns them.
    """
    if not isinstance(result, RepeatedResult):
        return {}
    credited = metrics.credits(result.questions, result.predictions)
    of_subject, of_category = _grouped(result.questions, credited)
    changed: dict[str, Any] = {
        "model": figures["model"] | question_interval(credited),
        "subjects": _with_intervals(figures["subjects"], of_subject),
        "categories": _with_intervals(figures["categories"], of_category),
        "repeats": _of_runs(result),
    }
    if figures["outcomes"]:  # means over runs would be no counts
        first = result.runs[0]
        credits_of_first = metrics.credits(first.questions, first.predictions)
        changed["outcomes"] = count_outcomes(credits_of_first, first.scores)
    if figures["macro_4"]:
        changed["macro_4"] = figures["macro_4"] | _macro_interval(of_subject)
    if other is not None:
        other_credits = metrics.credits(other.questions, other.predictions)
        changed["other"] = figures["other"] | question_interval(other_credits)
        if figures["other_macro_4"]:
            subjects, _ = _grouped(other.questions, other_credits)
            changed["other_macro_4"] = figures["other_macro_4"] | _macro_interval(subjects)
        if isinstance(other, RepeatedResult):
            changed["repeats"]["other"] = _spread_of([run.accuracy for run in other.runs])
    return changed


def _with_intervals(
    parts: Mapping[str, dict[str, Any]], credited: Mapping[str, Sequence[float]]
) -> dict[str, dict[str, Any]]:
    """Return subjects or categories with the intervals of their question means."""
    return {name: row | question_interval(credited[name]) for name, row in parts.items()}


def _macro_interval(of_subject: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """Return the interval of macro-4 by a bootstrap of questions within each subject."""
    weights = metrics.macro_weights(of_subject)
    assert weights is not None  # there is a macro-4
    rng = numpy.random.default_rng(0)
    drawn = sum(weight * metrics.resampled(rng, of_subject[name]) for name, weight in weights.items())
    return {"interval_95": numpy.percentile(drawn, metrics.INTERVAL).tolist()}


def _grouped(
    questions: Sequence[Question], credited: Sequence[float]
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Return the credits of each subject and of each category."""
    of_subject: dict[str, list[float]] = defaultdict(list)
    of_category: dict[str, list[float]] = defaultdict(list)
    for question, one in zip(questions, credited, strict=True):
        of_subject[question.subject].append(one)
        if category := category_of(question.subject):
            of_category[category].append(one)
    return of_subject, of_category


def _of_runs(result: RepeatedResult) -> dict[str, Any]:
    """Return the object `repeats` of results.json."""
    runs = [(run, metrics.by_subject(run.questions, run.predictions)) for run in result.runs]
    categories = [metrics.by_category(subjects) for _, subjects in runs]
    macro = [found["macro_4"] for _, subjects in runs if (found := metrics.macro_4(subjects))]
    answers = [chosen.runs for chosen in result.predictions if isinstance(chosen, metrics.Repeated)]
    return {
        "runs": len(runs),
        **_spread_of([run.accuracy for run, _ in runs]),
        "changed": fmean(len(set(chosen)) > 1 for chosen in answers),
        "skipped": [len(run.scores.skipped) for run, _ in runs],
        **{
            outcome: [list(run.scores.outcomes.values()).count(outcome) for run, _ in runs]
            for outcome in NO_ANSWER
        },
        "categories": {
            name: _spread_of([of_run[name]["accuracy"] for of_run in categories]) for name in categories[0]
        },
        "macro_4": _spread_of(macro) if macro else None,
    }


def _spread_of(accuracies: Sequence[float]) -> dict[str, Any]:
    """Return the accuracy of each run, their mean, standard deviation (n − 1) and range."""
    return {
        "accuracies": list(accuracies),
        "mean": fmean(accuracies),
        "sd": statistics.stdev(accuracies),
        "range": [min(accuracies), max(accuracies)],
    }
