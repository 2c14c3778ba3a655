"""Report of a classifier: its metrics in words and tables.

`labels`, as a run card keeps them: set (`validation`, `held_back`, `test`) -> metrics, see
evaluation.classification.compute_metrics. The names of the classes are the keys of `per_class`, in the order
of the model's outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from finetune.evaluation.classification import BASELINE, confusion_cells, prediction_counts
from finetune.evaluation.metrics import CERTAIN, SIGNIFICANT
from finetune.evaluation.set_names import in_order
from finetune.reports.plots import MOST_CELLS, short

LISTED = 30  # confusions listed one by one, where there are too many classes for a table
NAMED = 5  # classes named in a sentence, at most
TITLES = {"test": "測試", "held_back": "保留", "validation": "驗證", "train": "訓練", "all": "全部"}
NONE = "沒有留下驗證資料（--split_ratio），不知道分得多準。"
CHOSEN_BY = "最好的一步就是照這些列挑的，成績會略為偏高"
AVERAGES = (
    "巨觀（macro）：每一類算一次再平均，每一類一樣重；微觀（micro）：所有的列合起來算，列多的類別比較重"
    "（每列恰好一類時就等於正確率）。MCC 是答案與正解的相關：1 全對，0 與不看內容的答案無異。"
)
Figure = Callable[[float], str]
plain: Figure = "{:.3f}".format


# ---- in words ----------------------------------------------------------------------------------------------


def verdict(labels: dict[str, dict[str, Any]]) -> list[str]:
    """Return the outcome for the screen: of each set a sentence, and below it the metrics it rests on."""
    if not labels:
        return [NONE]
    lines = []
    for name, metrics in in_order(labels).items():
        lines.append(f"{title_of(name)}：{label_verdict(metrics)}")
        low, high = metrics["interval_95"]
        row = f"  {title_of(name)} {metrics['n']} 列：{_accuracy(metrics)} {metrics['accuracy']:.3f}"
        row += f"（95 % 區間 {low:.3f}–{high:.3f}），"
        row += f"巨觀 F1 {metrics['macro_f1']:.3f}、微觀 F1 {metrics['micro_f1']:.3f}、"
        row += f"漢明損失 {metrics['hamming_loss']:.3f}" if metrics["multi"] else f"MCC {metrics['mcc']:.3f}"
        row += f"；{_always(metrics)}：{metrics['majority']:.3f}、巨觀 F1 {metrics['macro_f1_majority']:.3f}"
        if baseline := metrics.get("baseline"):
            row += f"；{BASELINE}：{baseline['accuracy']:.3f}、巨觀 F1 {baseline['macro_f1']:.3f}"
        lines += [row, *(f"  {remark}" for remark in notes(name, metrics))]
    return lines


def title_of(name: str) -> str:
    """Return the Chinese title of a set of labelled rows."""
    return TITLES.get(name, name)


def label_verdict(metrics: dict[str, Any], figure: Figure = plain) -> str:
    """Return the accuracy of a set against the commonest label in words; shares written by `figure`."""
    text = f"{metrics['n']} 列答對 {metrics['right']} 列"
    if metrics["multi"]:
        text = f"{metrics['n']} 列裡有 {metrics['right']} 列的標籤全對"
    (low, high), majority = metrics["interval_95"], metrics["majority"]
    verb = "高於" if low > majority else "不如" if high < majority else "看不出勝過"
    text += f"（{figure(metrics['accuracy'])}），{verb}{_always(metrics)}的 {figure(majority)}"
    return text + _against_baseline(metrics, figure, verb == "高於") + "。"


def _against_baseline(metrics: dict[str, Any], figure: Figure, good: bool) -> str:
    """Return the clause on the baseline; `good`: the clause before it was favourable."""
    if not (baseline := metrics.get("baseline")):
        return ""
    p, gap = baseline["p_value"], baseline["difference"]
    name = f"{BASELINE}的 {figure(baseline['accuracy'])}"
    if p >= SIGNIFICANT:
        return f"，與 {name} 分不出高下"
    sure = "極不可能只是運氣" if p < CERTAIN else f"不像是運氣（p = {p:.2g}）"
    link = "也" if (gap > 0) == good else "但"
    return f"，{link}{'高於' if gap > 0 else '不如'} {name}；差異{sure}"


def _always(metrics: dict[str, Any]) -> str:
    """Return the name of the rule that always predicts the commonest labels."""
    if not metrics["majority_is"]:
        return "一律什麼標籤也不給"
    return f"一律答最多的一{'組' if metrics['multi'] else '類'}{_quoted([metrics['majority_is']])}"


def _accuracy(metrics: dict[str, Any]) -> str:
    """Return the name of the accuracy: 整列全對 of a multi-label classifier."""
    return "整列全對" if metrics["multi"] else "正確率"


def notes(name: str, metrics: dict[str, Any]) -> list[str]:
    """Return the notes that must stand beside the metrics of a set."""
    lines = [*warning(metrics), *([CHOSEN_BY] if name == "validation" else [])]
    support = {label: row["support"] for label, row in metrics["per_class"].items()}
    if absent := [label for label, count in support.items() if not count]:
        lines.append(f"這些列裡沒有{_quoted(absent)}：巨觀平均仍把每一類都算進去，沒有的類別算 0")
    predicted = dict(zip(support, prediction_counts(metrics), strict=True))
    if never := [label for label, count in support.items() if count and not predicted[label]]:
        lines.append(f"一次也沒有答過{_quoted(never)}")
    return [*lines, *filter(None, [mistakes(metrics)])]


def warning(metrics: dict[str, Any]) -> list[str]:
    """Return one line if a model is no better than the baseline of scikit-learn; else none."""
    baseline = metrics.get("baseline")
    if not baseline or baseline["difference"] > 0:
        return []
    accuracy = baseline["accuracy"] + baseline["difference"]  # the model's, on the baseline's rows
    verb = "低於" if baseline["difference"] < 0 else "只等於"
    name = f"{BASELINE}，同樣的 {baseline['trained_on']:,} 列訓練"
    return [
        f"⚠️ 這個模型的{_accuracy(metrics)} {accuracy:.3f} "
        f"{verb}簡單的基準 {baseline['accuracy']:.3f}（{name}）：在這份資料上它還不值得用"
    ]


def mistakes(metrics: dict[str, Any]) -> str:
    """Return the commonest confusions in words, from two errors on; else ""."""
    if metrics["multi"]:
        (missed, name), (added, other) = (
            max(zip(counts, metrics["per_class"], strict=True), key=lambda pair: pair[0])
            for counts in (confusion_cells(metrics, 1, 0), confusion_cells(metrics, 0, 1))
        )
        parts = [f"最常漏掉{_quoted([name])}：{missed} 次"] if missed else []
        parts += [f"最常多答{_quoted([other])}：{added} 次"] if added else []
        return (
            "；".join(parts)
            if sum(confusion_cells(metrics, 1, 0)) + sum(confusion_cells(metrics, 0, 1)) > 1
            else ""
        )
    worst = confusions(metrics)[:2]
    if metrics["n"] - metrics["right"] < 2:
        return ""
    parts = [f"把{_quoted([one])}認成{_quoted([other])}：{count} 次" for one, other, count in worst]
    return "最常" + "；其次".join(parts)


def confusions(metrics: dict[str, Any]) -> list[tuple[str, str, int]]:
    """Return (true class, predicted class, count) of a single-label classifier, the commonest first."""
    names = list(metrics["per_class"])
    cells = [
        (names[i], names[j], count)
        for i, row in enumerate(metrics["confusion"])
        for j, count in enumerate(row)
        if count and i != j
    ]
    return sorted(cells, key=lambda cell: -cell[2])


def _quoted(names: Sequence[str]) -> str:
    """Return the names of classes in quotes, at most NAMED of them."""
    text = "".join(f"「{short(name)}」" for name in names[:NAMED])
    return text + (f"等 {len(names)} 類" if len(names) > NAMED else "")


# ---- in tables ---------------------------------------------------------------------------------------------


def overview(metrics: dict[str, Any], figure: Figure = plain) -> list[tuple[str, str]]:
    """Return (label, value) of every metric of a set that is not one class's."""
    rows = [
        (
            _accuracy(metrics),
            f"{figure(metrics['accuracy'])}（{'–'.join(map(figure, metrics['interval_95']))}）",
        ),
        (
            _always(metrics),
            f"{figure(metrics['majority'])}（巨觀 F1 {figure(metrics['macro_f1_majority'])}）",
        ),
    ]
    if baseline := metrics.get("baseline"):
        value = f"{figure(baseline['accuracy'])}（巨觀 F1 {figure(baseline['macro_f1'])}）"
        low, high = (f"{100 * end:+.1f}" for end in baseline["difference_interval_95"])
        p = f"p = {baseline['p_value']:.2g}" if baseline["p_value"] >= CERTAIN else f"p < {CERTAIN:.4f}"
        rows.append((BASELINE, value))
        gap = f"{100 * baseline['difference']:+.1f} 個百分點（95 % 區間 {low} 到 {high}）；McNemar {p}"
        rows.append((f"比 {BASELINE}", gap))
    for average, title in (("macro", "巨觀"), ("micro", "微觀")):
        for key, name in (("f1", " F1"), ("precision", "精確率"), ("recall", "召回率")):
            rows.append((f"{title}{name}", figure(metrics[f"{average}_{key}"])))
    if metrics["multi"]:
        rows.append(("漢明損失", figure(metrics["hamming_loss"])))
    else:
        ece = f"{figure(metrics['ece'])}（平均信心 {figure(metrics['confidence'])}）"
        rows += [("MCC", plain(metrics["mcc"])), ("校準誤差（ECE）", ece)]
    return [*rows, ("對數損失（nat）", plain(metrics["log_loss"]))]


