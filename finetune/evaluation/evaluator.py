"""Evaluation on exam questions: metrics of a model, beside those of another model and of rules."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch
from torch import nn

from finetune.data.contamination import TrainedQuestions
from finetune.data.question import LETTERS, Question
from finetune.data.splits import sample_rows
from finetune.evaluation import metrics
from finetune.evaluation.outcomes import count_outcomes, outcome_of
from finetune.evaluation.queries import Forward
from finetune.evaluation.scores import Progress, Scores, tied
from finetune.evaluation.scoring import Scorer, ScoringConfig
from finetune.models.forward import NOT_NUMBERS
from finetune.prompts.causal_exam import CausalExamPrompts
from finetune.prompts.exam import ExamPrompts
from finetune.prompts.option_order import refers_to_other_options
from finetune.prompts.scoring_methods import GENERATE, parse
from finetune.runtime.console import log, plain
from finetune.runtime.distributed import Distributed
from finetune.runtime.errors import UserError

MISTAKES = 20  # the most confident ones, for a report
CALIBRATION_ROWS = 500  # questions that a temperature is fitted on, at most

# Why no temperature is fitted, for results.json and reports.
VALIDATION_EVALUATED = "評測的就是驗證題，沒有別的題目可用來調整溫度"
ALL_EVALUATED = "評測的是全部題目，沒有別的題目可用來調整溫度"
NO_VALIDATION = "這次沒有留下驗證題（--split_ratio），無法調整溫度"
VALIDATION_TRAINED_ON = "驗證題底模都訓練過，不能用來調整溫度"
NONE_UNSEEN = "題庫裡沒有既未評測、模型也沒訓練過的驗證題或訓練題，無法調整溫度"
NONE_SCORED = "可用來調整溫度的題目沒有一題能作答"


@dataclass
class ExamResult:
    """Answers of one model.

    Args:
        questions: scored.
        scores: for each question the log-probabilities of its options, in nats.
        method: name of the scoring method.
        orders: option orders: `1`, `cyclic` or `all`.
        prompts: the prompt of each question, for --log_prompts.
    """

    questions: Sequence[Question]
    scores: Scores
    method: str
    orders: str
    prompts: Sequence[str] = ()

    @property
    def predictions(self) -> list[metrics.Prediction]:
        """The chosen index of each question, all of them where several share the highest score.

        -1, never right, where it could not be scored, or the reply names no option.
        """
        unanswered = {*self.scores.skipped, *self.scores.outcomes}
        highest = (() if i in unanswered else tied(row) for i, row in enumerate(self.scores))
        return [first[0] if len(first) == 1 else first or -1 for first in highest]

    def more_of(self, index: int) -> dict[str, Any]:
        """Return what predictions.jsonl keeps of a question beside its prediction and scores."""
        return {}

    @property
    def accuracy(self) -> float:
        """Share of the questions that were answered right, ties by 1/k."""
        return fmean(metrics.credits(self.questions, self.predictions))


def run_exam(
    score: Callable[..., Scores],
    questions: Sequence[Question],
    method: str,
    orders: str,
    world: Distributed | None = None,
    title: str = "",
) -> ExamResult:
    """Evaluate a model on questions; ranks share the work.

    Args:
        score: (questions, method, orders, world=, progress=) -> scores, as `Predictor.score` or `scorer_for`.
        questions: the questions to score.
        method: name of the scoring method.
        orders: option orders: `1`, `cyclic` or `all`.
        world: ranks that share the questions.
        title: title of the progress bar; "" for none.

    Raises:
        UserError: not one score is a number.
    """
    from tqdm import tqdm

    shows = bool(title) and (world is None or world.is_main)
    bar = tqdm(
        desc=plain(title, lines=False), unit="題", total=len(questions), dynamic_ncols=True, leave=False,
        disable=not (shows and sys.stderr.isatty()),
    )  # fmt: skip
    if shows and not sys.stderr.isatty():
        log(f"{title}：{len(questions)} 題…")
    with bar:
        scores = score(questions, method, orders, world=world, progress=bar.update)
    if questions and set(map(scores.skipped.get, range(len(questions)))) == {NOT_NUMBERS}:
        raise UserError(NOT_NUMBERS)  # and no accuracy of 0
    return ExamResult(list(questions), scores, str(parse(method)), orders)


def scorer_for(
    model: nn.Module | Forward, prompts: ExamPrompts | CausalExamPrompts, device: torch.device | str
) -> Callable[..., Scores]:
    """Return the `score` that `run_exam` takes, for a model or an engine's forward pass.

    Args:
        model: a transformers model, or a forward pass, see `Scorer.of`.
        prompts: writes questions as token ids.
        device: the model's device.
    """

    def score(
        questions: Sequence[Question],
        method: str,
        orders: str,
        world: Distributed | None = None,
        progress: Progress | None = None,
    ) -> Scores:
        scorer = Scorer.of(model, prompts, device, world)
        return scorer.score(questions, ScoringConfig(method, orders), progress)

    return score


def choose_calibration(
    candidates: Iterable[Question], exclude: Container[str], reason: str
) -> Sequence[Question] | str:
    """Choose at most CALIBRATION_ROWS questions to fit a temperature on.

    Args:
        candidates: to choose from.
        exclude: fingerprints of questions that are evaluated, or that the model was trained on.
        reason: returned where no candidate is left.
    """
    rows = [question for question in candidates if question.fingerprint not in exclude]
    return sample_rows(rows, CALIBRATION_ROWS, seed=0) if rows else reason


def without_stem(questions: Sequence[Question]) -> list[Question]:
    """Return the questions without their stems, to see what the options give away (arXiv:2402.12483)."""
    return [replace(question, stem="") for question in questions]


# ---- figures -----------------------------------------------------------------------------------------------


def compute_metrics(
    result: ExamResult,
    other: ExamResult | None = None,
    trained: TrainedQuestions | None = None,
    option_only: ExamResult | None = None,
    held_out: ExamResult | str = "",
) -> dict[str, Any]:
    """Compute all metrics of one set of questions, as results.json keeps them; {} without any question.

    Args:
        result: the model's answers.
        other: a second model's answers to the same questions (the untuned one's, say).
        trained: questions the model was fitted on; the score without them stands beside the whole.
        option_only: the model's answers to the questions `without_stem`.
        held_out: its answers to questions neither trained nor evaluated on, to fit a temperature on; or why
            there are none.
    """
    questions, predictions, scores = result.questions, result.predictions, result.scores
    if not questions:
        return {}
    subjects = metrics.by_subject(questions, predictions)
    figures: dict[str, Any] = {
        "method": result.method,
        "orders": result.orders,
        "model": metrics.accuracy(questions, predictions),
        "macro_4": metrics.macro_4(subjects),
        "subjects": subjects,
        "categories": metrics.by_category(subjects),
        "letters": metrics.letters(questions, predictions),
        "order_bias": metrics.order_bias(scores.by_order, [q.answer for q in questions]),
        "calibration": _calibration(result, held_out),
        "ties": fmean(map(_tied_share, predictions)),
        "speaks_of_others": _share_right(questions, predictions, _refers_to_others),
        "skipped": len(scores.skipped),
        "outcomes": {},
        "shortened": len(scores.truncated),
        "prior": {LETTERS[: len(row)]: [math.exp(x) for x in row] for row in scores.prior.values()},
        "option_only": None,
        "other": {},
        "paired": {},
        "contamination": _contamination(questions, predictions, trained),
    }
    if result.method == GENERATE:
        figures["outcomes"] = count_outcomes(metrics.credits(questions, predictions), scores)
    if option_only is not None:
        right = sum(metrics.credits(questions, option_only.predictions))
        figures["option_only"] = metrics.share(right, len(questions))
    if other is not None:
        figures["other"] = metrics.accuracy(questions, other.predictions)
        figures["other_macro_4"] = metrics.macro_4(metrics.by_subject(questions, other.predictions))
        figures["paired"] = metrics.paired(questions, predictions, other.predictions)
    return figures


def _tied_share(chosen: metrics.Prediction) -> float:
    """Return 1 where several options share the highest score, 0 where not; of several runs the mean."""
    runs = chosen.runs if isinstance(chosen, metrics.Repeated) else (chosen,)
    return fmean(isinstance(run, tuple) for run in runs)


def _share_right(
    questions: Sequence[Question],
    predictions: Sequence[metrics.Prediction],
    condition: Callable[[Question], bool],
) -> dict[str, Any]:
    """Return accuracy, right, n and interval of the questions that meet a condition; {} without any."""
    credited = zip(questions, metrics.credits(questions, predictions), strict=True)
    hits = [right for question, right in credited if condition(question)]
    return metrics.share(sum(hits), len(hits)) if hits else {}


def _refers_to_others(question: Question) -> bool:
    return any(map(refers_to_other_options, question.options))


def _calibration(result: ExamResult, held_out: ExamResult | str) -> dict[str, Any]:
    """Return the calibration of the scores as they are, and at the temperature that fits the held-out rows.

    The softmax of text scores is nothing the model ever stated; at the fitted temperature it is as good a
    confidence as they can give. A generated answer states none.
    """
    if result.method == GENERATE:
        return {"as_scored": {}, "fitted": {}, "fitted_on": 0, "not_fitted": ""}
    rows, answers = _answered(result)
    figures: dict[str, Any] = {
        "as_scored": metrics.calibration(rows, answers), "fitted": {}, "fitted_on": 0,
    }  # fmt: skip
    if isinstance(held_out, str):
        return figures | {"not_fitted": held_out}
    other_rows, other_answers = _answered(held_out)
    if not other_rows:
        return figures | {"not_fitted": NONE_SCORED}
    temperature = metrics.fit_temperature(other_rows, other_answers)
    fitted = metrics.calibration(rows, answers, temperature)
    return figures | {"fitted": fitted, "fitted_on": len(other_rows), "not_fitted": ""}


def _answered(result: ExamResult) -> tuple[list[list[float]], list[int]]:
    """Return the scores and the right options of the questions that have an answer."""
    unanswered = {*result.scores.skipped, *result.scores.outcomes}
    answered = [i for i in range(len(result.questions)) if i not in unanswered]
    return [result.scores[i] for i in answered], [_key(result.questions[i]) for i in answered]


def _key(question: Question) -> int:
    """Return the index of the right option; questions without a key are never evaluated."""
    assert question.answer is not None
    return question.answer


def _contamination(
    questions: Sequence[Question],
    predictions: Sequence[metrics.Prediction],
    trained: TrainedQuestions | None,
) -> dict[str, Any]:
    """Return how many questions the model was trained on, or nearly; which; and the score without them."""
    if trained is None:
        return {}
    rows: list[dict[str, Any]] = []
    clean = []
    for question, chosen in zip(questions, predictions, strict=True):
        kind, overlap = trained.find(question)
        if kind:
            rows.append({"id": question.id, "kind": kind, "overlap": round(overlap, 3)})
        else:
            clean.append((question, chosen))
    mixed = 0 < len(clean) < len(questions)
    return {
        "taught": len(trained.sketches),
        "same": sum(row["kind"] == "same" for row in rows),
        "near": sum(row["kind"] == "near" for row in rows),
        "rows": rows,
        "without": metrics.accuracy(*zip(*clean, strict=True)) if mixed else {},
    }


def mistakes(result: ExamResult, count: int = MISTAKES) -> list[dict[str, Any]]:
    """Return the wrong answers the model was surest of: question, gold, prediction and its probability."""
    if result.method == GENERATE:  # no confidence was stated
        return []
    wrong: list[tuple[float, Question, metrics.Prediction, float]] = []
    for question, chosen, row in zip(result.questions, result.predictions, result.scores, strict=True):
        if letter(chosen) is not None and not metrics.credit(_key(question), chosen):
            p = metrics.probabilities(row)
            wrong.append((float(p.max()), question, chosen, float(p[_key(question)])))
    wrong.sort(key=lambda row: -row[0])
    return [
        {
            "id": question.id, "subject": question.subject, "question": question.stem,
            "options": dict(zip(LETTERS, question.options, strict=False)), "gold": letter(question.answer),
            "prediction": letter(chosen), "confidence": confidence, "probability_of_gold": p_gold,
        }
        for confidence, question, chosen, p_gold in wrong[:count]
    ]  # fmt: skip


def records(
    result: ExamResult, other: ExamResult | None = None, other_name: str = "other"
) -> Iterator[dict[str, Any]]:
    """Yield one object a question, for predictions.jsonl.

    It holds the question and its fingerprint, so that files of two exams can be compared (--compare).
    `tied`: the k options that share the highest score, of which `prediction` is the first; the question
    counts 1/k if the gold one is among them. `answers_by_order`: the options in the order shown, and the one
    chosen then (A=C: these two alike); `flips`: they are not all the same one.

    Args:
        result: the model's answers.
        other: a second model's answers to the same questions.
        other_name: begins the keys of the second model.
    """
    other_predictions = other.predictions if other else None

    def answer(prefix: str, chosen: metrics.Prediction) -> dict[str, Any]:
        first = _first_run(chosen)
        letters = {f"{prefix}tied": [*map(letter, first)]} if isinstance(first, tuple) else {}
        return {f"{prefix}prediction": letter(chosen), **letters}

    for index, (question, chosen) in enumerate(zip(result.questions, result.predictions, strict=True)):
        record = {
            "id": question.id,
            "subject": question.subject,
            "fingerprint": question.fingerprint,
            "question": question.stem,
            "options": dict(zip(LETTERS, question.options, strict=False)),
            "gold": letter(question.answer),
            **answer("", chosen),
            "scores": [round(score, 6) for score in result.scores[index]],
        }
        if result.method == GENERATE:
            record |= {"scores": [], "reply": result.scores.replies.get(index, "")}
            record["outcome"] = outcome_of(result.scores, index)
        record |= result.more_of(index)
        if other and other_predictions:
            record |= answer(f"{other_name}_", other_predictions[index])
            record |= {f"{other_name}_{key}": value for key, value in other.more_of(index).items()}
        if len(by_order := result.scores.by_order[index]) > 1:
            answers = {_letters(order, ""): _letters(tied(row), "=") for order, row in by_order}
            record |= {"answers_by_order": answers, "flips": len(set(answers.values())) > 1}
        if index in result.scores.skipped:
            record["skipped"] = result.scores.skipped[index]
        if result.prompts:
            record["prompt"] = result.prompts[index]
        yield record


def letter(index: metrics.Prediction | None) -> str | None:
    """Return the letter of an option, of the first run, the first of equals; None where none was chosen."""
    index = _first_run(index)
    first = index[0] if isinstance(index, tuple) else index
    return None if first is None or first < 0 else LETTERS[first]


def _first_run(chosen: metrics.Prediction | None) -> int | tuple[int, ...] | None:
    return chosen.runs[0] if isinstance(chosen, metrics.Repeated) else chosen


def _letters(indices: Sequence[int], separator: str) -> str:
    return separator.join(LETTERS[index] for index in indices)
