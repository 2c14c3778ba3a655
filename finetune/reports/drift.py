"""Report of drift (--drift): in words, in tables, and as files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy

from finetune.evaluation.drift import CHANGED, FEW, FEWEST, STEADY, UNCLEAR
from finetune.evaluation.metrics import CERTAIN
from finetune.evaluation.request_features import ANSWER, FOUND, NONE, FeatureSample
from finetune.reports import report_folder
from finetune.reports.html import Axes, Curve
from finetune.reports.number_format import percent, points, small
from finetune.reports.report_folder import ReportFiles
from finetune.runtime.console import plain
from finetune.runtime.files import atomic_write
from finetune.runtime.strict_json import dumps

OF_DRIFT = ReportFiles(
    ("drift.json", "index.html"), re.compile(r"drift\.json|index\.html|\.lock|\..*\.half"), "drift.json",
    "這支程式寫的漂移報告",
)  # fmt: skip
TITLES = {
    "characters": "長度（字）", "tokens": "長度（token）", "unknown": "不認得的字（[UNK] 的比例）",
    "han": "漢字的比例", "confidence": "信心", "found": "找到幾個", "reply": "回覆的長度（字）",
    ANSWER: "答案",
}  # fmt: skip
STATES = {CHANGED: "變了", STEADY: "沒變", UNCLEAR: "說不準", FEW: "太少"}
LOOKS = {CHANGED: "under", STEADY: "model"}  # of a row of the chart; the others are "unsure"
DIRECTIONS = {  # feature -> what it is when the mean has fallen, and when it has risen
    "characters": ("文字變短", "文字變長"), "tokens": ("token 變少", "token 變多"),
    "unknown": ("不認得的字變少", "不認得的字變多"), "han": ("漢字變少", "漢字變多"),
    "confidence": ("信心變低", "信心變高"), "found": ("找到的變少", "找到的變多"),
    "reply": ("回覆變短", "回覆變長"),
}  # fmt: skip
WHOLE = {"characters", "tokens", "reply"}  # means that are shown with one decimal
SHARES = {"unknown", "han"}  # those shown as percentages
ANSWERS = {FOUND: "有答案", NONE: "沒有答案"}  # of an extractor
MOST_ANSWERS = 20  # in the table
POINTS = 61  # of a curve
ADVICE = {
    "characters": "長度：看看是不是來了別種文件。超過模型一次能讀的部分讀不到（標註、文章問答則分段讀）。",
    "unknown": "不認得的字：模型把它們都讀成 [UNK]。看看是不是換了來源（簡體、外文、表情符號、亂碼），"
               "必要時換詞彙較大的底模重新訓練。",
    "han": "漢字：看看是不是來了外文、網址、程式碼或表情符號。",
    "confidence": "信心：變低時，先把信心最低的請求交給人看；變高也不代表變準，同樣要抽樣量一次。",
    ANSWER: "答案的比例：可能是世界真的變了，也可能是模型偏了，從這裡看不出是哪一種；抽樣標上正解才知道。",
}  # fmt: skip
MEASURE = (
    "分布變了不等於答錯。向送出請求的那一邊要一百筆左右，標上正解，以 --exam 量一次成績；"
    "成績掉了，就把它們加進訓練資料再訓練一次（文字不在 --watch 的檔案裡，只有特徵）。"
)


@dataclass
class DriftReport:
    """A comparison of requests with a reference, as the page and the screen show it.

    Args:
        facts: what was compared, in words.
        reference: its sample; `reference_name` is what it is called.
        now: the sample of the requests.
        figures: of `evaluation.drift.compare`.
        usage: of the file: rows, statuses, seconds, days; see `predict/drift_command.py`.
        notes: what must stand beside the figures.
    """

    facts: dict[str, str]
    reference: FeatureSample
    reference_name: str
    now: FeatureSample
    figures: dict[str, Any]
    usage: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    heading: str = "漂移報告"

    @property
    def summary(self) -> dict[str, Any]:
        """The object of drift.json and of --json."""
        return {"facts": self.facts, **self.figures, **self.usage, "notes": self.notes}


# ---- in words ----------------------------------------------------------------------------------------------


def verdict(report: DriftReport) -> str:
    """Return the outcome in words: what changed, by how much, and how sure that is."""
    figures, name, bound = report.figures, report.reference_name, small(report.figures["bound"])
    features, n = figures["features"], report.now.rows
    if figures["state"] == CHANGED:
        changes = "；".join(change(key, features[key]) for key in figures["changed"])
        sure = all(features[key]["p_holm"] < CERTAIN for key in figures["changed"])
        luck = "極不可能只是運氣" if sure else "不像是運氣"
        return (
            f"{n} 個請求與{name}不同：{changes}。{luck}：差距的 95 % 區間整個超過界限 {bound}，"
            f"一次比較 {len(features)} 項也計入了。"
        )
    if not features:
        return f"{n} 個請求與{name}沒有共同的特徵可比。"
    if figures["state"] == FEW:
        side = name if report.reference.rows < FEWEST else "請求"
        count = min(n, report.reference.rows)
        return f"{side}只有 {count} 筆，少於 {FEWEST} 筆說不準，不判斷有沒有變。"
    if figures["state"] == STEADY:
        return f"{n} 個請求與{name}沒有變：每一項的差距都在 {bound} 以內（95 % 區間）。"
    unclear = [key for key, one in features.items() if one["state"] == UNCLEAR]
    titles = "、".join(TITLES[key] for key in unclear)
    return f"{n} 個請求與{name}看不出超過 {bound} 的變化，但{titles}還說不準。{_more(report, unclear)}"


def _more(report: DriftReport, unclear: Sequence[str]) -> str:
    """Return how many requests would tell; why none would."""
    needed = [report.figures["features"][key]["needed"] for key in unclear]
    if not report.figures["bound"]:
        return "界限是 0，再多的請求也不能證明完全相同。"
    if None in needed:
        return f"{report.reference_name}只有 {report.reference.rows} 筆，請求再多也說不準；可把界限放寬。"
    most = max(count for count in needed if count is not None)
    if most > report.now.rows:
        return f"約要 {most} 個請求，誤差才小於界限。"
    return "差距就在界限上下；再收一陣子看看。"


def change(name: str, figures: dict[str, Any]) -> str:
    """Return what changed in a feature, in words and numbers."""
    if name == ANSWER:
        label, one = max(figures["answers"].items(), key=lambda item: abs(item[1]["difference"]))
        return (
            f"答案的比例變了，最多的是「{answer_title(label)}」"
            f"{percent(one['reference'])} → {percent(one['now'])}（{points(one['difference'])} 個百分點）"
        )
    low, high = figures["difference_interval_95"] or (0, 0)
    before, after = (value(name, figures[side]["mean"]) for side in ("reference", "now"))
    if low <= 0 <= high:
        return f"{TITLES[name]}的分布變了（平均 {before} → {after}）"
    return f"{DIRECTIONS[name][low > 0]}（平均 {before} → {after}）"


def answer_title(answer: str) -> str:
    """Return what an answer is called: a label of a model may hold anything."""
    return plain(ANSWERS.get(answer, answer), lines=False)


def value(name: str, number: float, sign: bool = False) -> str:
    """Write a value of a feature, or with `sign` a difference of two."""
    plus, number = "+" if sign else "", round(number, 3) + 0.0  # no −0
    if name in SHARES:
        return f"{points(number)} 點" if sign else percent(number)
    return f"{number:{plus}.1f}" if name in WHOLE else f"{number:{plus}.3f}"


def advice(report: DriftReport) -> list[str]:
    """Return what a person can do now."""
    state = report.figures["state"]
    if state == CHANGED:
        changed = report.figures["changed"]
        return [MEASURE, *(line for name, line in ADVICE.items() if name in changed)]
    if state == STEADY:
        return ["不必做什麼；隔一陣子再看一次。"]
    return ["讓伺服器再收一陣子請求，再比一次。"]


def screen_lines(report: DriftReport) -> list[str]:
    """Return the comparison for the screen: the verdict, the figures that it rests on, notes, what to do."""
    lines = [verdict(report), *(f"  {name}：{fact}" for name, fact in report.facts.items())]
    for name, one in report.figures["features"].items():
        low, high = one["distance_interval_95"]
        sure = f"95 % 區間 {low:.3f}–{high:.3f}，p {p_value(one['p_holm'])}"
        figure = f"差距 {one['distance']:.3f}（{sure}）"
        lines.append(f"  {TITLES[name]}：{STATES[one['state']]}；{figure}{_means(name, one)}")
    lines += [f"  {note}" for note in report.notes]
    return [*lines, *(f"  → {line}" for line in advice(report))]


def _means(name: str, figures: dict[str, Any]) -> str:
    if name == ANSWER:
        return ""
    return f"，平均 {value(name, figures['reference']['mean'])} → {value(name, figures['now']['mean'])}"


def p_value(p: float) -> str:
    """Write a p-value with two digits."""
    return f"< {CERTAIN:.4f}" if p < CERTAIN else f"= {p:.2g}"


# ---- in tables and charts ----------------------------------------------------------------------------------


def feature_rows(report: DriftReport) -> list[list[str]]:
    """Return the rows of the table of numbers; its head is FEATURE_COLUMNS."""
    rows = []
    for name, one in report.figures["features"].items():
        if name != ANSWER:
            ends = one["difference_interval_95"]
            rows.append([
                TITLES[name], str(one["n_reference"]), str(one["n"]),
                *(value(name, one[side]["mean"]) for side in ("reference", "now")),
                value(name, one["difference"], sign=True),
                " 到 ".join(value(name, end, sign=True) for end in ends) if ends else "",
                *(value(name, one[side]["median"]) for side in ("reference", "now")),
                p_value(one["p_holm"]), STATES[one["state"]],
            ])  # fmt: skip
    return rows


FEATURE_COLUMNS = (
    "", "對照筆數", "請求數", "對照平均", "現在平均", "差", "95 % 區間", "對照中位數", "現在中位數",
    "p（Holm）", "結論",
)  # fmt: skip
ANSWER_COLUMNS = ("答案", "對照", "現在", "差（百分點）", "95 % 區間")


def answer_rows(report: DriftReport) -> list[list[str]]:
    """Return the rows of the table of answers."""
    return [
        [
            answer_title(label), percent(one["reference"]), percent(one["now"]),
            points(one["difference"]), " 到 ".join(map(points, one["difference_interval_95"])),
        ]
        for label, one in answers_of(report).items()
    ]  # fmt: skip


def answers_of(report: DriftReport) -> dict[str, Any]:
    """Return the figures of the commonest answers; {} where there are none."""
    figures = report.figures["features"].get(ANSWER, {"answers": {}})
    return dict(list(figures["answers"].items())[:MOST_ANSWERS])


def day_columns(report: DriftReport) -> list[str]:
    """Return the head of the table of days."""
    names = [name for name in report.figures["features"] if name != ANSWER]
    return ["日期（UTC）", "請求", "沒有答成", *(TITLES[name] for name in names)]


def day_rows(report: DriftReport) -> list[list[str]]:
    """Return the rows of that table, with the means of each feature; none for a single day."""
    names = [name for name in report.figures["features"] if name != ANSWER]
    days = report.usage["days"]
    return [
        [
            one["day"], str(one["requests"]), str(one["errors"]),
            *(value(name, one["means"][name]) if name in one["means"] else "" for name in names),
        ]
        for one in days if len(days) > 1
    ]  # fmt: skip


def charts(report: DriftReport) -> list[tuple[str, Axes, list[Curve]]]:
    """Return (title, axes, curves) of each number: the share of requests up to a value, before and now."""
    from matplotlib.ticker import MaxNLocator

    drawn = []
    shares = (0, 0.25, 0.5, 0.75, 1)
    for name in (name for name in report.figures["features"] if name != ANSWER):
        before, after = report.reference.numbers[name], report.now.numbers[name]
        low, high = numpy.quantile([*before, *after], [0, 0.995]).tolist()
        ticks = [float(tick) for tick in MaxNLocator(4).tick_values(low, max(high, low + 1e-6))]
        axes = Axes(ticks, shares)
        curves = [
            Curve(title, look, _steps(values, ticks))
            for title, look, values in (("對照", "other", before), ("現在", "model", after))
        ]
        drawn.append((TITLES[name], axes, curves))
    return drawn


def _steps(values: Sequence[float], ticks: Sequence[float]) -> list[tuple[float, float]]:
    """Return the cumulative share of values as a line, from the left edge of a chart to its right edge."""
    places = numpy.unique(numpy.quantile(values, numpy.linspace(0, 1, POINTS), method="inverted_cdf"))
    line, share = [(ticks[0], 0.0)], 0.0
    for place in places[places <= ticks[-1]].tolist():
        line.append((place, share))
        share = float(numpy.searchsorted(values, place, side="right")) / len(values)
        line.append((place, share))
    return [*line, (ticks[-1], share)]


# ---- as files ----------------------------------------------------------------------------------------------


def write(folder: Path, report: DriftReport) -> None:
    """Write drift.json and index.html into a folder.

    Raises:
        RunError: they cannot be written.
    """
    report_folder.write(
        folder, OF_DRIFT, lambda staging: _write(staging, report), "請清出空間，或換一個資料夾"
    )


def _write(folder: Path, report: DriftReport) -> None:
    from finetune.reports.html import embedded
    from finetune.reports.templates import template

    atomic_write(folder / "drift.json", dumps(report.summary, indent=1) + "\n")
    variables = {
        "report": report, "figures": report.figures, "verdict": verdict(report), "advice": advice(report),
        "state": STATES[report.figures["state"]], "titles": TITLES, "looks": LOOKS, "states": STATES,
        "features": (FEATURE_COLUMNS, feature_rows(report)), "answers": answers_of(report),
        "answer_title": answer_title, "answer_table": (ANSWER_COLUMNS, answer_rows(report)),
        "days": (day_columns(report), day_rows(report)), "charts": charts(report), "usage": report.usage,
    }  # fmt: skip
    page = template("drift.html.j2")
    atomic_write(
        folder / "index.html", page.render(variables, font=embedded(page.render(variables, font="")))
    )
