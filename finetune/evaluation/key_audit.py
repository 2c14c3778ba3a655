"""Keys that may be wrong: questions where models, in every order of the options, agree on another option.

A vote is the scores of one question by one model in one order of its options. A question is listed when
(nearly) all votes name the same option and the key is another one. The rank is by the normalized margin,
log p(that option) − log p(key), the model's probabilities being calibrated and averaged over the votes.

The margin is one of the label quality scores of Kuan and Mueller (2022, "Model-agnostic label quality scoring
to detect real-world label noise"); averaging over predictors is their ensemble score, and the weight of a
model, how far it is above guessing, is that of CROWDLAB (arXiv:2210.06812, section 3). The per-class
thresholds of confident learning (arXiv:1911.00068) have no use here: the options of two questions are not the
same classes, and a habit of choosing a letter leaves the average over orders by itself. Of what such methods
list, people found about half to be errors (arXiv:2103.14749, 51 %; in MMLU 6.5 % of all questions have one,
arXiv:2406.04127): the list says what to read again, and decides nothing.

A confident mistake that a model makes in every order looks the same as a wrong key. How often votes agree by
accident is computed as if each erred by itself, which is the least it can be: see `agreements_by_accident`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import fmean
from typing import Any

import numpy

from finetune.data.question import LETTERS, Question
from finetune.evaluation import metrics
from finetune.evaluation.evaluator import ExamResult
from finetune.evaluation.question_queries import log_softmax
from finetune.evaluation.repeats import RepeatedResult, order_of_run
from finetune.evaluation.scores import Order, tied

NEARLY_ALL = 0.8  # of the votes, weighted, that must name the same option: 4 of 4, 4 of 5, 10 of 12
TOP = 20  # listed questions that results.json and the report keep
Vote = tuple[Order, Sequence[float]]  # the options as shown, the score of each option as written


@dataclass(frozen=True)
class Voter:
    """Votes of one model.

    Attributes:
        name: of the model, for people.
        votes: for each question its votes; none where the model gave no answer.
    """

    name: str
    votes: Sequence[Sequence[Vote]]


@dataclass(frozen=True)
class Trust:
    """How far a voter is to be believed, by the keys as they are.

    Attributes:
        accuracy: share of the questions it answers right, by the mean over its votes.
        weight: 0 where it is not better than guessing, 1 where it is always right.
        temperature: at which its mean scores fit the keys best.
        logprobs: for each question the log-probabilities of its options then; None without a vote.
    """

    accuracy: float
    weight: float
    temperature: float
    logprobs: Sequence[list[float] | None]


@dataclass(frozen=True)
class KeyAudit:
    """Result of an audit.

    Attributes:
        rows: the doubtful keys, most doubtful first: rows of doubtful_keys.jsonl.
        summary: for results.json: who voted, how many are listed, how many would be by accident; `top` rows.
    """

    rows: list[dict[str, Any]]
    summary: dict[str, Any]


def voter_of(result: ExamResult, name: str) -> Voter:
    """Return the votes of an exam's result: one for each run, each order, or the one there is."""
    if isinstance(result, RepeatedResult):
        runs = [_single_votes(run, number) for number, run in enumerate(result.runs, 1)]
        return Voter(name, [[*chain(*of_question)] for of_question in zip(*runs, strict=True)])
    by_order = result.scores.by_order
    if any(len(orders) > 1 for orders in by_order):
        skipped = result.scores.skipped
        return Voter(name, [[] if i in skipped else orders for i, orders in enumerate(by_order)])
    return Voter(name, _single_votes(result, 1))


def _single_votes(result: ExamResult, run: int) -> list[list[Vote]]:
    """Return the one vote on each question of a run; none where it has no answer."""
    unanswered = {*result.scores.skipped, *result.scores.unparsable}
    return [
        [] if i in unanswered else [(order_of_run(question, run), result.scores[i])]
        for i, question in enumerate(result.questions)
    ]


