"""Report of extractive question answering, see reports/row_report.py."""

from __future__ import annotations

from typing import Any

from finetune.evaluation.span_metrics import summary_metrics
from finetune.reports.row_report import Bar, Figure, Metrics, Table

FEW = 10  # articles: of fewer no interval can be trusted
BASELINES = {  # names in the metrics -> titles
    "most_shared_sentence": "與問題共用最多字的一句", "random_sentence": "隨便一句",
}  # fmt: skip


def headline(metrics: Metrics) -> float:
    """Return F1."""
    return metrics["f1"]


def sentence(metrics: Metrics, figure: Figure) -> str:
    """Return the outcome in words, against the baselines, with a full stop."""
    low, high = map(figure, metrics["f1_interval_95"])
    text = f"F1 {figure(metrics['f1'])}（95 % 區間 {low}–{high}），完全相同 {figure(metrics['exact_match'])}"
    name, best = _best_baseline(metrics)
    if not best:
        return text + "。"
    return f"{text}；{BASELINES[name]}的 F1 是 {figure(best['f1'])}，{_verdict(best, metrics['articles'])}。"


def _verdict(baseline: dict[str, Any], articles: int) -> str:
    """Return whether the model is ahead of a baseline, by the interval of the difference in F1."""
    if articles < FEW:
        return "文章太少，看不出差別"
    low, high = baseline["f1_difference_interval_95"]
    if low > 0:
        return "模型明顯較好"
    if high < 0:
        return "模型反而明顯較差"
    return "兩者的差在誤差之內"


def _best_baseline(metrics: Metrics) -> tuple[str, dict[str, Any]]:
    """Return name and metrics of the baseline of the highest F1; {} without any."""
    baselines = metrics.get("baselines", {})
    return max(baselines.items(), key=lambda pair: pair[1]["f1"], default=("", {}))


def screen_line(metrics: Metrics) -> str:
    """Return the figures that the sentence rests on, for the screen."""
    em = "–".join(f"{end:.3f}" for end in metrics["exact_match_interval_95"])
    others = "、".join(
        f"{BASELINES[name]} {row['f1']:.3f}" for name, row in metrics.get("baselines", {}).items()
    )
    against = f"；F1 的基準：{others}" if others else ""
    counts = f"{metrics['n']} 題（{metrics['articles']} 篇）"
    return (
        f"{counts}，完全相同 {metrics['right']} 題（95 % 區間 {em}）{against}；規則：{metrics['rule_title']}"
    )


def notes(metrics: Metrics) -> list[str]:
    """Return what must stand beside the figures."""
    lines = []
    for name, baseline in metrics.get("baselines", {}).items():
        if metrics["f1"] <= baseline["f1"]:
            lines.append(
                f"⚠️ F1 {metrics['f1']:.3f} 不高於簡單的基準 {baseline['f1']:.3f}（{BASELINES[name]}）："
                "在這份資料上它還不值得用"
            )
    if "no_answer" in metrics and not metrics["may_be_none"]:
        lines.append(
            f"有 {metrics['no_answer']['n']} 題文章裡沒有答案，但這個模型沒有學過「沒有答案」，一定會答一段"
        )
    if metrics.get("left_out"):
        lines.append(f"另有 {metrics['left_out']} 題問題太長，放不下文章，沒有列入（可加長 --max_length）")
    if metrics["articles"] < FEW:
        lines.append(f"這些題目只來自 {metrics['articles']} 篇文章：區間靠不住")
    return lines


def bars(metrics: Metrics) -> list[Bar]:
    """Return F1 of the model and the baselines, the simplest one last."""
    chart = [Bar("model", "模型（F1）", metrics["f1"], *metrics["f1_interval_95"])]
    looks = {"most_shared_sentence": "other", "random_sentence": "trivial"}
    for name, title in BASELINES.items():
        if baseline := metrics.get("baselines", {}).get(name):
            chart.append(Bar(looks[name], title, baseline["f1"], *baseline["f1_interval_95"]))
    return chart


def overview(metrics: Metrics, figure: Figure) -> list[tuple[str, str]]:
    """Return (label, value) of every figure of the whole set."""
    rows = [
        ("計分規則", metrics["rule_title"]),
        ("題數", f"{metrics['n']} 題，{metrics['articles']} 篇文章"),
        ("F1", _with_interval(metrics, "f1", figure)),
        ("完全相同（EM）", _with_interval(metrics, "exact_match", figure)),
    ]
    for part, title in (("has_answer", "有答案的題"), ("no_answer", "沒有答案的題")):
        if found := metrics.get(part):
            value = f"F1 {figure(found['f1'])}，EM {figure(found['exact_match'])}（{found['n']} 題）"
            rows.append((title, value))
    if "no_answer" in metrics:
        rows.append(("答「沒有答案」", f"{metrics['unanswered']} 題"))
    if "loss" in metrics:
        rows.append(("損失（nat）", f"{metrics['loss']:.3f}"))
    if "windows" in metrics:
        rows.append(
            ("分成幾段來讀", f"{metrics['windows']} 段（一題 {metrics['windows'] / metrics['n']:.1f} 段）")
        )
    if "max_answer_length" in metrics:
        rows.append(("答案最長", f"{metrics['max_answer_length']} 個 token"))
    return rows


def tables(metrics: Metrics, figure: Figure) -> list[Table]:
    """Return the table of the baselines."""
    rows = [
        ["模型", _with_interval(metrics, "f1", figure), _with_interval(metrics, "exact_match", figure), ""]
    ]
    for name, baseline in metrics.get("baselines", {}).items():
        gap = baseline["f1_difference"]
        low, high = (f"{100 * end:+.1f}" for end in baseline["f1_difference_interval_95"])
        rows.append(
            [
                BASELINES[name],
                _with_interval(baseline, "f1", figure),
                _with_interval(baseline, "exact_match", figure),
                f"{100 * gap:+.1f} 個百分點（{low} 到 {high}）",
            ]  # fmt: skip
        )
    if len(rows) < 2:
        return []
    return [
        Table("模型與基準（同樣的題目）", ("", "F1（95 % 區間）", "完全相同（EM）", "模型高出的 F1"), rows)
    ]


def _with_interval(metrics: Metrics, key: str, figure: Figure) -> str:
    """Return a share with its 95 % interval."""
    low, high = map(figure, metrics[f"{key}_interval_95"])
    return f"{figure(metrics[key])}（{low}–{high}）"


def summary(metrics: Metrics) -> dict[str, float]:
    """Return the metrics that are one number for the whole set, for trackers and all_results.json."""
    return summary_metrics(metrics)
