"""Sections of an exam report, one for each set of questions: metrics in words and in tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from finetune.data.subjects import CATEGORIES, subject_title
from finetune.evaluation.evaluator import ExamResult
from finetune.evaluation.metrics import CERTAIN, SIGNIFICANT, wilson
from finetune.prompts.protocol import CUT_LEFT
from finetune.prompts.scoring_methods import GENERATE, parse
from finetune.reports import repeats
from finetune.reports.evidence import protocol_lines
from finetune.reports.number_format import counted, percent, points, small

TITLES = {
    "test": "正式測驗", "held_back": "保留題", "validation": "驗證題", "train": "訓練題", "all": "全部題目",
}  # fmt: skip
NOT_COMPARABLE = "不可與公布的 TMMLU+ 成績比較（--pool all：訓練用到了正式測驗題）"
BASE_MODEL_TITLE = "微調前"  # the other model, when it is the one that training began from
NO_ANSWER_TITLES = {"unreadable": "看不出", "truncated": "寫到上限被截斷", "refused": "拒答"}
FAR = 0.25  # from here on an interval above chance is 遠高於 it


class Context(Protocol):
    """Inputs of the sentences beside the metrics; report.Report has them.

    Attributes:
        other: what the other model is called: 微調前, or a path.
        notes: sentences that must stand beside every figure.
        evidence: what the scores rest on, see reports/evidence.py.
    """

    other: str
    notes: list[str]
    evidence: dict[str, Any]


@dataclass(frozen=True)
class ScoreRow:
    """An accuracy in a chart or table.

    Args:
        label: in Chinese.
        accuracy: 0 to 1.
        role: whose it is: model, other (model), trivial (a rule that reads no question), chance or part (of
            the questions, by this model).
        interval: 95 %, (low, high); empty where there is none.
        n: how many questions; 0 where it is that of the whole set.
    """

    role: str
    label: str
    accuracy: float
    interval: Sequence[float] = ()
    n: int = 0


@dataclass(frozen=True)
class Section:
    """One set of questions in words and figures; the sentences are those of the functions below."""

    name: str
    title: str
    metrics: dict[str, Any]
    result: ExamResult
    verdict: str
    notes: list[str]
    score_rows: list[ScoreRow]
    comparison: list[tuple[str, str]]
    categories: list[ScoreRow]
    subjects: list[ScoreRow]
    order_bias: str
    calibration: str


def title_of(name: str) -> str:
    """Return the Chinese title of a set of questions."""
    return TITLES.get(name, name)


def caveats(metrics: dict[str, Any], figure: Callable[[float], str] = "{:.3f}".format) -> list[str]:
    """Return what limits the metrics of a set, a sentence each.

    How many questions were trained on as well, and the score without them, written by `figure`; how many
    could not be scored, had no readable reply, were tied or were shortened.
    """
    lines, overlap = [], metrics["contamination"]
    if overlap and overlap["rows"]:
        parts = [f"{overlap['same']} 題是模型訓練過的"] if overlap["same"] else []
        parts += [f"{overlap['near']} 題與訓練過的幾乎相同"] if overlap["near"] else []
        rest = overlap["without"]
        without = f"去掉後 {figure(rest['accuracy'])}（{rest['n']} 題）" if rest else "全部都是"
        lines.append(f"其中 {'、'.join(parts)}，{without}")
    first = "第 1 次有 " if "repeats" in metrics else ""
    if metrics["skipped"]:
        lines.append(f"{first}{metrics['skipped']} 題無法作答（太長，或選項太多），算答錯")
    lines += [f"{'第 1 次：' if first else ''}{line}" for line in _outcomes(metrics["outcomes"])]
    if ties := round(metrics["ties"] * metrics["model"]["n"]):
        average = "平均每次有 " if first else ""
        lines.append(f"{average}{ties} 題有並列最高分的選項，k 個並列、正解在其中就算 1/k 題")
    if metrics["shortened"]:
        how = "切掉了提示的開頭" if metrics.get("too_long") == CUT_LEFT else "縮短了題幹的中段"
        lines.append(f"{first}{metrics['shortened']} 題太長，{how}")
    return lines


def _outcomes(counts: dict[str, Any]) -> list[str]:
    """Return how many replies give no answer, and what that leaves open; nothing where all were read."""
    without = {title: count for key, title in NO_ANSWER_TITLES.items() if (count := counts.get(key))}
    if not without:
        return []
    kinds = "、".join(f"{title} {count}" for title, count in without.items())
    skipped = f"、無法作答 {counts['skipped']}" if counts["skipped"] else ""
    low, high = map(percent, counts["bounds"])
    readable = f"，只看讀得出的 {percent(counts['readable']['accuracy'])}" if counts["readable"] else ""
    lines = [
        f"{counts['n']} 題中答對 {counts['right']}、答錯 {counts['wrong']}{skipped}，"
        f"另有 {sum(without.values())} 題讀不出答案（{kinds}）："
        f"全部算錯是 {low}{readable}，實際在 {low}–{high} 之間（原文在 predictions.jsonl）"
    ]
    if counts["truncated"]:
        lines.append(f"{counts['truncated']} 題寫到長度上限還沒有說出答案：把 --max_new_tokens 調大再評測")
    return lines


# ---- in words ----------------------------------------------------------------------------------------------


def verdict_sentence(report: Context, metrics: dict[str, Any]) -> str:
    """Return the verdict on one set of questions in plain words.

    The accuracy against chance, then against rules that read no question, then against the other model.
    """
    model = metrics["model"]
    (low, high), chance = model["interval_95"], model["chance"]
    skipped = f"；{metrics['skipped']} 題無法作答，算答錯" if metrics["skipped"] else ""
    if unread := sum(metrics["outcomes"].get(key, 0) for key in NO_ANSWER_TITLES):
        skipped += f"；{unread} 題讀不出答案，算答錯"
    mean = "平均" * ("repeats" in metrics)
    text = f"{model['n']} 題{mean}答對 {counted(model['right'])} 題（{small(model['accuracy'])}{skipped}），"
    good = low > chance
    if good:
        text += f"{'遠' if low - chance > FAR else ''}高於亂猜的 {small(chance)}"
        rules = (row for row in score_rows(report, metrics) if row.role == "trivial")
        best_rule = max(rules, key=lambda row: row.accuracy)
        if low <= best_rule.accuracy:
            good = False
            verb = "不如" if high < best_rule.accuracy else "看不出勝過"
            text += f"，但{verb}不必懂題目的「{best_rule.label}」（{small(best_rule.accuracy)}）"
    elif high < chance and unread and metrics["outcomes"]["bounds"][1] >= chance:
        text += f"低於亂猜的 {small(chance)}，但讀不出的太多，不能說模型比亂猜還差"
    elif high < chance:
        text += f"比亂猜的 {small(chance)} 還差"
    else:
        text += f"看不出比亂猜的 {small(chance)} 好"
    return text + _against_other(report, metrics, good) + "。"


def _against_other(report: Context, metrics: dict[str, Any], good: bool) -> str:
    """Return the clause on the other model; `good`: the clause before it was favourable."""
    if not metrics["other"]:
        return ""
    name = f"{report.other}的" if report.other.startswith(BASE_MODEL_TITLE) else f" {other_name(report)} 的"
    other = f"{name} {small(metrics['other']['accuracy'])}"
    p, gap = metrics["paired"]["p_value"], metrics["paired"]["difference"]
    if p >= SIGNIFICANT:
        return f"，與{other} 分不出高下"
    link = "也" if (gap > 0) == good else "不過"
    sure = "極不可能只是運氣" if p < CERTAIN else f"不像是運氣（p = {p:.2g}）"
    return f"，{link}{'高' if gap > 0 else '低'}於{other}；差異{sure}"


def our_name(report: Context, metrics: dict[str, Any]) -> str:
    """Return the name of the evaluated model beside the other."""
    return "微調後" if report.other.startswith(BASE_MODEL_TITLE) and metrics["other"] else "這個模型"


def other_name(report: Context) -> str:
    """Return the short name of the other model: of a path the last two parts."""
    return "/".join(Path(report.other).as_posix().strip("/").split("/")[-2:])


def section_notes(report: Context, metrics: dict[str, Any]) -> list[str]:
    """Return the notes that must stand beside the metrics of a set."""
    return [*report.notes, *protocol_lines(report.evidence, metrics), *caveats(metrics, small)]


def order_bias(metrics: dict[str, Any]) -> str:
    """Return how the order of the options changed the answers, or why that is not known."""
    if "repeats" in metrics:
        return repeats.order_sentence(metrics)
    if bias := metrics["order_bias"]:
        return (
            f"每題以 {bias['orders']:.3g} 種選項順序評測，{small(bias['flips'])} 的題目答案會跟著變；"
            f"照原順序答對 {small(bias['accuracy_as_written'])}，"
            f"任一種順序平均答對 {small(bias['accuracy_of_one_order'])}。"
        )
    if metrics["method"] == GENERATE:
        return "每題只照原來的選項順序評測一次，由模型寫出答案。"
    if parse(metrics["method"]).by_letter:
        return "每題只照原來的選項順序評測一次（--orders 1），所以不知道換順序時答案會不會變。"
    return (
        f"這次的作答方式（{metrics['method']}）逐一替每個選項的文字打分數，題目裡不列出選項，"
        "換順序不影響答案，所以沒有順序偏誤可量。"
    )


def calibration(metrics: dict[str, Any]) -> str:
    """Return how far the model's confidence is to be believed."""
    stated = metrics["calibration"]["as_scored"]
    if metrics["method"] == GENERATE:
        return "答案是寫出來的文字，模型沒有說自己多有把握，無從校準。"
    if not stated:
        return "沒有一題能作答，無從得知。"
    count = sum(b["n"] for b in stated["bins"])
    right = min(count, sum(b["n"] * b["accuracy"] for b in stated["bins"]))
    low, high = wilson(right, count)
    judgement = "這樣的差距可能只是抽樣的起伏"
    if not low <= stated["confidence"] <= high:
        judgement = "過度自信" if stated["confidence"] > high else "信心不足"
    text = f"平均信心 {small(stated['confidence'])}，實際答對 {small(right / count)}：{judgement}。"
    if fitted := metrics["calibration"]["fitted"]:
        return text + (
            f"以 {metrics['calibration']['fitted_on']} 題未用於訓練與評測的題目調整溫度"
            f"（T = {fitted['temperature']:.2f}）後，"
            f"信心與實際平均相差由 {small(stated['ece'])} 變為 {small(fitted['ece'])}。"
        )
    return text + (metrics["calibration"].get("not_fitted") or "沒有題目可用來調整溫度") + "。"


