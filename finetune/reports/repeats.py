"""Several runs of one exam in words and tables; the figures are those of evaluation/repeats.py."""

from __future__ import annotations

from typing import Any

from finetune.data.subjects import CATEGORIES
from finetune.evaluation.outcomes import NO_ANSWER
from finetune.reports.number_format import percent, small

TITLE = "重複評測"
COLUMNS = ("", "平均", "標準差（百分點）", "最低", "最高")
MOST_LISTED = 10  # runs whose accuracies are written out
FIRST_RUN = "信心、無法作答與看不出答案的題數、最有把握的錯題，是第 1 次（照原順序）的；其餘都是各次的平均。"


def sentences(metrics: dict[str, Any]) -> list[str]:
    """Return what several runs of one set of questions show, a sentence each."""
    found = metrics["repeats"]
    runs = found["runs"]
    each = "、".join(map(percent, found["accuracies"])) if runs <= MOST_LISTED else ""
    low, high = map(percent, metrics["model"]["interval_95"])
    lines = [
        f"評測 {runs} 次：第 1 次照原順序，之後每次以固定的種子打亂各題的選項"
        f"（「以上皆是」一類的選項不動）。{f'各次答對 {each}；' if each else ''}"
        f"平均 {percent(found['mean'])}，標準差 {deviation(found['sd'])} 個百分點，"
        f"最低 {percent(found['range'][0])}，最高 {percent(found['range'][1])}。",
        f"{small(found['changed'])} 的題目，各次的答案不完全相同。",
        f"平均的 95 % 區間是 {low} 到 {high}，以題目為抽樣單位。"
        "標準差只說明同樣這些題目再評測一次會差多少，不是模型能力的不確定程度：換一批題目會差多少，要看區間。",
    ]
    unread = [sum(counts) for counts in zip(*(found[outcome] for outcome in NO_ANSWER), strict=True)]
    if any(unread):
        lines.append(f"各次讀不出答案的回答：{'、'.join(map(str, unread))} 題，算答錯。")
    return [*lines, FIRST_RUN]


def order_sentence(metrics: dict[str, Any]) -> str:
    """Return how answers changed with the order of the options from run to run."""
    runs, bias = metrics["repeats"]["runs"], metrics["order_bias"]
    if not bias:
        return f"每題評測 {runs} 次，沒有一題每次都能作答，看不出順序的影響。"
    return (
        f"每題評測 {runs} 次，第 2 次起打亂選項，{small(bias['flips'])} 的題目答案不是每次都一樣；"
        f"照原順序答對 {small(bias['accuracy_as_written'])}，"
        f"任一次平均答對 {small(bias['accuracy_of_one_order'])}。"
    )


def rows(metrics: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return a row of COLUMNS for all questions, for macro-4 and for each category."""
    found = metrics["repeats"]
    parts = {"全部題目": found}
    if found["macro_4"]:
        parts["四大類平均（macro-4）"] = found["macro_4"]
    parts |= {CATEGORIES[name]: row for name, row in found["categories"].items()}
    if "other" in found:
        parts["比較的模型，全部題目"] = found["other"]
    return [
        (title, percent(row["mean"]), deviation(row["sd"]), *map(percent, row["range"]))
        for title, row in parts.items()
    ]


def screen_lines(metrics: dict[str, Any]) -> list[str]:
    """Return what the screen shows of several runs; nothing of a single one."""
    if "repeats" not in metrics:
        return []
    found = metrics["repeats"]
    low, high = found["range"]
    return [
        f"  評測 {found['runs']} 次（第 2 次起打亂選項）：平均 {found['mean']:.3f}，"
        f"標準差 {found['sd']:.3f}，{low:.3f}–{high:.3f}；{small(found['changed'])} 的題目答案不完全相同",
        "  標準差只說明同樣這些題目再評測一次會差多少；模型能力的不確定程度要看上面的 95 % 區間",
    ]


def deviation(share: float) -> str:
    """Write a standard deviation of accuracies in percentage points."""
    return f"{100 * share:.2f}"
