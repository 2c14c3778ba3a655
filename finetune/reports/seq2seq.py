"""Report of an encoder-decoder: the texts it wrote, in words and tables.

Metrics are those of one set, see evaluation.text_overlap.compute_metrics; this is a `row_report.TaskReport`.
"""

from __future__ import annotations

from typing import Any

from finetune.evaluation import text_overlap
from finetune.reports.row_report import Bar, Figure, Metrics, Table

NAMES = {  # figure -> its title
    "rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L", "chrf_rows": "chrF（各列平均）",
    "chrf": "chrF（整份）", "bleu": "BLEU（整份）",
}  # fmt: skip
RULES = {"lead": "只抄開頭的句子", "copy": "照抄輸入"}
MEANING = (
    "ROUGE 是與正解重疊的 F1：中文以字、英文與數字以詞計（ROUGE-1 單個、ROUGE-2 相鄰兩個、ROUGE-L 最長的"
    "共同順序）；chrF 比較幾個字一組的片段。字面相同才算，意思對而寫法不同的不算"
)


def headline(metrics: Metrics) -> float:
    """Return ROUGE-L."""
    return metrics["rougeL"]


def sentence(metrics: Metrics, figure: Figure) -> str:
    """Return ROUGE-L in words, against copying and against the model before training."""
    rule, title = _best_rule(metrics)
    text = f"{metrics['n']} 列的 ROUGE-L 是 {figure(metrics['rougeL'])}"
    text += "，" + _against(rule["difference"]["rougeL"], f"{title}的 {figure(rule['rougeL'])}")
    if untuned := metrics.get("untuned"):
        text += "，" + _against(metrics["difference"]["rougeL"], f"微調前的 {figure(untuned['rougeL'])}")
    return text + "。"


def _best_rule(metrics: Metrics) -> tuple[dict[str, Any], str]:
    """Return the better of the rules that copy, by ROUGE-L, and its title."""
    name = max(metrics["baselines"], key=lambda name: metrics["baselines"][name]["rougeL"])
    return metrics["baselines"][name], RULES[name]


def _against(difference: dict[str, Any], other: str) -> str:
    """Return the clause on another figure, by the interval of the difference."""
    low, high = difference["difference_interval_95"]
    return f"高於{other}" if low > 0 else f"不如{other}" if high < 0 else f"與{other} 分不出高下"


def screen_line(metrics: Metrics) -> str:
    """Return the figures that the sentence rests on, for the screen."""
    low, high = metrics["rougeL_interval_95"]
    line = (
        f"{metrics['n']} 列：ROUGE-1 {metrics['rouge1']:.3f}、ROUGE-2 {metrics['rouge2']:.3f}、"
        f"ROUGE-L {metrics['rougeL']:.3f}（95 % 區間 {low:.3f}–{high:.3f}），"
        f"chrF {metrics['chrf']:.3f}，完全相同 {metrics['exact']['accuracy']:.3f}"
    )
    rules = "；".join(f"{RULES[name]} {rule['rougeL']:.3f}" for name, rule in metrics["baselines"].items())
    line += f"；ROUGE-L 對照：{rules}"
    if untuned := metrics.get("untuned"):
        gap = metrics["difference"]["rougeL"]
        low, high = gap["difference_interval_95"]
        line += f"；微調前 {untuned['rougeL']:.3f}（差 {gap['difference']:+.3f}，{low:+.3f} 到 {high:+.3f}）"
    return line


def notes(metrics: Metrics) -> list[str]:
    """Return what must stand beside the figures."""
    lines = []
    rule, title = _best_rule(metrics)
    if rule["difference"]["rougeL"]["difference"] <= 0:
        lines.append(
            f"⚠️ 模型的 ROUGE-L {metrics['rougeL']:.3f} 不高於{title}的 {rule['rougeL']:.3f}："
            "在這份資料上它還不值得用"
        )
    if (rows := metrics.get("rows", metrics["n"])) > metrics["n"]:
        lines.append(f"共 {rows} 列，固定抽樣 {metrics['n']} 列來寫（--exam_limit）")
    if count := metrics.get("truncated"):
        lines.append(
            f"有 {count} 列到了長度上限還沒寫完（--max_target_length、--max_new_tokens），照寫出的部分計分"
        )
    if count := metrics.get("sources_cut"):
        lines.append(f"有 {count} 列的輸入太長，尾端沒有讀（--max_length）")
    if metrics["empty"]:
        lines.append(f"有 {metrics['empty']} 列什麼也沒寫")
    return lines


def bars(metrics: Metrics) -> list[Bar]:
    """Return ROUGE-L of the model, of the model before, and of the rules."""
    shown = [("model", "這個模型", metrics)]
    if untuned := metrics.get("untuned"):
        shown.append(("other", "微調前", untuned))
    shown += [("trivial", RULES[name], rule) for name, rule in metrics["baselines"].items()]
    return [Bar(look, label, of["rougeL"], *of["rougeL_interval_95"]) for look, label, of in shown]


def overview(metrics: Metrics, figure: Figure) -> list[tuple[str, str]]:
    """Return (label, value) of every figure of the whole set."""
    lines = []
    for name, title in NAMES.items():
        value = figure(metrics[name])
        if interval := metrics.get(f"{name}_interval_95"):
            value += f"（95 % 區間 {figure(interval[0])}–{figure(interval[1])}）"
        lines.append((title, value))
    exact = metrics["exact"]
    lines.append(("與正解完全相同", f"{exact['right']} / {exact['n']} 列（{figure(exact['accuracy'])}）"))
    if difference := metrics.get("difference"):
        for name in text_overlap.BY_ROW:
            low, high = difference[name]["difference_interval_95"]
            value = (
                f"{difference[name]['difference']:+.3f}（95 % 區間 {low:+.3f} 到 {high:+.3f}，同一批列配對）"
            )
            lines.append((f"微調後 − 微調前，{NAMES[name]}", value))
    return [*lines, ("這些指標", MEANING)]


def tables(metrics: Metrics, figure: Figure) -> list[Table]:
    """Return the figures of the model beside those of the model before and of the rules."""
    columns = {"這個模型": metrics}
    if untuned := metrics.get("untuned"):
        columns["微調前"] = untuned
    columns |= {RULES[name]: rule for name, rule in metrics["baselines"].items()}
    rows = [[title, *(figure(of[name]) for of in columns.values())] for name, title in NAMES.items()]
    rows.append(["完全相同", *(figure(of["exact"]["accuracy"]) for of in columns.values())])
    return [Table("與簡單的做法比較", ["指標", *columns], rows)]


def summary(metrics: Metrics) -> dict[str, float]:
    """Return the metrics that are one number for the whole set, for trackers and all_results.json."""
    return text_overlap.flat(metrics)
