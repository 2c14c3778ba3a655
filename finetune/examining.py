"""Sitting an exam: a model's answers become figures, beside those of another model and of no model at all."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from . import metrics
from .cli import plain, say
from .contamination import Taught
from .methods import GENERATE, parse
from .orders import speaks_of_others
from .questions import LETTERS, Question
from .scoring import Scores, best, score_options

MISTAKES = 20  # most confident ones, for a report
CALIBRATION_ROWS = 500  # validation questions that a temperature is fitted on, at most


@dataclass
class Sitting:
    """What one model answered. `scores[i]`: log-probabilities of `questions[i]`'s options, in nats."""

    questions: Sequence[Question]
    scores: Scores
    method: str
    orders: str

    @property
    def predictions(self) -> list[int]:
        """The chosen index of each question; -1, never right, where it could not be asked, or what was
        answered names no option."""
        lost = {*self.scores.refused, *self.scores.unreadable}
        return [-1 if i in lost else best(row) for i, row in enumerate(self.scores)]

    @property
    def right(self) -> int:
        """How many were answered right."""
        return sum(q.answer == p for q, p in zip(self.questions, self.predictions, strict=True))


def sit(
    score: Callable[..., Scores],
    questions: Sequence[Question],
    method: str,
    orders: str,
    world=None,
    title: str = "",
) -> Sitting:
    """Lets a model answer all questions; several processes share the work.

    Args:
        score: (questions, method, orders, world=, progress=) -> scores, as `Examinee.score` or `asked_by`.
        title: names the bar.
    """
    from tqdm import tqdm

    speaks = bool(title) and (world is None or world.is_main)
    bar = tqdm(
        desc=plain(title, lines=False), unit="題", total=len(questions), dynamic_ncols=True, leave=False,
        disable=not (speaks and sys.stderr.isatty()),
    )  # fmt: skip
    if speaks and not sys.stderr.isatty():
        say(f"{title}：{len(questions)} 題…")
    with bar:
        scores = score(questions, method, orders, world=world, progress=bar.update)
    return Sitting(list(questions), scores, str(parse(method)), orders)


def asked_by(model, prompts, device) -> Callable[..., Scores]:
    """How `sit` asks a model, or an engine's forward pass."""
    return partial(score_options, model, prompts.tokenizer, prompts=prompts, device=device)


def stemless(questions: Sequence[Question]) -> list[Question]:
    """The same questions with nothing asked: what their options give away alone (arXiv:2402.12483)."""
    return [replace(question, stem="") for question in questions]


# ---- figures -----------------------------------------------------------------------------------------------


