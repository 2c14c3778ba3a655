"""What a language model gained, in figures and words: perplexity of what it was not taught, before and after.

A growth, as training/growth.py measures it and a run card keeps it: `sets`: validation, held_back -> tuned,
untuned -> loss, perplexity, tokens, bits_per_character (of a causal model) or restored (of a masked one: the
share of the hidden tokens that it says are there); `samples`: prompt, wanted, untuned, tuned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from finetune.evaluation.sets import in_order

TITLES = {"held_back": "保留", "validation": "驗證"}
PARTS = (("提示", "prompt"), ("原文", "wanted"), ("微調前", "untuned"), ("微調後", "tuned"))  # of a sample
COLUMNS = ("沒教過的資料", "token", "困惑度（前）", "困惑度（後）", "變化")
BITS, RESTORED = "每字位元（後）", "還原（前 → 後）"
TITLE = "困惑度"
MEANING = "每個 token 的平均負對數概似取指數：模型在每一步平均猶豫於幾個 token 之間。越低越好。"
HIDDEN = "還原：遮住的 token 裡，模型認為最可能的正是原字的比例。驗證時一律遮住 15 %，都換成 [MASK]。"
NONE = "沒有留下驗證資料（--split_ratio），不知道學得多好。"


def perplexity(loss: float) -> float:
    """exp(mean negative log-likelihood of a token, nats); inf where that is beyond a float."""
    return math.exp(loss) if loss < 700 else math.inf


def table(growth: dict) -> list[str]:
    """The figures in Markdown."""
    if not growth["sets"]:
        return [NONE]
    lines = [f"| {' | '.join(columns(growth))} |", "|---|--:|--:|--:|--:|--:|"]
    lines += [f"| {' | '.join(cells)} |" for cells in rows(growth)]
    return lines


def columns(growth: dict) -> list[str]:
    """Of the table, by what was measured."""
    return [*COLUMNS, RESTORED if hides(growth) else BITS]


def hides(growth: dict) -> bool:
    """True of a masked model: tokens were hidden, and are restored."""
    return any("restored" in figures["tuned"] for figures in growth["sets"].values())


def meaning(growth: dict) -> str:
    """What the columns say."""
    return MEANING + (HIDDEN if hides(growth) else "")


def samples_title(growth: dict) -> str:
    return "填回去的字（【】是遮住的）" if hides(growth) else "寫出來的文字（greedy）"


def rows(growth: dict) -> list[list[str]]:
    """Of each set, what stands below `columns`."""
    found = []
    for name, figures in in_order(growth["sets"]).items():
        before, after = figures["untuned"], figures["tuned"]
        last = f"{after['bits_per_character']:.3f}" if "bits_per_character" in after else "—"
        if "restored" in after:
            last = restored(before, after)
        cells = [f"{after['tokens']:,}", small(before), small(after), change(before, after), last]
        found.append([TITLES[name], *cells])
    return found


def verdict(growth: dict) -> list[str]:
    """One sentence a set, for the screen."""
    if not growth["sets"]:
        return [NONE]
    return [
        f"{TITLES[name]}資料（{found['tuned']['tokens']:,} 個 token）：困惑度 {small(found['untuned'])} → "
        f"{small(found['tuned'])}（{change(found['untuned'], found['tuned'])}）"
        + (f"，遮住的字還原 {restored(found['untuned'], found['tuned'])}" if hides(growth) else "")
        for name, found in in_order(growth["sets"]).items()
    ]


def restored(before: dict, after: dict) -> str:
    return f"{100 * before['restored']:.1f} % → {100 * after['restored']:.1f} %"


def small(found: dict) -> str:
    value = found["perplexity"]
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def change(before: dict, after: dict) -> str:
    """降低 42.0 %"""
    if not math.isfinite(before["perplexity"]) or not before["perplexity"]:
        return "—"
    share = after["perplexity"] / before["perplexity"] - 1
    if abs(share) < 0.0005:
        return "沒有變"
    return f"{'降低' if share < 0 else '升高'} {abs(share):.1%}".replace("%", " %")


def samples(growth: dict) -> list[str]:
    """The answers side by side, in Markdown."""
    lines: list[str] = []
    for number, sample in enumerate(growth["samples"], 1):
        lines += [f"### 例 {number}", ""]
        for title, key in PARTS:
            lines += [f"**{title}**", "", *quoted(sample.get(key, "")), ""]
    return lines


def quoted(text: str) -> Sequence[str]:
    """As a code block, so that nothing in the text is taken for Markdown."""
    return ["    " + line for line in (text or "（空白）").splitlines()] or ["    （空白）"]
