"""How good a classifier is: figures by scikit-learn, and what they say in words and tables.

Labels, as a run card keeps them: set (`validation`, `held_back`, `test`) -> `figures`. Of these the names of
the classes are the keys of `per_class`, in the order of the model's outputs.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence

from finetune.evaluation.classification import BASELINE, _cells, answered
from finetune.evaluation.metrics import CERTAIN, SIGNIFICANT
from finetune.evaluation.sets import in_order
from finetune.reports.plots import MOST_CELLS, short

LISTED = 30  # confusions told one by one, where there are too many classes for a table
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


def verdict(labels: dict) -> list[str]:
    """The outcome for the screen: of each set a sentence, and below it what it rests on."""
    if not labels:
        return [NONE]
    lines = []
    for name, found in in_order(labels).items():
        lines.append(f"{title_of(name)}：{label_verdict(found)}")
        low, high = found["interval_95"]
        row = f"  {title_of(name)} {found['n']} 列：{_accuracy(found)} {found['accuracy']:.3f}"
        row += f"（95 % 區間 {low:.3f}–{high:.3f}），"
        row += f"巨觀 F1 {found['macro_f1']:.3f}、微觀 F1 {found['micro_f1']:.3f}、"
        row += f"漢明損失 {found['hamming_loss']:.3f}" if found["multi"] else f"MCC {found['mcc']:.3f}"
        row += f"；{_always(found)}：{found['majority']:.3f}、巨觀 F1 {found['macro_f1_majority']:.3f}"
        if trivial := found.get("baseline"):
            row += f"；{BASELINE}：{trivial['accuracy']:.3f}、巨觀 F1 {trivial['macro_f1']:.3f}"
        lines += [row, *(f"  {remark}" for remark in notes(name, found))]
    return lines


def title_of(name: str) -> str:
    return TITLES.get(name, name)


def label_verdict(found: dict, figure: Figure = plain) -> str:
    """The accuracy of a set against the commonest answer, as one says it; shares written by `figure`."""
    whole = f"{found['n']} 列裡有 {found['right']} 列的標籤全對" if found["multi"] else ""
    text = whole or f"{found['n']} 列答對 {found['right']} 列"
    (low, high), trivial = found["interval_95"], found["majority"]
    verb = "高於" if low > trivial else "不如" if high < trivial else "看不出勝過"
    text += f"（{figure(found['accuracy'])}），{verb}{_always(found)}的 {figure(trivial)}"
    return text + _beside_the_baseline(found, figure, verb == "高於") + "。"


def _beside_the_baseline(found: dict, figure: Figure, good: bool) -> str:
    """The clause on the baseline; `good` is what was said before it."""
    if not (trivial := found.get("baseline")):
        return ""
    p, gap, them = trivial["p_value"], trivial["difference"], f"{BASELINE}的 {figure(trivial['accuracy'])}"
    if p >= SIGNIFICANT:
        return f"，與 {them} 分不出高下"
    sure = "極不可能只是運氣" if p < CERTAIN else f"不像是運氣（p = {p:.2g}）"
    link = "也" if (gap > 0) == good else "但"
    return f"，{link}{'高於' if gap > 0 else '不如'} {them}；差異{sure}"


def _always(found: dict) -> str:
    if not found["majority_is"]:
        return "一律什麼標籤也不給"
    return f"一律答最多的一{'組' if found['multi'] else '類'}{_quoted([found['majority_is']])}"


def _accuracy(found: dict) -> str:
    return "整列全對" if found["multi"] else "正確率"


def notes(name: str, found: dict) -> list[str]:
    """What must stand beside the figures of a set."""
    lines = [*warning(found), *([CHOSEN_BY] if name == "validation" else [])]
    support = {label: row["support"] for label, row in found["per_class"].items()}
    if absent := [label for label, count in support.items() if not count]:
        lines.append(f"這些列裡沒有{_quoted(absent)}：巨觀平均仍把每一類都算進去，沒有的類別算 0")
    given = dict(zip(support, answered(found), strict=True))
    if never := [label for label, count in support.items() if count and not given[label]]:
        lines.append(f"一次也沒有答過{_quoted(never)}")
    return [*lines, *filter(None, [mistakes(found)])]


def warning(found: dict) -> list[str]:
    """That a model is no better than what a second of scikit-learn gives, in one line; else none."""
    trivial = found.get("baseline")
    if not trivial or trivial["difference"] > 0:
        return []
    mine = trivial["accuracy"] + trivial["difference"]  # on the rows that both answered
    less = "低於" if trivial["difference"] < 0 else "只等於"
    told = f"{BASELINE}，同樣的 {trivial['trained_on']:,} 列訓練"
    return [
        f"⚠️ 這個模型的{_accuracy(found)} {mine:.3f} {less}簡單的基準 {trivial['accuracy']:.3f}（{told}）："
        "在這份資料上它還不值得用"
    ]


def mistakes(found: dict) -> str:
    """The commonest confusions, from two errors on; else ""."""
    if found["multi"]:
        (missed, name), (added, other) = (
            max(zip(counts, found["per_class"], strict=True), key=lambda pair: pair[0])
            for counts in (_cells(found, 1, 0), _cells(found, 0, 1))
        )
        parts = [f"最常漏掉{_quoted([name])}：{missed} 次"] if missed else []
        parts += [f"最常多答{_quoted([other])}：{added} 次"] if added else []
        return "；".join(parts) if sum(_cells(found, 1, 0)) + sum(_cells(found, 0, 1)) > 1 else ""
    worst = confusions(found)[:2]
    if found["n"] - found["right"] < 2:
        return ""
    parts = [f"把{_quoted([one])}認成{_quoted([other])}：{count} 次" for one, other, count in worst]
    return "最常" + "；其次".join(parts)


def confusions(found: dict) -> list[tuple[str, str, int]]:
    """(true class, class answered, how often) of a single-label classifier, the commonest first."""
    names = list(found["per_class"])
    cells = [
        (names[i], names[j], count)
        for i, row in enumerate(found["confusion"])
        for j, count in enumerate(row)
        if count and i != j
    ]
    return sorted(cells, key=lambda cell: -cell[2])


def _quoted(names: Sequence[str]) -> str:
    text = "".join(f"「{short(name)}」" for name in names[:NAMED])
    return text + (f"等 {len(names)} 類" if len(names) > NAMED else "")


# ---- in tables ---------------------------------------------------------------------------------------------


def overview(found: dict, figure: Figure = plain) -> list[tuple[str, str]]:
    """(label, value) of every figure of a set that is not one class's."""
    rows = [
        (_accuracy(found), f"{figure(found['accuracy'])}（{'–'.join(map(figure, found['interval_95']))}）"),
        (_always(found), f"{figure(found['majority'])}（巨觀 F1 {figure(found['macro_f1_majority'])}）"),
    ]
    if trivial := found.get("baseline"):
        value = f"{figure(trivial['accuracy'])}（巨觀 F1 {figure(trivial['macro_f1'])}）"
        low, high = (f"{100 * end:+.1f}" for end in trivial["difference_interval_95"])
        p = f"p = {trivial['p_value']:.2g}" if trivial["p_value"] >= CERTAIN else f"p < {CERTAIN:.4f}"
        rows.append((BASELINE, value))
        gap = f"{100 * trivial['difference']:+.1f} 個百分點（95 % 區間 {low} 到 {high}）；McNemar {p}"
        rows.append((f"比 {BASELINE}", gap))
    for average, title in (("macro", "巨觀"), ("micro", "微觀")):
        for what, named in (("f1", " F1"), ("precision", "精確率"), ("recall", "召回率")):
            rows.append((f"{title}{named}", figure(found[f"{average}_{what}"])))
    if found["multi"]:
        rows.append(("漢明損失", figure(found["hamming_loss"])))
    else:
        stated = f"{figure(found['ece'])}（平均信心 {figure(found['confidence'])}）"
        rows += [("MCC", plain(found["mcc"])), ("校準誤差（ECE）", stated)]
    return [*rows, ("對數損失（nat）", plain(found["log_loss"]))]