def audit_keys(questions: Sequence[Question], voters: Sequence[Voter]) -> KeyAudit:
    """List the questions whose votes agree on another option than the key, most doubtful first.

    Args:
        questions: all have a key.
        voters: models, each with its votes on these questions. One that is not better than guessing is heard
            and not counted.
    """
    trusted = [_trust(questions, voter) for voter in voters]
    heard = [(voter, trust) for voter, trust in zip(voters, trusted, strict=True) if trust.weight]
    rows = [row for i in range(len(questions)) if (row := _judged(questions[i], i, heard))]
    rows.sort(key=lambda row: -row["score"])
    rows = [{"rank": rank, **row} for rank, row in enumerate(rows, 1)]
    summary = {
        "listed": len(rows),
        "questions": len(questions),
        "agreement": NEARLY_ALL,
        "by_accident": sum(agreements_by_accident(questions, heard)) if heard else 0.0,
        "voters": [
            {
                "name": voter.name,
                "votes": max(map(len, voter.votes), default=0),
                "accuracy": trust.accuracy,
                "weight": trust.weight,
                "temperature": trust.temperature,
            }
            for voter, trust in zip(voters, trusted, strict=True)
        ],
        "top": rows[:TOP],
    }
    return KeyAudit(rows, summary)


def _key(question: Question) -> int:
    assert question.answer is not None
    return question.answer


def _trust(questions: Sequence[Question], voter: Voter) -> Trust:
    """Measure a voter against the keys, of which most are right."""
    means = [_mean_row(votes) for votes in voter.votes]
    answered = [(question, row) for question, row in zip(questions, means, strict=True) if row is not None]
    if not answered:
        return Trust(0.0, 0.0, 1.0, means)
    keys = [_key(question) for question, _ in answered]
    right = sum(metrics.credit(key, tied(row)) for key, (_, row) in zip(keys, answered, strict=True))
    accuracy, chance = right / len(keys), fmean(1 / len(question.options) for question, _ in answered)
    better = metrics.wilson(right, len(keys))[0] > chance
    temperature = metrics.fit_temperature([row for _, row in answered], keys)
    logprobs = [row and log_softmax([score / temperature for score in row]) for row in means]
    return Trust(accuracy, better * (accuracy - chance) / (1 - chance), temperature, logprobs)


def _mean_row(votes: Sequence[Vote]) -> list[float] | None:
    """Return the mean log-probabilities of the options; None without a vote."""
    rows = [log_softmax(row) for _, row in votes]
    return [fmean(column) for column in zip(*rows, strict=True)] if rows else None


def _judged(question: Question, index: int, heard: Sequence[tuple[Voter, Trust]]) -> dict[str, Any] | None:
    """Return the row of a question whose votes agree on another option than the key; None for others."""
    key, count = _key(question), len(question.options)
    present = [(voter, trust) for voter, trust in heard if voter.votes[index]]
    if sum(len(voter.votes[index]) for voter, _ in present) < 2:
        return None
    weights = numpy.array([trust.weight for _, trust in present])
    weights /= weights.sum()
    logprobs = weights @ numpy.array([trust.logprobs[index] for _, trust in present], dtype=float)
    shares = weights @ numpy.array([_vote_shares(voter.votes[index], count) for voter, _ in present])
    other = int(numpy.argmax(numpy.where(numpy.arange(count) == key, -numpy.inf, logprobs)))
    margin = float(logprobs[other] - logprobs[key])
    if shares[other] < NEARLY_ALL - 1e-9 or margin <= 0:
        return None
    probabilities = metrics.probabilities(logprobs)
    return {
        "id": question.id,
        "subject": question.subject,
        "question": question.stem,
        "options": dict(zip(LETTERS, question.options, strict=False)),
        "key": LETTERS[key],
        "alternative": LETTERS[other],
        "votes": {voter.name: _vote_letters(voter.votes[index]) for voter, _ in present},
        "agreement": round(float(shares[other]), 6),
        "probability_of_alternative": round(float(probabilities[other]), 6),
        "probability_of_key": round(float(probabilities[key]), 6),
        "score": round(margin, 6),
    }


