"""Several runs of one exam: the orders, the way back to the options as written, the figures."""

from __future__ import annotations

import random
import statistics

import numpy
import pytest
import sklearn.metrics
import statsmodels.stats.proportion

from finetune.data.question import Question
from finetune.evaluation import evaluator, metrics, repeats
from finetune.evaluation.evaluator import ExamResult
from finetune.evaluation.scores import Scores

SUBJECTS = ("physics", "taxation", "trade", "education")  # one of each category


def make_questions(count: int, seed: int = 0) -> list[Question]:
    rng = random.Random(seed)
    return [
        Question(
            f"題{i}", tuple(f"選項{i}{c}" for c in "甲乙丙丁"), rng.randrange(4), SUBJECTS[i % 4], str(i)
        )
        for i in range(count)
    ]


def asked(questions: list[Question], count: int, row_of) -> ExamResult:
    """Result of a model whose scores by place are row_of(question, run)."""

    def evaluate(run, rows, title):
        scores = Scores(row_of(question, run) for question in rows)
        scores.by_order = [[(tuple(range(len(row))), list(row))] for row in scores]
        return ExamResult(rows, scores, "letter", "1")

    return repeats.run_repeated(evaluate, questions, count, "")


def knowing(question: Question, run: int) -> list[float]:
    """What a model prefers that reads the options only: the same one wherever it stands."""
    return [float(int.from_bytes(option.encode(), "big") % 9973) / 100 for option in question.options]


def first_place(question: Question, run: int) -> list[float]:
    return [1.0, *[0.0] * (len(question.options) - 1)]


def noisy(question: Question, run: int) -> list[float]:
    """Answers right most of the time, by the run."""
    rng = random.Random(f"{question.id}:{run}")
    skill = random.Random(question.id).random()  # some questions are easy, some are hard
    right = rng.random() < skill
    return [float((place == question.answer) == right) + rng.random() / 2 for place in range(4)]


def figures_of(result: ExamResult, other: ExamResult | None = None) -> dict:
    found = evaluator.compute_metrics(result, other)
    return found | repeats.repeated_figures(result, other, found)


def test_the_first_run_is_as_written_and_the_others_shuffle_by_run_and_question_alone():
    questions = make_questions(300)
    assert all(repeats.order_of_run(q, 1) == (0, 1, 2, 3) for q in questions)
    for run in (2, 3):
        orders = [repeats.order_of_run(q, run) for q in questions]
        assert orders == [repeats.order_of_run(q, run) for q in questions] and len(set(orders)) == 24
    assert repeats.order_of_run(questions[0], 2) != repeats.order_of_run(questions[0], 3)
    last = Question("題", ("甲", "乙", "丙", "以上皆是"), 3)
    fixed = Question("題", ("甲", "乙", "丙", "A與C"), 3)
    assert {repeats.order_of_run(last, run)[3] for run in range(1, 30)} == {3}
    assert {repeats.order_of_run(fixed, run) for run in range(1, 30)} == {(0, 1, 2, 3)}


def test_a_model_that_goes_by_content_answers_every_run_alike():
    questions = make_questions(120)
    result = asked(questions, 4, knowing)
    once = asked(questions, 1, knowing)
    assert not isinstance(once, repeats.RepeatedResult)
    for chosen, alone in zip(result.predictions, once.predictions, strict=True):
        assert set(chosen.runs) == {alone}
    found, plain = figures_of(result), figures_of(once)
    assert found["repeats"]["changed"] == 0 and found["repeats"]["sd"] == 0
    assert found["order_bias"]["flips"] == 0 and found["order_bias"]["orders"] == 4
    for name in ("model", "subjects", "categories", "letters", "macro_4"):
        if name == "macro_4":  # drawn in another way
            found[name], plain[name] = found[name]["macro_4"], plain[name]["macro_4"]
        assert (
            found[name] == pytest.approx(plain[name]) if name == "macro_4" else same(found[name], plain[name])
        )


