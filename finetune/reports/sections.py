"""An exam told set by set: what the figures say in words, and what they must be held against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.data.subjects import CATEGORIES, subject_title
from finetune.evaluation import metrics
from finetune.evaluation.evaluator import ExamResult
from finetune.evaluation.metrics import CERTAIN, SIGNIFICANT
from finetune.prompts.scoring_methods import GENERATE, parse
from finetune.reports.html import counted, points, small

TITLES = {
    "test": "正式測驗", "held_back": "保留題", "validation": "驗證題", "train": "訓練題", "all": "全部題目",
}  # fmt: skip
NOT_COMPARABLE = "不可與公布的 TMMLU+ 成績比較（--pool all：訓練用到了正式測驗題）"
BASE_MODEL_TITLE = "微調前"  # the other model, when it is the one that training began from
FAR = 0.25  # the interval lies so far above chance: 遠高於


@dataclass(frozen=True)
class ScoreRow:
    """An accuracy to be held against the others.

    Args:
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
    found: dict
    sitting: ExamResult
    verdict: str
    notes: list[str]
    score_rows: list[ScoreRow]
    comparison: list[tuple[str, str]]
    categories: list[ScoreRow]
    subjects: list[ScoreRow]
    order_bias: str
    calibration: str


def title_of(name: str) -> str:
    return TITLES.get(name, name)


def caveats(found: dict, figure: Callable[[float], str] = "{:.3f}".format) -> list[str]:
    """How many questions were taught as well, and the score without them, written by `figure`; how many could
    not be asked, or only shortened.
    """
    lines, overlap = [], found["contamination"]
    if overlap and overlap["rows"]:
        parts = [f"{overlap['same']} 題是模型訓練過的"] if overlap["same"] else []
        parts += [f"{overlap['near']} 題與訓練過的幾乎相同"] if overlap["near"] else []
        rest = overlap["without"]
        without = f"去掉後 {figure(rest['accuracy'])}（{rest['n']} 題）" if rest else "全部都是"
        lines.append(f"其中 {'、'.join(parts)}，{without}")
    if found["refused"]:
        lines.append(f"{found['refused']} 題問不了（太長，或選項太多），算答錯")
    if found["unreadable"]:
        lines.append(f"{found['unreadable']} 題的回答看不出選了哪一個，算答錯（原文在 predictions.jsonl）")
    if ties := round(found["ties"] * found["model"]["n"]):
        lines.append(f"{ties} 題有並列最高分的選項，k 個並列、正解在其中就算 1/k 題")
    if found["shortened"]:
        lines.append(f"{found['shortened']} 題太長，縮短了題幹的中段來問")
    return lines


# ---- in words ----------------------------------------------------------------------------------------------


def verdict_sentence(report, found: dict) -> str:
    """The verdict on one set of questions, as one says it to a teacher: against chance, then against what
    one scores without reading the questions, then against the other model.
    """
    mine = found["model"]
    (low, high), chance = mine["interval_95"], mine["chance"]
    refused = f"；{found['refused']} 題問不了，算答錯" if found["refused"] else ""
    text = f"{mine['n']} 題答對 {counted(mine['right'])} 題（{small(mine['accuracy'])}{refused}），"
    good = low > chance
    if good:
        text += f"{'遠' if low - chance > FAR else ''}高於亂猜的 {small(chance)}"
        trick = max((s for s in score_rows(report, found) if s.role == "trivial"), key=lambda s: s.accuracy)
        if low <= trick.accuracy:
            good = False
            verb = "不如" if high < trick.accuracy else "看不出勝過"
            text += f"，但{verb}不必懂題目的「{trick.label}」（{small(trick.accuracy)}）"
    elif high < chance:
        text += f"比亂猜的 {small(chance)} 還差"
    else:
        text += f"看不出比亂猜的 {small(chance)} 好"
    return text + _against_the_other(report, found, good) + "。"


def _against_the_other(report, found: dict, good: bool) -> str:
    """The clause on the other model; `good` is what was said before it."""
    if not found["other"]:
        return ""
    name = f"{report.other}的" if report.other.startswith(BASE_MODEL_TITLE) else f" {other_name(report)} 的"
    them = f"{name} {small(found['other']['accuracy'])}"
    p, gap = found["paired"]["p_value"], found["paired"]["difference"]
    if p >= SIGNIFICANT:
        return f"，與{them} 分不出高下"
    link = "也" if (gap > 0) == good else "不過"
    sure = "極不可能只是運氣" if p < CERTAIN else f"不像是運氣（p = {p:.2g}）"
    return f"，{link}{'高' if gap > 0 else '低'}於{them}；差異{sure}"


def our_name(report, found: dict) -> str:
    """What the examined model is called beside the other."""
    return "微調後" if report.other.startswith(BASE_MODEL_TITLE) and found["other"] else "這個模型"


def other_name(report) -> str:
    """What the other model is called, short: of a path the last two parts."""
    return "/".join(Path(report.other).as_posix().strip("/").split("/")[-2:])


def section_notes(report, found: dict) -> list[str]:
    """What must stand beside the figures of a set."""
    return [*report.notes, *caveats(found, small)]


