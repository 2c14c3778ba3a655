"""Sitting an exam: a model's answers become figures, beside those of another model and of no model at all."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean

from finetune.data.contamination import TrainedQuestions
from finetune.data.question import LETTERS, Question
from finetune.evaluation import metrics
from finetune.evaluation.scoring import Scores, score_options, tied
from finetune.models.forward import NOT_NUMBERS
from finetune.prompts.option_order import refers_to_other_options
from finetune.prompts.scoring_methods import GENERATE, parse
from finetune.runtime.console import log, plain
from finetune.runtime.errors import UserError

MISTAKES = 20  # most confident ones, for a report
CALIBRATION_ROWS = 500  # validation questions that a temperature is fitted on, at most
NONE_ASKED = "可用來調整溫度的題目一題也問不了"


@dataclass
class ExamResult:
    """What one model answered. `scores[i]`: log-probabilities of `questions[i]`'s options, in nats."""

    questions: Sequence[Question]
    scores: Scores
    method: str
    orders: str

    @property
    def predictions(self) -> list[metrics.Prediction]:
        """The chosen index of each question, all of them where several share the highest score; -1, never
        right, where it could not be asked, or what was answered names no option.
        """
        lost = {*self.scores.skipped, *self.scores.unparsable}
        shared = (() if i in lost else tied(row) for i, row in enumerate(self.scores))
        return [first[0] if len(first) == 1 else first or -1 for first in shared]

    @property
    def accuracy(self) -> float:
        """The share of the questions that were answered right, ties by 1/k."""
        return fmean(metrics.credits(self.questions, self.predictions))


def run_exam(
    score: Callable[..., Scores],
    questions: Sequence[Question],
    method: str,
    orders: str,
    world=None,
    title: str = "",
) -> ExamResult:
    """Lets a model answer all questions; several processes share the work.

    Args:
        score: (questions, method, orders, world=, progress=) -> scores, as `Examinee.score` or `asked_by`.
        title: names the bar.

    Raises:
        UserError: no answer of all is a number.
    """
    from tqdm import tqdm

    speaks = bool(title) and (world is None or world.is_main)
    bar = tqdm(
        desc=plain(title, lines=False), unit="題", total=len(questions), dynamic_ncols=True, leave=False,
        disable=not (speaks and sys.stderr.isatty()),
    )  # fmt: skip
    if speaks and not sys.stderr.isatty():
        log(f"{title}：{len(questions)} 題…")
    with bar:
        scores = score(questions, method, orders, world=world, progress=bar.update)
    if questions and set(map(scores.skipped.get, range(len(questions)))) == {NOT_NUMBERS}:
        raise UserError(NOT_NUMBERS)  # and no accuracy of 0
    return ExamResult(list(questions), scores, str(parse(method)), orders)


def scorer_for(model, prompts, device) -> Callable[..., Scores]:
    """How `sit` asks a model, or an engine's forward pass."""
    return partial(score_options, model, prompts.tokenizer, prompts=prompts, device=device)


def without_stem(questions: Sequence[Question]) -> list[Question]:
    """The same questions with nothing asked: what their options give away alone (arXiv:2402.12483)."""
    return [replace(question, stem="") for question in questions]


# ---- figures -----------------------------------------------------------------------------------------------


def compute_metrics(
    sitting: ExamResult,
    other: ExamResult | None = None,
    taught: TrainedQuestions | None = None,
    option_only: ExamResult | None = None,
    held_out: ExamResult | str = "",
) -> dict:
    """All figures of one set of questions. Empty without any.

    Args:
        other: a second model on the same questions (the untuned one, say).
        taught: what the model was fitted on; the score without those questions stands beside the whole.
        option_only: the same model on `stemless` questions.
        held_out: the same model on questions neither taught nor examined, to fit a temperature on; or why
            there are none.
    """
    questions, predictions = sitting.questions, sitting.predictions
    if not questions:
        return {}
    subjects = metrics.by_subject(questions, predictions)
    found = {
        "method": sitting.method,
        "orders": sitting.orders,
        "model": metrics.accuracy(questions, predictions),
        "macro_4": metrics.macro_4(subjects),
        "subjects": subjects,
        "categories": metrics.by_category(subjects),
        "letters": metrics.letters(questions, predictions),
        "order_bias": metrics.order_bias(sitting.scores.by_order, [q.answer for q in questions]),
        "calibration": _calibration(sitting, held_out),
        "ties": sum(isinstance(chosen, tuple) for chosen in predictions) / len(questions),
        "speaks_of_others": _some(questions, predictions, _refers_to_others),
        "refused": len(sitting.scores.skipped),
        "unreadable": len(sitting.scores.unparsable),
        "shortened": len(sitting.scores.truncated),
        "prior": {LETTERS[: len(row)]: [math.exp(x) for x in row] for row in sitting.scores.prior.values()},
        "option_only": None,
        "other": {},
        "paired": {},
        "contamination": _contamination(questions, predictions, taught),
    }
    if option_only is not None:
        right = sum(metrics.credits(questions, option_only.predictions))
        found["option_only"] = metrics.share(right, len(questions))
    if other is not None:
        found["other"] = metrics.accuracy(questions, other.predictions)
        found["other_macro_4"] = metrics.macro_4(metrics.by_subject(questions, other.predictions))
        found["paired"] = metrics.paired(questions, predictions, other.predictions)
    return found


