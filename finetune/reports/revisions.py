"""What changed between two revisions of an exam, and the scores by the key of either, in words and tables."""

from __future__ import annotations

from typing import Any

from finetune.data.exam_revisions import KINDS, UNCHANGED
from finetune.data.subjects import subject_title
from finetune.evaluation.metrics import CERTAIN
from finetune.reports.number_format import counted, points, small

TITLES = {
    "unchanged": "沒變", "key_changed": "改了答案", "text_changed": "改了題目或選項", "gone": "刪去",
    "added": "新增",
}  # fmt: skip
CHANGES = {"stem": "題目", "options": "選項", "order": "選項的順序", "stem_and_options": "題目和選項"}


def title(record: dict[str, Any]) -> str:
    """Return the heading: the names of the revisions."""
    return f"題庫的兩個版本：{record['old']['revision']} 與 {record['new']['revision']}"


def count_sentence(record: dict[str, Any]) -> str:
    """Return the rows of each revision, and how many of them stayed, changed, are gone or added."""
    old, new, counts = record["old"], record["new"], record["counts"]
    text = f"{old['revision']} 有 {old['rows']:,} 題，{new['revision']} 有 {new['rows']:,} 題："
    text += "、".join(f"{name} {counts[kind]:,} 題" for kind, name in TITLES.items())
    if copies := [
        f"{side['revision']} {side['duplicates']:,} 題" for side in (old, new) if side["duplicates"]
    ]:
        text += f"；與同一版的另一題完全相同的有 {'、'.join(copies)}"
    return text


def change_sentence(record: dict[str, Any]) -> str:
    """Return which part of the changed texts changed; "" without any."""
    parts = [f"{CHANGES[change]} {count:,} 題" for change, count in record["text_changes"].items() if count]
    return f"改了題目或選項的，改的是：{'、'.join(parts)}" if parts else ""


def score_sentences(record: dict[str, Any], other: str) -> list[str]:
    """Return the accuracies of each model by the key of either revision, and their difference.

    Args:
        record: with the scores.
        other: what the second model is called.
    """
    sides = [(record[side]["revision"], f"{side}_key") for side in ("old", "new")]
    new = record["new"]["revision"]
    sentences = []
    for role, scores in record["scored"].items():
        who = f"{other}：" if role == "other" else ""
        figures = []
        for name, key in sides:
            low, high = map(small, scores[key]["interval_95"])
            figures.append(
                f"照 {name} 的答案 {small(scores[key]['accuracy'])}"
                f"（答對 {counted(scores[key]['right'])} 題，95 % 區間 {low} 到 {high}）"
            )
        sentences.append(f"{who}評測兩個版本都有的 {scores['n']:,} 題，題目與選項相同：{'，'.join(figures)}")
        gap, low, high = map(points, (scores["difference"], *scores["difference_interval_95"]))
        p = f"p = {p:.2g}" if (p := scores["p_value"]) >= CERTAIN else f"p < {CERTAIN:.4f}"
        sentences.append(
            f"{who}換成 {new} 的答案，正確率差 {gap} 個百分點（95 % 區間 {low} 到 {high}，{p}）："
            f"{scores['only_new_right']} 題變對、{scores['only_old_right']} 題變錯"
        )
        if scores["new_key_macro_4"]:
            means = [f"照 {name} 的答案 {small(scores[f'{key}_macro_4']['macro_4'])}" for name, key in sides]
            sentences.append(f"{who}四大類平均（macro-4）：{'，'.join(means)}")
    return sentences


def lines(record: dict[str, Any], other: str) -> list[str]:
    """Return all sentences, for a report or the screen."""
    changes = change_sentence(record)
    return [count_sentence(record), *([changes] if changes else []), *score_sentences(record, other)]


def columns(record: dict[str, Any]) -> list[str]:
    """Return the heads of the table by subject."""
    return ["科目", *(record[side]["revision"] for side in ("old", "new")), *TITLES.values()]


def rows(record: dict[str, Any]) -> list[list[str]]:
    """Return the table by subject: those in which anything changed, most changes first."""
    changes = [kind for kind in KINDS if kind != UNCHANGED]
    changed = {
        subject: counts for subject, counts in record["subjects"].items() if any(map(counts.get, changes))
    }
    ranked = sorted(changed.items(), key=lambda item: -sum(item[1][kind] for kind in changes))
    names = ("old_rows", "new_rows", *TITLES)
    return [[subject_title(subject), *(f"{counts[name]:,}" for name in names)] for subject, counts in ranked]
