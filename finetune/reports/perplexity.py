"""Report of a language model: perplexity of texts it was not trained on, before and after training.

`before_after`, as training/evaluate.py measures it and a run card keeps it, has two keys. `sets`: validation,
held_back -> tuned, untuned -> loss, perplexity, tokens, bits_per_character (of a causal model) or restored
(of a masked one: the share of the masked tokens that it predicts). `samples`: prompt, wanted, untuned, tuned.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from finetune.evaluation.set_names import in_order

TITLES = {"held_back": "保留", "validation": "驗證"}
PARTS = (("提示", "prompt"), ("原文", "wanted"), ("微調前", "untuned"), ("微調後", "tuned"))  # (title, key)
COLUMNS = ("未參與訓練的資料", "token", "困惑度（前）", "困惑度（後）", "變化")
BITS, RESTORED = "每字位元（後）", "還原（前 → 後）"
TITLE = "困惑度"
MEANING = "每個 token 的平均負對數概似取指數：模型在每一步平均猶豫於幾個 token 之間。越低越好。"
HIDDEN = "還原：遮住的 token 裡，模型認為最可能的正是原字的比例。驗證時一律遮住 15 %，都換成 [MASK]。"
NONE = "沒有留下驗證資料（--split_ratio），不知道學得多好。"


def perplexity(loss: float) -> float:
    """Return exp(mean negative log-likelihood of a token, nats); inf where that is beyond a float."""
    return math.exp(loss) if loss < 700 else math.inf


def columns(before_after: Mapping[str, Any]) -> list[str]:
    """Return the head of the table, which depends on the kind of model."""
    return [*COLUMNS, RESTORED if is_masked_lm(before_after) else BITS]


def is_masked_lm(before_after: Mapping[str, Any]) -> bool:
    """Return True for a masked model, whose masked tokens are restored."""
    return any("restored" in figures["tuned"] for figures in before_after["sets"].values())


def meaning(before_after: Mapping[str, Any]) -> str:
    """Return what the columns mean, in words."""
    return MEANING + (HIDDEN if is_masked_lm(before_after) else "")


def samples_title(before_after: Mapping[str, Any]) -> str:
    """Return the title of the samples."""
    return "填回去的字（【】是遮住的）" if is_masked_lm(before_after) else "寫出來的文字（greedy）"


def rows(before_after: Mapping[str, Any]) -> list[list[str]]:
    """Return a row of the table for each set, with the cells of `columns`."""
    lines = []
    for name, figures in in_order(before_after["sets"]).items():
        before, after = figures["untuned"], figures["tuned"]
        last = f"{after['bits_per_character']:.3f}" if "bits_per_character" in after else "—"
        if "restored" in after:
            last = restored(before, after)
        cells = [f"{after['tokens']:,}", small(before), small(after), change(before, after), last]
        lines.append([TITLES[name], *cells])
    return lines


def verdict(before_after: Mapping[str, Any]) -> list[str]:
    """Return one sentence a set, for the screen."""
    if not before_after["sets"]:
        return [NONE]
    return [
        f"{TITLES[name]}資料（{of['tuned']['tokens']:,} 個 token）：困惑度 {small(of['untuned'])} → "
        f"{small(of['tuned'])}（{change(of['untuned'], of['tuned'])}）"
        + (f"，遮住的字還原 {restored(of['untuned'], of['tuned'])}" if is_masked_lm(before_after) else "")
        for name, of in in_order(before_after["sets"]).items()
    ]


def restored(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Return the shares of masked tokens restored before and after training, as text."""
    return f"{100 * before['restored']:.1f} % → {100 * after['restored']:.1f} %"


def small(figures: Mapping[str, Any]) -> str:
    """Return the perplexity of one set as text, to four digits."""
    value = figures["perplexity"]
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def change(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Return the relative change of the perplexity as text, e.g. 降低 42.0 %."""
    if not math.isfinite(before["perplexity"]) or not before["perplexity"]:
        return "—"
    share = after["perplexity"] / before["perplexity"] - 1
    if abs(share) < 0.0005:
        return "沒有變"
    return f"{'降低' if share < 0 else '升高'} {abs(share):.1%}".replace("%", " %")