def order_bias(found: dict) -> str:
    """What the order of the options did, or why that is not known."""
    if bias := found["order_bias"]:
        return (
            f"每題換 {bias['orders']:.3g} 種選項順序來問，{small(bias['flips'])} 的題目答案會跟著變；"
            f"照原順序答對 {small(bias['accuracy_as_written'])}，"
            f"任一種順序平均答對 {small(bias['accuracy_of_one_order'])}。"
        )
    if found["method"] == GENERATE:
        return "每題只照原來的選項順序問一次，請模型寫出答案。"
    if parse(found["method"]).by_letter:
        return "每題只照原來的選項順序問一次（--orders 1），所以不知道換順序時答案會不會變。"
    return (
        f"這次的作答方式（{found['method']}）逐一替每個選項的文字打分數，題目裡不列出選項，"
        "換順序不影響答案，所以沒有順序偏誤可量。"
    )


def calibration(found: dict) -> str:
    """Whether the model's confidence is to be believed."""
    stated = found["calibration"]["as_scored"]
    if found["method"] == GENERATE:
        return "答案是寫出來的文字，模型沒有說自己多有把握，無從校準。"
    if not stated:
        return "沒有一題問得了，無從得知。"
    count = sum(b["n"] for b in stated["bins"])
    right = min(count, sum(b["n"] * b["accuracy"] for b in stated["bins"]))
    low, high = metrics.wilson(right, count)
    how = "這樣的差距可能只是抽樣的起伏"
    if not low <= stated["confidence"] <= high:
        how = "過度自信" if stated["confidence"] > high else "信心不足"
    text = f"平均信心 {small(stated['confidence'])}，實際答對 {small(right / count)}：{how}。"
    if fitted := found["calibration"]["fitted"]:
        return text + (
            f"以 {found['calibration']['fitted_on']} 題沒教過也沒考的題目調整溫度"
            f"（T = {fitted['temperature']:.2f}）後，"
            f"信心與實際平均相差由 {small(stated['ece'])} 變為 {small(fitted['ece'])}。"
        )
    return text + (found["calibration"].get("not_fitted") or "沒有題目可用來調整溫度") + "。"


# ---- in figures --------------------------------------------------------------------------------------------


def score_rows(report, found: dict) -> list[ScoreRow]:
    """Every accuracy of a set: the model's, the other model's, of rules that read no question, of chance."""
    rows = []
    for role, who, mine, macro in (
        ("model", our_name(report, found), found["model"], found["macro_4"]),
        ("other", other_name(report), found["other"], found.get("other_macro_4")),
    ):
        if mine:
            rows.append(ScoreRow(role, who, mine["accuracy"], mine["interval_95"], mine["n"]))
        if role == "model" and found["contamination"] and (rest := found["contamination"]["without"]):
            label = f"{who}，不計學過的題目"
            rows.append(ScoreRow(role, label, rest["accuracy"], rest["interval_95"], rest["n"]))
        if macro:
            rows.append(ScoreRow(role, f"{who}，四大類平均", macro["macro_4"], macro["interval_95"]))
    if alone := found["option_only"]:
        label = "只看選項、不看題目"
        rows.append(ScoreRow("trivial", label, alone["accuracy"], alone["interval_95"], alone["n"]))
    mine = found["model"]
    rules = {
        f"全答 {mine['majority_letter_is']}": "majority_letter", "全選最長的選項": "longest_option",
        "全選最短的選項": "shortest_option", "全選與題目最像的選項": "overlap",
    }  # fmt: skip
    rows += [ScoreRow("trivial", label, mine[key]) for label, key in rules.items()]
    return [*rows, ScoreRow("chance", "亂猜", mine["chance"])]


def ranked(parts: dict[str, dict]) -> list[ScoreRow]:
    """Subjects or categories by their Chinese names, the best first."""
    rows = [
        ScoreRow(
            "part", CATEGORIES.get(key) or subject_title(key), row["accuracy"],
            row["interval_95"], row["n"],
        )
        for key, row in parts.items()
    ]  # fmt: skip
    return sorted(rows, key=lambda row: -row.accuracy)


def comparison(report, found: dict) -> list[tuple[str, str]]:
    """(label, value) of the paired test of two models; empty without another model."""
    if not (pair := found["paired"]):
        return []
    rows = []
    for key, what in (("difference", "每題平均"), ("macro_4_difference", "四大類平均")):
        if key in pair:
            gap, low, high = map(points, (pair[key], *pair[f"{key}_interval_95"]))
            rows.append((f"{what}的差異", f"{gap} 個百分點（95 % 區間 {low} 到 {high}）"))
    return [
        *rows,
        (f"只有{our_name(report, found)}答對", f"{pair['only_first_right']} 題"),
        (f"只有{other_name(report)}答對", f"{pair['only_second_right']} 題"),
        ("McNemar 檢定", f"p = {p:.2g}" if (p := pair["p_value"]) >= CERTAIN else f"p < {CERTAIN:.4f}"),
    ]


# ---- report.md ---------------------------------------------------------------------------------------------