def figures(
    sitting: Sitting,
    other: Sitting | None = None,
    taught: Taught | None = None,
    option_only: Sitting | None = None,
    held_out: Sitting | None = None,
) -> dict:
    """All figures of one set of questions. Empty without any.

    Args:
        other: a second model on the same questions (the untuned one, say).
        taught: what the model was fitted on; the score without those questions stands beside the whole.
        option_only: the same model on `stemless` questions.
        held_out: the same model on questions neither taught nor examined, to fit a temperature on.
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
        "ties": sum(row.count(max(row)) > 1 for row in _answered(sitting)[0]) / len(questions),
        "speaks_of_others": _some(questions, predictions, _speaks_of_others),
        "refused": len(sitting.scores.refused),
        "unreadable": len(sitting.scores.unreadable),
        "shortened": len(sitting.scores.shortened),
        "prior": {LETTERS[: len(row)]: [math.exp(x) for x in row] for row in sitting.scores.prior.values()},
        "option_only": None,
        "other": {},
        "paired": {},
        "contamination": _contamination(questions, predictions, taught),
    }
    if option_only is not None:
        found["option_only"] = metrics.share(option_only.right, len(questions))
    if other is not None:
        found["other"] = metrics.accuracy(questions, other.predictions)
        found["other_macro_4"] = metrics.macro_4(metrics.by_subject(questions, other.predictions))
        found["paired"] = metrics.paired(questions, predictions, other.predictions)
    return found


def _some(questions, predictions, wanted) -> dict:
    """accuracy, right, n and interval of the questions that `wanted` holds for; {} without any."""
    hits = [q.answer == p for q, p in zip(questions, predictions, strict=True) if wanted(q)]
    return metrics.share(sum(hits), len(hits)) if hits else {}


def _speaks_of_others(question: Question) -> bool:
    return any(map(speaks_of_others, question.options))


def _calibration(sitting: Sitting, held_out: Sitting | None) -> dict:
    """As the scores are, and at the temperature that fits the held-out rows. The softmax of text scores is
    nothing the model ever stated; at the fitted temperature it is as good a confidence as they can give. A
    written answer states none."""
    if sitting.method == GENERATE:
        return {"as_scored": {}, "fitted": {}, "fitted_on": 0}
    rows, answers = _answered(sitting)
    found = {"as_scored": metrics.calibration(rows, answers), "fitted": {}, "fitted_on": 0}
    if held_out is not None and len(held_out.questions):
        other_rows, other_answers = _answered(held_out)
        if other_rows:
            temperature = metrics.fit_temperature(other_rows, other_answers)
            found["fitted"] = metrics.calibration(rows, answers, temperature)
            found["fitted_on"] = len(other_rows)
    return found


def _answered(sitting: Sitting) -> tuple[list, list]:
    lost = {*sitting.scores.refused, *sitting.scores.unreadable}
    kept = [i for i in range(len(sitting.questions)) if i not in lost]
    return [sitting.scores[i] for i in kept], [sitting.questions[i].answer for i in kept]


def _contamination(questions, predictions, taught: Taught | None) -> dict:
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


def mistakes(sitting: Sitting, count: int = MISTAKES) -> list[dict]:
    """The wrong answers the model was surest of: question, gold, prediction and its probability."""
    found = []
    if sitting.method == GENERATE:  # none was stated
        return found
    for question, chosen, row in zip(sitting.questions, sitting.predictions, sitting.scores, strict=True):
        if chosen not in (-1, question.answer):
            p = metrics.probabilities(row)
            found.append((float(p[chosen]), question, chosen, float(p[question.answer])))
    found.sort(key=lambda row: -row[0])
    return [
        {
            "id": question.id, "subject": question.subject, "question": question.stem,
            "options": dict(zip(LETTERS, question.options, strict=False)), "gold": LETTERS[question.answer],
            "prediction": LETTERS[chosen], "confidence": confidence, "probability_of_gold": p_gold,
        }
        for confidence, question, chosen, p_gold in found[:count]
    ]  # fmt: skip


def records(sitting: Sitting, other: Sitting | None = None, other_name: str = "other") -> Iterator[dict]:
    """One object a question, for predictions.jsonl. `answers_by_order`: the options in the order shown, and
    the one chosen then; `flips`: they are not all the same one."""
    theirs = other.predictions if other else None
    for index, (question, chosen) in enumerate(zip(sitting.questions, sitting.predictions, strict=True)):
        record = {
            "id": question.id,
            "subject": question.subject,
            "gold": letter(question.answer),
            "prediction": letter(chosen),
            "scores": [round(score, 6) for score in sitting.scores[index]],
        }
        if sitting.method == GENERATE:
            record |= {"scores": [], "reply": sitting.scores.replies.get(index, "")}
        if theirs:
            record[f"{other_name}_prediction"] = letter(theirs[index])
        if len(asked := sitting.scores.by_order[index]) > 1:
            answers = {"".join(map(letter, order)): letter(best(row)) for order, row in asked}
            record |= {"answers_by_order": answers, "flips": len(set(answers.values())) > 1}
        if index in sitting.scores.refused:
            record["refused"] = sitting.scores.refused[index]
        yield record


def letter(index: int | None) -> str | None:
    """The letter of an option; None where nothing was chosen."""
    return None if index is None or index < 0 else LETTERS[index]
