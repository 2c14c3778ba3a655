"""What a causal model gained, in figures and words: perplexity of what it was not taught, before and after.

A growth, as growth.py measures it and a run card keeps it: `sets`: validation, held_back -> tuned, untuned ->
loss, perplexity, tokens, bits_per_character; `samples`: prompt, wanted, untuned, tuned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

TITLES = {"validation": "驗證", "held_back": "保留"}
PARTS = (("提示", "prompt"), ("原文", "wanted"), ("微調前", "untuned"), ("微調後", "tuned"))  # of a sample
COLUMNS = ("沒教過的資料", "token", "困惑度（前）", "困惑度（後）", "變化", "每字位元（後）")
TITLE = "困惑度"
MEANING = "每個 token 的平均負對數概似取指數：模型在每一步平均猶豫於幾個 token 之間。越低越好。"
NONE = "沒有留下驗證資料（--split_ratio），不知道學得多好。"


def perplexity(loss: float) -> float:
    """exp(mean negative log-likelihood of a token, nats); inf where that is beyond a float."""
    return math.exp(loss) if loss < 700 else math.inf


def table(growth: dict) -> list[str]:
    """The figures in Markdown."""
    if not growth["sets"]:
        return [NONE]
    lines = [f"| {' | '.join(COLUMNS)} |", "|---|--:|--:|--:|--:|--:|"]
    lines += [f"| {' | '.join(cells)} |" for cells in rows(growth)]
    return lines


def rows(growth: dict) -> list[list[str]]:
    """Of each set, what stands below COLUMNS."""
    found = []
    for name, figures in growth["sets"].items():
        before, after = figures["untuned"], figures["tuned"]
        bits = f"{after['bits_per_character']:.3f}" if "bits_per_character" in after else "—"
        cells = [f"{after['tokens']:,}", small(before), small(after), change(before, after), bits]
        found.append([TITLES[name], *cells])
    return found


def verdict(growth: dict) -> list[str]:
    """One sentence a set, for the screen."""
    if not growth["sets"]:
        return [NONE]
    return [
        f"{TITLES[name]}資料（{found['tuned']['tokens']:,} 個 token）：困惑度 {small(found['untuned'])} → "
        f"{small(found['tuned'])}（{change(found['untuned'], found['tuned'])}）"
        for name, found in growth["sets"].items()
    ]


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