def same(first, second) -> bool:
    """True if two objects of JSON differ in rounding only."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(same, first, second))
    return first == pytest.approx(second) if isinstance(first, float) else first == second


def test_a_model_that_always_takes_the_first_place_is_as_right_as_the_orders_make_it():
    questions = make_questions(200)
    result = asked(questions, 5, first_place)
    expected = [
        statistics.fmean(repeats.order_of_run(q, run)[0] == q.answer for q in questions)
        for run in range(1, 6)
    ]
    found = figures_of(result)
    assert found["repeats"]["accuracies"] == pytest.approx(expected)
    assert found["model"]["accuracy"] == found["repeats"]["mean"] == pytest.approx(statistics.fmean(expected))
    assert found["repeats"]["sd"] == pytest.approx(numpy.std(expected, ddof=1))
    assert found["repeats"]["range"] == [min(expected), max(expected)]
    assert found["order_bias"]["chosen"] == [1, 0, 0, 0]
    chosen = [[repeats.order_of_run(q, run)[0] for run in range(1, 6)] for q in questions]
    assert found["repeats"]["changed"] == statistics.fmean(len(set(row)) > 1 for row in chosen)
    letters = [evaluator.letter(row[0]) for row in chosen]
    rows = list(evaluator.records(result))
    assert [row["prediction"] for row in rows] == letters
    assert [row["runs"] for row in rows] == [[*map(evaluator.letter, row)] for row in chosen]


def test_the_interval_treats_questions_as_the_sample():
    questions = make_questions(400)
    result = asked(questions, 6, noisy)
    found = figures_of(result)
    low, high = found["model"]["interval_95"]
    scores = [
        statistics.fmean(metrics.credits([q] * 6, p.runs))
        for q, p in zip(questions, result.predictions, strict=True)
    ]
    rng = numpy.random.default_rng(5)
    drawn = numpy.array(scores)[rng.integers(0, 400, (5_000, 400))].mean(axis=1)
    assert (low, high) == pytest.approx(tuple(numpy.percentile(drawn, [2.5, 97.5])), abs=0.006)
    one_run = statsmodels.stats.proportion.proportion_confint(
        400 * found["repeats"]["mean"], 400, method="wilson"
    )
    assert one_run[0] < low < high < one_run[1]  # several runs measure each question better
    error = (high - low) / 2 / 1.96
    assert error > 2 * found["repeats"]["sd"] / 6**0.5  # runs of the same questions tell too little
    macro_low, macro_high = found["macro_4"]["interval_95"]
    assert macro_low < found["macro_4"]["macro_4"] < macro_high < macro_low + 1.2 * (high - low)


def test_the_interval_of_runs_that_agree_is_wilson_s_and_stays_within_0_and_1():
    for right in (0, 1, 30, 39, 40):
        expected = statsmodels.stats.proportion.proportion_confint(right, 40, method="wilson")
        found = repeats.question_interval([1.0] * right + [0.0] * (40 - right))["interval_95"]
        assert found == pytest.approx(expected, abs=1e-9)
    assert repeats.question_interval([0.5] * 40)["interval_95"] == list(metrics.wilson(20, 40))


def test_two_models_are_compared_by_their_mean_credits():
    questions = make_questions(200)
    first, second = asked(questions, 3, noisy), asked(questions, 3, first_place)
    found = figures_of(first, second)
    expected = found["model"]["accuracy"] - found["other"]["accuracy"]
    assert found["paired"]["difference"] == pytest.approx(expected)
    assert found["paired"]["p_value"] < 1e-3
    assert found["repeats"]["other"]["accuracies"] == [run.accuracy for run in second.runs]
    row = next(evaluator.records(first, second))
    assert len(row["runs"]) == len(row["other_runs"]) == 3


def test_letters_of_several_runs_are_those_of_all_answers_together():
    questions = make_questions(90)
    result = asked(questions, 3, noisy)
    flat = [chosen for prediction in result.predictions for chosen in prediction.runs]
    gold = [q.answer for q in questions for _ in range(3)]
    expected = sklearn.metrics.recall_score(gold, flat, average=None)
    found = metrics.letters(questions, result.predictions)
    assert found["recall"] == pytest.approx(expected.tolist())
    assert sum(found["support"]) == 90 and sum(map(sum, found["confusion"])) == pytest.approx(90)


def test_what_a_run_does_not_answer_is_wrong_in_it_and_its_order_is_not_compared():
    questions = make_questions(8)

    def evaluate(run, rows, title):
        scores = Scores([float(place == q.answer) for place in range(4)] for q in rows)
        scores.by_order = [[] for _ in rows]
        scores.replies = dict.fromkeys(range(len(rows)), f"第 {run} 次")
        scores.outcomes = {0: "unreadable"} if run == 2 else {}
        return ExamResult(rows, scores, "generate", "1")

    result = repeats.run_repeated(evaluate, questions, 2, "")
    found = figures_of(result)
    assert found["repeats"]["accuracies"] == [1.0, 7 / 8] and found["repeats"]["unreadable"] == [0, 1]
    assert found["order_bias"]["questions"] == 7 and found["repeats"]["changed"] == 1 / 8
    row = next(evaluator.records(result))
    assert row["runs"] == [evaluator.letter(questions[0].answer), None]
    assert row["replies"] == ["第 1 次", "第 2 次"]


def test_each_run_samples_with_a_seed_of_its_own():
    assert repeats.seed_of_run(None, 3) is None and repeats.seed_of_run(7, 1) == 7
    seeds = [repeats.seed_of_run(7, run) for run in range(1, 20)]
    assert len(set(seeds)) == 19 and seeds == [repeats.seed_of_run(7, run) for run in range(1, 20)]