def overview_table(found: dict, figure: Figure = plain) -> list[str]:
    """The same in Markdown."""
    return _markdown(["指標", ""], overview(found, figure))


def columns(found: dict) -> list[str]:
    """What stands above `rows`."""
    return [
        "類別",
        "列數",
        "精確率",
        "召回率",
        "F1",
        "答的次數",
        *(["漏掉", "多答"] if found["multi"] else []),
    ]


def rows(found: dict, figure: Figure = plain) -> list[list[str]]:
    """Of each class, what stands below `columns`: its name as it is, then figures."""
    extra = [_cells(found, 1, 0), _cells(found, 0, 1)] if found["multi"] else []
    lines = []
    for (name, row), *counts in zip(found["per_class"].items(), answered(found), *extra, strict=True):
        cells = [figure(row[what]) for what in ("precision", "recall", "f1")]
        lines.append([name, str(row["support"]), *cells, *map(str, counts)])
    return lines


def table(found: dict, figure: Figure = plain) -> list[str]:
    """The classes in Markdown; none without rows."""
    return _markdown(columns(found), rows(found, figure)) if found else []


def confusion(found: dict) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the confusion of single labels: who was taken for whom, or, of more classes than
    anyone reads across, the commonest confusions. Names are as they are, but short in the head.
    """
    names = list(found["per_class"])
    if len(names) > MOST_CELLS:
        listed = [[one, other, str(count)] for one, other, count in confusions(found)[:LISTED]]
        return ["正解", "認成", "次數"], listed
    lines = zip(names, found["confusion"], strict=True)
    return ["正解＼答", *map(short, names)], [[name, *map(str, counts)] for name, counts in lines]


def confusion_table(found: dict) -> list[str]:
    """The same in Markdown; none of a multi-label classifier: the table of classes has its counts."""
    if found["multi"]:
        return []
    head, lines = confusion(found)
    return _markdown(head, lines)


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    written = [head, *lines]
    shown = [f"| {' | '.join(escaped(cell) for cell in cells)} |" for cells in written]
    return [shown[0], "|---|" + "--:|" * (len(head) - 1), *shown[1:]]


def escaped(text: str) -> str:
    """One line of Markdown that shows the text and is nothing else: no tag, no cell, no link."""
    line = html.escape(" ".join(text.split()), quote=False)
    marks = r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])"  # a _ inside a word is none
    return re.sub(marks, lambda found: f"&#{ord(found[0])};", line)