def _vote_shares(votes: Sequence[Vote], count: int) -> numpy.ndarray:
    """Return the share of the votes that each option has; equals share one."""
    shares = numpy.zeros(count)
    for _, row in votes:
        first = tied(row)
        shares[list(first)] += 1 / len(first)
    return shares / len(votes)


def _vote_letters(votes: Sequence[Vote]) -> list[str]:
    """Return what each vote names, of the options as written; A=C names two alike."""
    return ["=".join(LETTERS[option] for option in tied(row)) for _, row in votes]


# ---- agreement by accident ---------------------------------------------------------------------------------


def agreements_by_accident(
    questions: Sequence[Question], heard: Sequence[tuple[Voter, Trust]]
) -> Iterator[float]:
    """Yield for each question how likely its votes are to agree on one wrong option if the key is right.

    As if the votes erred independently of one another: each is wrong as often as its model is in this
    subject, and then names the places that the model prefers when it is wrong. Votes of one model on one
    question are not independent, so more agree than this says.
    """
    models = [(voter, trust, *_error_habits(questions, voter)) for voter, trust in heard]
    for index, question in enumerate(questions):
        present = [model for model in models if model[0].votes[index]]
        if sum(len(model[0].votes[index]) for model in present) < 2:
            yield 0.0
            continue
        total = sum(trust.weight for _, trust, _, _ in present)
        chance = 0.0
        for option in set(range(len(question.options))) - {_key(question)}:
            shares, likelihoods = numpy.zeros(1), numpy.ones(1)  # of the weighted share of votes for it
            for voter, trust, error_rates, places in present:
                votes = voter.votes[index]
                habit = places[len(question.options)]
                of_votes = [
                    error_rates[question.subject] * _share_of_place(habit, order, option, _key(question))
                    for order, _ in votes
                ]
                counts = numpy.arange(len(votes) + 1) * trust.weight / total / len(votes)
                shares = numpy.add.outer(shares, counts).ravel()
                likelihoods = numpy.multiply.outer(likelihoods, _counts_of(of_votes)).ravel()
            chance += float(likelihoods[shares >= NEARLY_ALL - 1e-9].sum())
        yield chance


def _error_habits(
    questions: Sequence[Question], voter: Voter
) -> tuple[dict[str, float], dict[int, Counter[int]]]:
    """Return a voter's error rate by subject, and by number of options which places its wrong votes name.

    The rate of a subject counts one question more of the mean rate, each place one wrong vote more.
    """
    wrong: dict[str, list[float]] = defaultdict(list)
    places: dict[int, Counter[int]] = defaultdict(Counter)
    for question, votes in zip(questions, voter.votes, strict=True):
        key = _key(question)
        for order, row in votes:
            first = tied(row)
            wrong[question.subject].append(1 - metrics.credit(key, first))
            if key not in first:
                places[len(row)][order.index(first[0])] += 1
    mean = fmean(error for errors in wrong.values() for error in errors)
    rates = {
        subject: (fmean(errors) * len(errors) + mean) / (len(errors) + 1) for subject, errors in wrong.items()
    }
    for count in {len(question.options) for question in questions}:
        places[count].update(range(count))
    return rates, places


def _share_of_place(habit: Counter[int], order: Order, option: int, key: int) -> float:
    """Return how likely a wrong vote is to name an option, by its place among those of the wrong options."""
    wrong = sum(habit[order.index(other)] for other in order if other != key)
    return habit[order.index(option)] / wrong


def _counts_of(probabilities: Sequence[float]) -> numpy.ndarray:
    """Return the distribution of how many of several independent events happen."""
    counts = numpy.ones(1)
    for p in probabilities:
        counts = numpy.convolve(counts, [1 - p, p])
    return counts
