"""Scores on what two revisions of an exam share: one scoring pass, the key of either."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from finetune.data.exam_revisions import CHANGES, TEXT_CHANGED, RevisionJoin, duplicates
from finetune.data.question import LETTERS, Question
from finetune.data.splits import sample_rows
from finetune.evaluation import metrics
from finetune.evaluation.evaluator import ExamResult


def compute_revisions(
    join: RevisionJoin, limit: int, result: ExamResult, other: ExamResult | None
) -> dict[str, Any]:
    """Compute `revisions` of results.json: what changed, and the scores by the key of either revision.

    Args:
        join: the two revisions.
        limit: of the shared questions so many were sampled (`data.splits.sample_rows`); 0: all.
        result: the model's answers to the shared questions.
        other: those of a second model.
    """
    olds = [replace(join.new[pair.new], answer=join.old[pair.old].answer) for pair in join.shared]
    olds = list(sample_rows(olds, limit, seed=0))  # as the questions themselves were sampled
    scored = {"model": scores_by_key(result, olds)}
    if other is not None:
        scored["other"] = scores_by_key(other, olds)
    return {**describe_join(join), "scored": scored}


def scores_by_key(result: ExamResult, olds: Sequence[Question]) -> dict[str, Any]:
    """Return the accuracy by the old and by the new key, and the difference new − old, paired by question.

    Args:
        result: answers to the shared questions, whose answers are the new key.
        olds: the same questions, in the same order, with the old key.
    """
    by_old = [
        replace(question, answer=_place(question, old))
        for question, old in zip(result.questions, olds, strict=True)
    ]
    predictions = result.predictions
    old, new = (metrics.credits(rows, predictions) for rows in (by_old, result.questions))
    test = metrics.paired_test(new, old)
    return {
        "n": len(by_old),
        "old_key": metrics.share(sum(old), len(old)),
        "new_key": metrics.share(sum(new), len(new)),
        "old_key_macro_4": metrics.macro_4(metrics.by_subject(by_old, predictions)),
        "new_key_macro_4": metrics.macro_4(metrics.by_subject(result.questions, predictions)),
        **metrics.mean_difference([a - b for a, b in zip(new, old, strict=True)]),
        "only_new_right": test["only_first_right"],
        "only_old_right": test["only_second_right"],
        "p_value": test["p_value"],
    }


def _place(question: Question, old: Question) -> int | None:
    """Return the place of the old answer in a question whose options may have been shuffled since."""
    if question.options == old.options or old.answer is None:
        return old.answer
    return question.options.index(old.options[old.answer])


def describe_join(join: RevisionJoin) -> dict[str, Any]:
    """Return what changed between two revisions, in numbers and row by row."""
    old, new = join.old, join.new
    changed = [pair for pair in join.pairs if pair.kind == TEXT_CHANGED]
    keys = [pair for pair in join.shared if old[pair.old].answer != new[pair.new].answer]
    return {
        "old": {"revision": join.names[0], "rows": len(old), "duplicates": duplicates(old)},
        "new": {"revision": join.names[1], "rows": len(new), "duplicates": duplicates(new)},
        "counts": join.counts,
        "text_changes": {change: sum(p.change == change for p in changed) for change in CHANGES},
        "subjects": join.by_subject(),
        "rows": {
            "key_changed": [
                {
                    "old": old[pair.old].id, "new": new[pair.new].id,
                    "old_answer": _letter(old[pair.old]), "new_answer": _letter(new[pair.new]),
                }
                for pair in keys
            ],
            "text_changed": [
                {
                    "old": old[pair.old].id, "new": new[pair.new].id, "change": pair.change,
                    "overlap": round(pair.overlap, 3), "old_answer": _letter(old[pair.old]),
                    "new_answer": _letter(new[pair.new]),
                }
                for pair in changed
            ],
            "gone": [old[place].id for place in join.gone],
            "added": [new[place].id for place in join.added],
        },
    }  # fmt: skip


def _letter(question: Question) -> str | None:
    """Return the letter of a question's answer."""
    return None if question.answer is None else LETTERS[question.answer]
