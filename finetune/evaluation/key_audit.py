"""Keys that may be wrong: questions where models, in several orders of the options, agree on another option.

A vote is the scores of one question by one model in one order of its options. A question is listed when at
least half of the votes name the same option, their mean prefers it, and the key is another one. The rank is
by the normalized margin, log p(that option) − log p(key), the model's probabilities being calibrated on the
keys and averaged over the votes: one vote that disagrees takes from it.

The margin is one of the label quality scores of Kuan and Mueller (2022, "Model-agnostic label quality scoring
to detect real-world label noise"); averaging over predictors is their ensemble score, and the weight of a
model, how far it is above guessing, is that of CROWDLAB (arXiv:2210.06812, section 3). The per-class
thresholds of confident learning (arXiv:1911.00068) have no use here: the options of two questions are not the
same classes, and a habit of choosing a letter leaves the average over orders by itself. Of what such methods
list, people found about half to be errors (arXiv:2103.14749, 51 %; in MMLU 6.5 % of all questions have one,
arXiv:2406.04127): the list says what to read again, and decides nothing.

A confident mistake that a model makes in every order looks the same as a wrong key, so no share of false
alarms can be estimated from the votes alone. What can be computed are two bounds of how often all votes would
be for the same wrong option if all keys were right, to be held against how often they are (`unanimous`): as
if each vote erred by itself, and as if the votes of a model were one and only the models erred independently.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from math import prod
from statistics import fmean
from typing import Any

import numpy

from finetune.data.question import LETTERS, Question
from finetune.evaluation import metrics
from finetune.evaluation.evaluator import ExamResult
from finetune.evaluation.question_queries import log_softmax
from finetune.evaluation.repeats import RepeatedResult, order_of_run
from finetune.evaluation.scores import Order, tied

# Share of the votes, weighted, that must name the same option. The margin counts a vote that disagrees
# already, so that asking for more would only shorten the list.
MOST = 0.5
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
    unanswered = {*result.scores.skipped, *result.scores.outcomes}
    return [
        [] if i in unanswered else [(order_of_run(question, run), result.scores[i])]
        for i, question in enumerate(result.questions)
    ]


def audit_keys(questions: Sequence[Question], voters: Sequence[Voter]) -> KeyAudit:
    """List the questions whose votes are for another option than the key, the most doubtful first.

    Args:
        questions: all have a key.
        voters: models, each with its votes on these questions. One that is not better than guessing is heard
            and not counted.
    """
    trusted = [_trust(questions, voter) for voter in voters]
    heard = [(voter, trust) for voter, trust in zip(voters, trusted, strict=True) if trust.weight]
    counts = [sum(len(voter.votes[i]) for voter, _ in heard) for i in range(len(questions))]
    needed = min(2, max(counts, default=0))  # where only one model is left, a single vote has to do
    enough = [i for i, count in enumerate(counts) if count >= max(1, needed)]
    rows = [row for i in enough if (row := _judged(questions[i], i, heard))]
    rows.sort(key=lambda row: -row["score"])
    rows = [{"rank": rank, **row} for rank, row in enumerate(rows, 1)]
    summary = {
        "listed": len(rows),
        "unanimous": sum(row["agreement"] == 1 for row in rows),
        "questions": len(questions),
        "agreement": MOST,
        "by_accident": {
            "votes_independent": sum(agreements_by_accident(questions, heard, enough)),
            "models_independent": sum(agreements_by_accident(questions, _one_vote_each(heard), enough)),
        },
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
    """Return the row of a question whose votes are for another option than the key; None for others."""
    key, count = _key(question), len(question.options)
    present = [(voter, trust) for voter, trust in heard if voter.votes[index]]
    weights = numpy.array([trust.weight for _, trust in present])
    weights /= weights.sum()
    logprobs = weights @ numpy.array([trust.logprobs[index] for _, trust in present], dtype=float)
    shares = weights @ numpy.array([_vote_shares(voter.votes[index], count) for voter, _ in present])
    other = int(numpy.argmax(numpy.where(numpy.arange(count) == key, -numpy.inf, logprobs)))
    margin = float(logprobs[other] - logprobs[key])
    if shares[other] < MOST - 1e-9 or margin <= 0:
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


def _one_vote_each(heard: Sequence[tuple[Voter, Trust]]) -> list[tuple[Voter, Trust]]:
    """Return the voters with a single vote a question, the mean over their votes, as if written in order."""
    return [
        (
            Voter(
                voter.name, [[] if row is None else [(tuple(range(len(row))), row)] for row in trust.logprobs]
            ),
            trust,
        )
        for voter, trust in heard
    ]


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
    questions: Sequence[Question], heard: Sequence[tuple[Voter, Trust]], indices: Sequence[int]
) -> Iterator[float]:
    """Yield how likely all votes on a question are to name one wrong option if its key is right.

    As if the votes erred independently of one another: each is wrong as often as its model is in this
    subject, and then names the places that the model prefers when it is wrong. Votes of one model on one
    question are not independent: more agree than this says of them, and fewer than of one vote a model.

    Args:
        questions: all of them, to learn the habits of the models from.
        heard: the models that count.
        indices: the questions asked about; each has votes.
    """
    models = [(voter, *_error_habits(questions, voter)) for voter, _ in heard]
    for index in indices:
        question, count = questions[index], len(questions[index].options)
        key = _key(question)
        yield sum(
            prod(
                rates[question.subject] * _share_of_place(places[count], order, option, key)
                for voter, rates, places in models
                for order, _ in voter.votes[index]
            )
            for option in range(count)
            if option != key
        )


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
