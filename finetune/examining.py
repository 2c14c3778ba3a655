"""Sitting an exam: a model's answers become figures, beside those of the untuned model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from . import metrics
from .cli import say
from .exams import LETTERS, Question
from .scoring import best, score_options


@dataclass
class Sitting:
    """What one model answered. `scores[i]`: log-probabilities of `questions[i]`'s options, in nats."""

    questions: list[Question]
    scores: list[list[float]]
    too_long: list[int]  # indices of questions that do not fit the model; their scores are equal

    @property
    def predictions(self) -> list[int]:
        """The chosen index of each question; -1, never right, where it could not be asked."""
        unasked = set(self.too_long)
        return [-1 if i in unasked else best(row) for i, row in enumerate(self.scores)]

    @property
    def right(self) -> int:
        """How many were answered right."""
        return sum(q.answer == p for q, p in zip(self.questions, self.predictions, strict=True))


def sit(
    forward,
    prompts,
    questions: Sequence[Question],
    method: str,
    orders: str,
    device,
    world=None,
    title: str = "",
) -> Sitting:
    """Lets a model answer all questions; several processes share the work. `title` names the bar."""
    from tqdm import tqdm

    speaks = bool(title) and (world is None or world.is_main)
    bar = tqdm(
        desc=title, unit="列", disable=not (speaks and sys.stderr.isatty()), dynamic_ncols=True, leave=False
    )
    if speaks and not sys.stderr.isatty():
        say(f"{title}：{len(questions)} 題…")
    with bar:
        scores, too_long = score_options(
            forward, prompts, questions, method, orders, device=device, world=world, progress=bar.update
        )
    return Sitting(list(questions), scores, too_long)


def compare(tuned: Sitting, untuned: Sitting, fitted: set[str]) -> dict:
    """Figures of both models on the same questions, and the paired test between them. Empty without any.

    Args:
        fitted: fingerprints of what the tuned model was fitted on; where questions are among them, the figure
            without those stands beside the whole (`overlap`, `without_overlap`).
    """
    if not tuned.questions:
        return {}
    questions = tuned.questions
    subjects = metrics.by_subject(questions, tuned.predictions)
    answered = zip(questions, tuned.predictions, strict=True)
    unseen = [(question, chosen) for question, chosen in answered if question.fingerprint not in fitted]
    return {
        "tuned": metrics.accuracy(questions, tuned.predictions),
        "untuned": metrics.accuracy(questions, untuned.predictions),
        "paired": metrics.mcnemar(questions, tuned.predictions, untuned.predictions),
        "subjects": subjects,
        "macro_4": metrics.macro_4(subjects),
        "untuned_macro_4": metrics.macro_4(metrics.by_subject(questions, untuned.predictions)),
        "too_long": len(tuned.too_long),
        "overlap": len(questions) - len(unseen),
        "without_overlap": metrics.accuracy(*zip(*unseen, strict=True))
        if 0 < len(unseen) < len(questions)
        else {},
    }


def records(tuned: Sitting, untuned: Sitting) -> list[dict]:
    """One object a question, for predictions.jsonl."""

    def letter(index: int | None) -> str | None:
        return None if index is None or index < 0 else LETTERS[index]

    answered = zip(tuned.questions, tuned.predictions, untuned.predictions, tuned.scores, strict=True)
    return [
        {
            "id": question.id,
            "subject": question.subject,
            "gold": letter(question.answer),
            "prediction": letter(mine),
            "untuned_prediction": letter(theirs),
            "scores": [round(score, 6) for score in scores],
        }
        for question, mine, theirs, scores in answered
    ]
