"""Report of a tagger: its metrics in words and tables, see `reports.row_report.TaskReport`.

Metrics are those of evaluation.tagging.compute_metrics.
"""

from __future__ import annotations

from finetune.data.tag_schemes import UNTYPED
from finetune.evaluation.tagging import BASELINE, summary_metrics
from finetune.reports.row_report import Bar, Figure, Metrics, Table

NAMED = 5  # labels named in a sentence
FEW = 30  # gold spans from which on a figure is worth looking at


def headline(metrics: Metrics) -> float:
    """Return micro F1."""
    return metrics["f1"]


def sentence(metrics: Metrics, figure: Figure) -> str:
    """Return the outcome in words, against the baseline."""
    what, (low, high) = _unit(metrics), metrics["interval_95"]
    text = (
        f"{metrics['n']} 句有 {metrics['gold']} 個{what}，模型找到 {metrics['predicted']} 個，"
        f"其中 {metrics['right']} 個{_right(metrics)}："
        f"F1 {figure(metrics['f1'])}（95 % 區間 {figure(low)}–{figure(high)}）"
    )
    if not (baseline := metrics.get("baseline")):
        return text + "。"
    least, most = baseline["difference_interval_95"]
    verb = "高於" if least > 0 else "不如" if most < 0 else "看不出勝過"
    if metrics["gold"] < FEW:  # a bootstrap of so few is no evidence
        verb = "標記太少，看不出勝過"
    return text + f"，{verb}只看字面的基準（{BASELINE}）的 {figure(baseline['f1'])}。"


def screen_line(metrics: Metrics) -> str:
    """Return the figures that the sentence rests on."""
    line = (
        f"{metrics['n']} 句：精確率 {metrics['precision']:.3f}、召回率 {metrics['recall']:.3f}、"
        f"F1 {metrics['f1']:.3f}，巨觀 F1 {metrics['macro_f1']:.3f}，"
        f"標記正確率 {metrics['tag_accuracy']:.3f}"
    )
    if baseline := metrics.get("baseline"):
        low, high = baseline["difference_interval_95"]
        line += (
            f"；{BASELINE}：F1 {baseline['f1']:.3f}，相差 {baseline['difference']:+.3f}"
            f"（95 % 區間 {low:+.3f} 到 {high:+.3f}）"
        )
    return line


def notes(metrics: Metrics) -> list[str]:
    """Return what must stand beside the figures."""
    lines, labels = [], metrics["per_label"]
    baseline = metrics.get("baseline")
    if baseline and baseline["difference"] <= 0:
        lines.append(
            f"⚠️ 這個模型的 F1 {metrics['f1']:.3f} 沒有勝過「{BASELINE}」的 {baseline['f1']:.3f}："
            "在這份資料上它還不值得用"
        )
    if not metrics["gold"]:
        lines.append("這些句子裡一個標記也沒有：F1 沒有意義，只能看模型多標了幾個")
    elif metrics["gold"] < FEW:
        lines.append(f"只有 {metrics['gold']} 個{_unit(metrics)}，數字僅供參考")
    if never := [label for label, of in labels.items() if of["gold"] and not of["predicted"]]:
        lines.append(f"一次也沒有標過{_quoted(never)}")
    if count := metrics["inexpressible"]:
        lines.append(
            f"有 {count} 句的標記，邊界落在字的中間（英文單字、數字或同一個 token 裡）：模型標不出來，算錯"
        )
    return lines


def bars(metrics: Metrics) -> list[Bar]:
    """Return F1 of the model and of the baseline."""
    found = [Bar("model", "這個模型", metrics["f1"], *metrics["interval_95"])]
    if baseline := metrics.get("baseline"):
        found.append(Bar("trivial", BASELINE, baseline["f1"], *baseline["interval_95"]))
    return found


def overview(metrics: Metrics, figure: Figure) -> list[tuple[str, str]]:
    """Return (label, value) of every figure of the whole set."""
    low, high = metrics["interval_95"]
    rows = [
        ("F1（微觀：所有標記合起來算）", f"{figure(metrics['f1'])}（{figure(low)}–{figure(high)}）"),
        ("精確率（標出來的有多少是對的）", figure(metrics["precision"])),
        ("召回率（該標的標出多少）", figure(metrics["recall"])),
        ("巨觀 F1（每一類一樣重）", figure(metrics["macro_f1"])),
        ("巨觀精確率", figure(metrics["macro_precision"])),
        ("巨觀召回率", figure(metrics["macro_recall"])),
        ("標記正確率（逐字，含不屬於任何標記的字）", figure(metrics["tag_accuracy"])),
    ]
    if baseline := metrics.get("baseline"):
        least, most = (f"{100 * end:+.1f}" for end in baseline["difference_interval_95"])
        gap = f"{100 * baseline['difference']:+.1f} 個百分點（95 % 區間 {least} 到 {most}）"
        rows += [
            (f"{BASELINE}：F1", f"{figure(baseline['f1'])}（巨觀 F1 {figure(baseline['macro_f1'])}）"),
            (f"比{BASELINE}", gap),
        ]
    return [*rows, ("對數損失（nat，每個字）", f"{metrics['log_loss']:.3f}")]


def tables(metrics: Metrics, figure: Figure) -> list[Table]:
    """Return the table of the figures by label."""
    rows = [
        [
            _shown(label), str(of["gold"]), str(of["predicted"]), str(of["right"]),
            *(figure(of[key]) for key in ("precision", "recall", "f1")),
        ]
        for label, of in metrics["per_label"].items()
    ]  # fmt: skip
    head = ["類型", "正解", "模型標的", "標對", "精確率", "召回率", "F1"]
    return [Table("各類型", head, rows)] if rows else []


def summary(metrics: Metrics) -> dict[str, float]:
    """Return the metrics that are one number for the whole set."""
    return summary_metrics(metrics)


def _unit(metrics: Metrics) -> str:
    """Return what is counted."""
    return "標記（逐詞）" if metrics["plain"] else "標記"


def _right(metrics: Metrics) -> str:
    """Return what it takes to be right."""
    if metrics["plain"]:
        return "標記正確"
    return "位置正確" if {*metrics["per_label"]} <= {UNTYPED} else "位置與類型都對"


def _shown(label: str) -> str:
    return "（不分類型）" if label == UNTYPED else label


def _quoted(names: list[str]) -> str:
    text = "".join(f"「{_shown(name)}」" for name in names[:NAMED])
    return text + (f"等 {len(names)} 類" if len(names) > NAMED else "")