# ---- in figures --------------------------------------------------------------------------------------------


def score_rows(report: Context, metrics: dict[str, Any]) -> list[ScoreRow]:
    """Return every accuracy of a set: of the model, the other model, rules that read no question, chance."""
    rows = []
    for role, name, scores, macro in (
        ("model", our_name(report, metrics), metrics["model"], metrics["macro_4"]),
        ("other", other_name(report), metrics["other"], metrics.get("other_macro_4")),
    ):
        if scores:
            rows.append(ScoreRow(role, name, scores["accuracy"], scores["interval_95"], scores["n"]))
        if role == "model" and metrics["contamination"] and (rest := metrics["contamination"]["without"]):
            label = f"{name}，不計訓練過的題目"
            rows.append(ScoreRow(role, label, rest["accuracy"], rest["interval_95"], rest["n"]))
        if macro:
            rows.append(ScoreRow(role, f"{name}，四大類平均", macro["macro_4"], macro["interval_95"]))
    if only := metrics["option_only"]:
        label = "只看選項、不看題目"
        rows.append(ScoreRow("trivial", label, only["accuracy"], only["interval_95"], only["n"]))
    model = metrics["model"]
    rules = {
        f"全答 {model['majority_letter_is']}": "majority_letter", "全選最長的選項": "longest_option",
        "全選最短的選項": "shortest_option", "全選與題目最像的選項": "overlap",
    }  # fmt: skip
    rows += [ScoreRow("trivial", label, model[key]) for label, key in rules.items()]
    return [*rows, ScoreRow("chance", "亂猜", model["chance"])]