def columns(metrics: dict[str, Any]) -> list[str]:
    """Return the head of the table of `rows`."""
    return [
        "類別",
        "列數",
        "精確率",
        "召回率",
        "F1",
        "答的次數",
        *(["漏掉", "多答"] if metrics["multi"] else []),
    ]


def rows(metrics: dict[str, Any], figure: Figure = plain) -> list[list[str]]:
    """Return a row of the table for each class: its name as it is, then the metrics of `columns`."""
    extra = [confusion_cells(metrics, 1, 0), confusion_cells(metrics, 0, 1)] if metrics["multi"] else []
    lines = []
    for (name, row), *counts in zip(
        metrics["per_class"].items(), prediction_counts(metrics), *extra, strict=True
    ):
        cells = [figure(row[key]) for key in ("precision", "recall", "f1")]
        lines.append([name, str(row["support"]), *cells, *map(str, counts)])
    return lines


def confusion(metrics: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of the confusion matrix of single labels.

    Of more than MOST_CELLS classes the commonest confusions instead. Names are as they are, but short in the
    head.
    """
    names = list(metrics["per_class"])
    if len(names) > MOST_CELLS:
        listed = [[one, other, str(count)] for one, other, count in confusions(metrics)[:LISTED]]
        return ["正解", "認成", "次數"], listed
    lines = zip(names, metrics["confusion"], strict=True)
    return ["正解＼答", *map(short, names)], [[name, *map(str, counts)] for name, counts in lines]