def _some(questions, predictions, wanted) -> dict:
    """accuracy, right, n and interval of the questions that `wanted` holds for; {} without any."""
    counted = zip(questions, metrics.credits(questions, predictions), strict=True)
    hits = [right for question, right in counted if wanted(question)]
    return metrics.share(sum(hits), len(hits)) if hits else {}


def _refers_to_others(question: Question) -> bool:
    return any(map(refers_to_other_options, question.options))


def _calibration(sitting: ExamResult, held_out: ExamResult | str) -> dict:
    """As the scores are, and at the temperature that fits the held-out rows. The softmax of text scores is
    nothing the model ever stated; at the fitted temperature it is as good a confidence as they can give. A
    written answer states none.
    """
    if sitting.method == GENERATE:
        return {"as_scored": {}, "fitted": {}, "fitted_on": 0, "not_fitted": ""}
    rows, answers = _answered(sitting)
    found = {"as_scored": metrics.calibration(rows, answers), "fitted": {}, "fitted_on": 0}
    if isinstance(held_out, str):
        return found | {"not_fitted": held_out}
    other_rows, other_answers = _answered(held_out)
    if not other_rows:
        return found | {"not_fitted": NONE_ASKED}
    temperature = metrics.fit_temperature(other_rows, other_answers)
    fitted = metrics.calibration(rows, answers, temperature)
    return found | {"fitted": fitted, "fitted_on": len(other_rows), "not_fitted": ""}


def _answered(sitting: ExamResult) -> tuple[list, list]:
    lost = {*sitting.scores.skipped, *sitting.scores.unparsable}
    kept = [i for i in range(len(sitting.questions)) if i not in lost]
    return [sitting.scores[i] for i in kept], [sitting.questions[i].answer for i in kept]


def _contamination(questions, predictions, taught: TrainedQuestions | None) -> dict:
    """Questions that the model was fitted on, or nearly: how many, which, and the score without them."""
    if taught is None:
        return {}
    rows, clean = [], []
    for question, chosen in zip(questions, predictions, strict=True):
        kind, overlap = taught.find(question)
        if kind:
            rows.append({"id": question.id, "kind": kind, "overlap": round(overlap, 3)})
        else:
            clean.append((question, chosen))
    mixed = 0 < len(clean) < len(questions)
    return {
        "taught": len(taught.sketches),
        "same": sum(row["kind"] == "same" for row in rows),
        "near": sum(row["kind"] == "near" for row in rows),
        "rows": rows,
        "without": metrics.accuracy(*zip(*clean, strict=True)) if mixed else {},
    }


def mistakes(sitting: ExamResult, count: int = MISTAKES) -> list[dict]:
    """The wrong answers the model was surest of: question, gold, prediction and its probability."""
    found = []
    if sitting.method == GENERATE:  # none was stated
        return found
    for question, chosen, row in zip(sitting.questions, sitting.predictions, sitting.scores, strict=True):
        if chosen != -1 and not metrics.credit(question.answer, chosen):
            p = metrics.probabilities(row)
            found.append((float(p.max()), question, chosen, float(p[question.answer])))
    found.sort(key=lambda row: -row[0])
    return [
        {
            "id": question.id, "subject": question.subject, "question": question.stem,
            "options": dict(zip(LETTERS, question.options, strict=False)), "gold": LETTERS[question.answer],
            "prediction": letter(chosen), "confidence": confidence, "probability_of_gold": p_gold,
        }
        for confidence, question, chosen, p_gold in found[:count]
    ]  # fmt: skip


def records(
    sitting: ExamResult, other: ExamResult | None = None, other_name: str = "other"
) -> Iterator[dict]:
    """One object a question, for predictions.jsonl. `tied`: the k options that share the highest score, of
    which `prediction` is the first; the question counts 1/k if the gold one is among them.
    `answers_by_order`: the options in the order shown, and the one chosen then (A=C: these two alike);
    `flips`: they are not all the same one.
    """
    theirs = other.predictions if other else None

    def told(who: str, chosen: metrics.Prediction) -> dict:
        tied = {f"{who}tied": [*map(letter, chosen)]} if isinstance(chosen, tuple) else {}
        return {f"{who}prediction": letter(chosen), **tied}

    for index, (question, chosen) in enumerate(zip(sitting.questions, sitting.predictions, strict=True)):
        record = {
            "id": question.id,
            "subject": question.subject,
            "gold": letter(question.answer),
            **told("", chosen),
            "scores": [round(score, 6) for score in sitting.scores[index]],
        }
        if sitting.method == GENERATE:
            record |= {"scores": [], "reply": sitting.scores.replies.get(index, "")}
        if theirs:
            record |= told(f"{other_name}_", theirs[index])
        if len(asked := sitting.scores.by_order[index]) > 1:
            answers = {"".join(map(letter, order)): "=".join(map(letter, tied(row))) for order, row in asked}
            record |= {"answers_by_order": answers, "flips": len(set(answers.values())) > 1}
        if index in sitting.scores.skipped:
            record["refused"] = sitting.scores.skipped[index]
        yield record


def letter(index: metrics.Prediction | None) -> str | None:
    """The letter of an option, the first of equals; None where nothing was chosen."""
    first = index[0] if isinstance(index, tuple) else index
    return None if first is None or first < 0 else LETTERS[first]
