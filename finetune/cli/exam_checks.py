"""Checks of --repeat and --audit_keys that need to know how the model answers."""

from __future__ import annotations

from finetune.prompts.scoring_methods import GENERATE, parse
from finetune.runtime.errors import UserError


def shows_options(method: str) -> bool:
    """Return True for a method whose prompt lists the options, so that their order may change the answer."""
    return method == GENERATE or parse(method).by_letter


def check_repeats(count: int | None, method: str, orders: str | None) -> None:
    """Refuse several runs that would all be the same, or that contradict --orders.

    Args:
        count: number of runs; None is 1.
        method: name of the scoring method; `auto` while the model is not known.
        orders: value of --orders, None where it was not given.

    Raises:
        UserError: with what to give instead.
    """
    if (count or 1) == 1:
        return
    if method != "auto" and not shows_options(method):
        raise UserError(
            f"--repeat {count}：作答方式 {method} 不在題目裡列出選項，打亂順序也不影響答案，每次都會一樣；"
            "請去掉 --repeat，或改用列出選項的 --scoring letter（因果模型還有 generate）"
        )
    if orders not in (None, "1"):
        raise UserError(
            f"--repeat {count} 與 --orders {orders} 不能一起用：重複評測時，每次只用一種選項順序；"
            "請去掉 --orders，或去掉 --repeat"
        )


def check_votes(method: str, orders: str, repeats: int | None, compared: bool) -> None:
    """Refuse an audit of keys by a single vote a question.

    Args:
        method: name of the scoring method.
        orders: option orders: `1`, `cyclic`, `all`.
        repeats: number of runs; None is 1.
        compared: there is a second model.

    Raises:
        UserError: with what to add.
    """
    if compared or (repeats or 1) > 1 or (parse(method).by_letter and orders != "1"):
        return
    if method == GENERATE:
        more = "請加 --repeat 5，或以 --compare_with 加一個模型"
    elif shows_options(method):
        more = "請加 --orders cyclic 或 --repeat 5，或以 --compare_with 加一個模型"
    else:
        more = "換選項順序不影響它的答案；請改用 --scoring letter，或以 --compare_with 加一個模型"
    raise UserError(f"--audit_keys：作答方式 {method} 每題只有一票，看不出意見是否一致；{more}")