def ranked(parts: dict[str, dict]) -> list[ScoreRow]:
    """Return subjects or categories by their Chinese names, the best first."""
    rows = [
        ScoreRow(
            "part", CATEGORIES.get(key) or subject_title(key), row["accuracy"],
            row["interval_95"], row["n"],
        )
        for key, row in parts.items()
    ]  # fmt: skip
    return sorted(rows, key=lambda row: -row.accuracy)


def comparison(report: Context, metrics: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (label, value) of the paired test of two models; empty without another model."""
    if not (pair := metrics["paired"]):
        return []
    rows = []
    for key, title in (("difference", "每題平均"), ("macro_4_difference", "四大類平均")):
        if key in pair:
            gap, low, high = map(points, (pair[key], *pair[f"{key}_interval_95"]))
            rows.append((f"{title}的差異", f"{gap} 個百分點（95 % 區間 {low} 到 {high}）"))
    return [
        *rows,
        (f"只有{our_name(report, metrics)}答對", f"{pair['only_first_right']} 題"),
        (f"只有{other_name(report)}答對", f"{pair['only_second_right']} 題"),
        ("McNemar 檢定", f"p = {p:.2g}" if (p := pair["p_value"]) >= CERTAIN else f"p < {CERTAIN:.4f}"),
    ]
