"""Outcomes of generated replies: right, wrong, and three kinds of no answer, which are counted apart.

A board that takes a reply it cannot read for a wrong answer measures its reader too. What a person would find
who read all replies lies between two bounds: none of those without an answer is right, and all of them are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finetune.evaluation.metrics import share
from finetune.evaluation.reply_reader import ANSWERED, REFUSED, TRUNCATED, UNREADABLE
from finetune.evaluation.scores import Scores

NO_ANSWER = (UNREADABLE, TRUNCATED, REFUSED)
SHOWN = 200  # characters of a reply in a message
LETTER_INSTEAD = "或改用 letter（--scoring letter，對話中是 method letter），一定會選一個"


def count_outcomes(credits: Sequence[float], scores: Scores) -> dict[str, Any]:
    """Count the outcomes of the replies to a set of questions.

    Args:
        credits: 1 for each question answered right, else 0.
        scores: of the same questions.

    Returns:
        `right`, `wrong`, `unreadable`, `truncated`, `refused` and `skipped`, which add up to `n`; `readable`:
        accuracy, right, n and interval of the replies that name an option, {} where none does; `bounds`: the
        lowest and the highest accuracy that is possible. {} without a question.
    """
    n, right = len(credits), round(sum(credits))
    if not n:
        return {}
    counts = {outcome: list(scores.outcomes.values()).count(outcome) for outcome in NO_ANSWER}
    without, skipped = sum(counts.values()), len(scores.skipped)
    read = n - without - skipped
    return {
        "n": n,
        "right": right,
        "wrong": read - right,
        **counts,
        "skipped": skipped,
        "readable": share(right, read) if read else {},
        "bounds": [right / n, (right + without) / n],
    }


def outcome_of(scores: Scores, index: int) -> str | None:
    """Return the outcome of the reply to a question; None where it was never asked."""
    return None if index in scores.skipped else scores.outcomes.get(index, ANSWERED)


def no_answer_reason(outcome: str, reply: str) -> str:
    """Return why a reply gives no answer, and the way out."""
    shown = reply if len(reply) <= SHOWN else f"{reply[: SHOWN // 2]}…{reply[-SHOWN // 2 :]}"
    if outcome == TRUNCATED:
        return (
            f"回答寫到長度上限被截斷，還沒有說出答案：{shown!r}；把 --max_new_tokens 調大，{LETTER_INSTEAD}"
        )
    if outcome == REFUSED:
        return f"模型拒答：{shown!r}；換個問法，{LETTER_INSTEAD}"
    return f"看不出選了哪一個，模型的回答是 {shown!r}；在題目裡寫明只答字母，{LETTER_INSTEAD}"
