"""Doubtful keys: flipped ones come first, guessers are not counted, agreement by accident is computed."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy
import pytest

from finetune.data.question import LETTERS, Question
from finetune.evaluation.evaluator import ExamResult
from finetune.evaluation.key_audit import MOST, TOP, Voter, audit_keys, voter_of
from finetune.evaluation.metrics import wilson
from finetune.evaluation.scores import Scores
from finetune.prompts.option_order import cyclic_orders

FLIPPED = 36  # of 720: 5 %


def make_exam(seed: int = 0, count: int = 720) -> tuple[list[Question], list[Question], set[str]]:
    """(questions with right keys, the same with some flipped, ids of the flipped)."""
    rng = random.Random(seed)
    right = [
        Question(f"題{i}", tuple(f"選項{i}{c}" for c in "甲乙丙丁"), rng.randrange(4), f"科目{i % 6}", str(i))
        for i in range(count)
    ]
    flipped = {question.id for question in rng.sample(right, count // 20)}
    given = [replace(q, answer=(q.answer + rng.randrange(1, 4)) % 4) if q.id in flipped else q for q in right]
    return right, given, flipped


def model_votes(questions: list[Question], skill: float, seed: int, name: str = "模型") -> Voter:
    """A model that scores in every rotation: knowledge of each question, a liking for A, noise."""
    rng = random.Random(seed)
    votes = []
    for question in questions:
        known = [rng.gauss(skill if option == question.answer else 0, 1) for option in range(4)]
        votes.append(
            [
                (order, [2 * known[option] + (order[0] == option) + rng.gauss(0, 0.5) for option in range(4)])
                for order in cyclic_orders(question.options)
            ]
        )
    return Voter(name, votes)


def precision(rows: list[dict], flipped: set[str], first: int = FLIPPED) -> float:
    return sum(row["id"] in flipped for row in rows[:first]) / first


@pytest.mark.parametrize(("skill", "least"), [(4.0, 0.8), (2.5, 0.3)])
def test_flipped_keys_come_first(skill, least):
    right, given, flipped = make_exam()
    audit = audit_keys(given, [model_votes(right, skill, seed=1)])
    assert precision(audit.rows, flipped) > least
    assert wilson(FLIPPED * precision(audit.rows, flipped), FLIPPED)[0] > 3 * 0.05  # chance is 5 %
    assert [row["rank"] for row in audit.rows] == list(range(1, len(audit.rows) + 1))
    scores = [row["score"] for row in audit.rows]
    assert scores == sorted(scores, reverse=True) and min(scores) > 0
    assert audit.summary["top"] == audit.rows[:TOP] and audit.summary["listed"] == len(audit.rows)
    assert audit_keys(given, [model_votes(right, skill, seed=1)]).rows == audit.rows


def test_a_listed_question_says_what_the_votes_say():
    right, given, _ = make_exam()
    voter = model_votes(right, 4.0, seed=1)
    by_id = {question.id: (i, question) for i, question in enumerate(given)}
    for row in audit_keys(given, [voter]).rows:
        index, question = by_id[row["id"]]
        chosen = [LETTERS[int(numpy.argmax(scores))] for _, scores in voter.votes[index]]
        assert row["votes"] == {"模型": chosen}
        assert row["key"] == LETTERS[question.answer] != row["alternative"]
        assert row["agreement"] == chosen.count(row["alternative"]) / 4 >= MOST
        assert row["probability_of_alternative"] > row["probability_of_key"]
        assert row["question"] == question.stem and list(row["options"].values()) == list(question.options)


def test_a_second_model_helps_and_one_that_guesses_changes_nothing():
    right, given, flipped = make_exam(count=480)
    first, second = model_votes(right, 1.5, seed=1), model_votes(right, 1.5, seed=2, name="另一個")
    alone, both = audit_keys(given, [first]), audit_keys(given, [first, second])
    assert precision(both.rows, flipped, 24) > precision(alone.rows, flipped, 24)
    guesser = model_votes(right, 0.0, seed=4, name="亂猜")
    beside = audit_keys(given, [first, guesser])
    assert beside.rows == alone.rows and beside.summary["voters"][1]["weight"] == 0
    nobody = audit_keys(given, [guesser])
    assert nobody.rows == [] and set(nobody.summary["by_accident"].values()) == {0}


def test_replies_without_probabilities_are_votes_too():
    right, given, flipped = make_exam()
    voter = model_votes(right, 3.0, seed=1)
    hard = [
        [(order, [float(score == max(row)) - 1 for score in row]) for order, row in votes]
        for votes in voter.votes
    ]
    hard[0] = []  # no reply could be read
    audit = audit_keys(given, [Voter("模型", hard)])
    assert precision(audit.rows, flipped) > 0.4 and "0" not in {row["id"] for row in audit.rows}


def test_agreement_by_accident_is_what_independent_votes_would_do():
    right, _, _ = make_exam()
    rng = random.Random(4)
    liking = (3, 3, 3, 1)  # how often a wrong vote names each place, in the order as written

    def wrong_ones(answer: int) -> dict[int, float]:
        others = {option: liking[option] for option in range(4) if option != answer}
        return {option: weight / sum(others.values()) for option, weight in others.items()}

    def vote(answer: int) -> list[float]:
        wrong = wrong_ones(answer)
        mistaken = rng.choices(list(wrong), list(wrong.values()))[0]
        chosen = mistaken if rng.random() < 0.45 else answer
        return [float(option == chosen) for option in range(4)]

    voters = [
        Voter(name, [[((0, 1, 2, 3), vote(q.answer)) for _ in range(2)] for q in right]) for name in "甲乙"
    ]
    audit = audit_keys(right, voters)
    shares = [share for q in right for share in wrong_ones(q.answer).values()]
    expected = sum((0.45 * share) ** 4 for share in shares)
    found = audit.summary["by_accident"]
    assert found["votes_independent"] == pytest.approx(expected, rel=0.25)  # the habits are estimated
    assert abs(audit.summary["unanimous"] - expected) < 4 * expected**0.5
    assert found["models_independent"] > found["votes_independent"]


def test_a_vote_that_stands_alone_counts_only_where_no_question_has_more():
    questions = [Question(f"題{i}", ("甲", "乙"), 0, "", str(i)) for i in range(40)]
    order = (0, 1)
    right, wrong = (order, [0.0, -3.0]), (order, [-3.0, 0.0])
    votes = [[right, right] for _ in questions]
    votes[0], votes[1] = [wrong], [wrong, wrong]
    assert [row["id"] for row in audit_keys(questions, [Voter("甲", votes)]).rows] == ["1"]
    single = [[row[0]] for row in votes]
    assert {row["id"] for row in audit_keys(questions, [Voter("甲", single)]).rows} == {"0", "1"}


def test_votes_of_an_exam_are_its_orders_or_its_one_answer():
    questions = [Question(f"題{i}", ("甲", "乙"), 0, "", str(i)) for i in range(3)]
    scores = Scores([[0.0, -1.0], [0.0, -1.0], [0.0, 0.0]])
    scores.by_order = [[((0, 1), [0.0, -1.0]), ((1, 0), [0.0, -1.0])], [((0, 1), [0.0, -1.0])], []]
    scores.skipped = {2: "太長"}
    assert voter_of(ExamResult(questions, scores, "letter", "cyclic"), "甲").votes == scores.by_order
    scores.by_order = [[], [], []]
    votes = voter_of(ExamResult(questions, scores, "pll", "cyclic"), "甲").votes
    assert votes == [[((0, 1), [0.0, -1.0])], [((0, 1), [0.0, -1.0])], []]
