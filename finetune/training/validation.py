"""How good a model is in the middle of its training: figures on the validation rows, always the same ones."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from finetune.data.question import Question
from finetune.evaluation.classification import names_of, probabilities
from finetune.evaluation.evaluator import asked_by, sit
from finetune.models.forward import is_multi
from finetune.objectives.classification import Classification
from finetune.objectives.masked_lm import Restoration
from finetune.reports.classification import figures
from finetune.reports.perplexity import perplexity


def validate(lesson, forward: Callable[..., Tensor], world, tokens: int) -> dict:
    """Loss on the validation rows, always of the same examples; of tokens their perplexity (and, of hidden
    ones, how many are restored), of questions and labels the accuracy. {} without rows.

    Args:
        forward: of an engine that is set to evaluate.
        tokens: of one forward pass, with padding.
    """
    rows = lesson.check.rows
    if not lesson.check.lengths:
        return {}
    if isinstance(lesson.check, Classification):
        graded = grade(lesson.check, lesson.config, forward, lesson.tokenizer.pad_token_id, world)
        return {
            "validation_loss": graded["log_loss"], "validation_accuracy": graded["accuracy"],
            "validation_macro_f1": graded["macro_f1"], "validation_rows": graded["n"],
        }  # fmt: skip
    measured = lesson.measure(lesson.check, forward, world, tokens)
    found = {"validation_loss": measured.loss}
    if lesson.by_token:
        found |= {
            "validation_perplexity": perplexity(measured.loss),
            "validation_tokens": measured.mass,
        }
    if isinstance(lesson.check, Restoration):
        found["validation_restored"] = measured.accuracy
    if isinstance(rows[0], Question):
        asked = asked_by(forward, lesson.prompts, world.device)
        sitting = sit(asked, rows, lesson.scoring, "1", world)
        found |= {"validation_accuracy": sitting.accuracy, "validation_questions": len(rows)}
    return found


def grade(objective: Classification, config, forward: Callable[..., Tensor], pad_id: int, world) -> dict:
    """The figures of a classifier on labelled rows, see reports/classification.py. All ranks call it."""
    return figures_of(objective, config, answers_of(objective, config, forward, pad_id, world))


def answers_of(objective: Classification, config, forward: Callable[..., Tensor], pad_id: int, world) -> list:
    """A classifier's probabilities of the classes, (n, K). All ranks call it."""
    return probabilities(forward, config, pad_id, objective.encoded, world.device, world)


def figures_of(objective: Classification, config, found: list) -> dict:
    """Figures from `answers_of`."""
    truth = [row.labels for row in objective.rows]
    return figures(truth, found, names_of(config), is_multi(config))
