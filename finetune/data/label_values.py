"""What the labels of all rows say together: switches by place, several labels in one text, numbers that are
scores, names that are alike but for how they are written. A row alone does not tell: see columns.parse_row.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from finetune.data.cells import narrowed
from finetune.data.segmentation import simplified
from finetune.runtime.errors import UserError, listed

Draft = tuple[list[str], tuple[str, ...], str]  # texts, labels by name, id
NUMBER = re.compile(r"[-+]?\d+(\.\d+)?([eE][-+]?\d+)?")
SWITCH = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}
SEPARATORS = ("|", "｜", ";", "；", "、", ",", "，")  # of several labels in one text
SURE = "|｜"  # what hardly stands within a name
FEWEST_CLASSES = 3  # 0, 1, 2 …, beside which -1 is none


@dataclass
class Labels:
    """The rows with their labels settled.

    Attributes:
        multi: a row may have any number of labels.
        first: names in an order of their own, whether or not a row has them; the others follow.
        without: rows left out of each part, because -1 says that they have no label.
        notes: what was interpreted, in words.
    """

    drafts: dict[str, list[Draft]]
    multi: bool
    first: tuple[str, ...]
    without: Counter[str]
    notes: list[str]


def settle(
    drafts: dict[str, list[Draft]], multi: bool, column: str, first: tuple[str, ...], asked: bool
) -> Labels:
    """Reads the labels of all parts together.

    Args:
        multi: cells hold lists.
        column: of the labels, for names and messages.
        first: names that the data themselves give.
        asked: --multi_label: a row may have several labels even where each has one.

    Raises:
        UserError: they are scores, or switches whose places cannot be told from numbers of classes.
    """
    found = Labels(drafts, multi, first, Counter(), [])
    if multi:
        _switches(found, column, asked)
    elif not first:
        _without_minus_one(found)
        _refuse_scores(found, column)
        _several(found)
    found.notes += alike(label for label in _names(found.drafts))
    return found


def _names(drafts: dict[str, list[Draft]]) -> Counter[str]:
    return Counter(label for rows in drafts.values() for _, labels, _ in rows for label in labels)


def _changed(drafts: dict[str, list[Draft]], change) -> dict[str, list[Draft]]:
    """`change(labels)` of every row; a row of which it is None is left out."""
    return {
        split: [(texts, new, name) for texts, labels, name in rows if (new := change(labels)) is not None]
        for split, rows in drafts.items()
    }


def _switches(found: Labels, column: str, asked: bool) -> None:
    """Lists of 0 and 1, all of one length: each place is a label (multi-hot), or the place of the only 1 is
    the class (one-hot). Lists of names lose what stands twice.
    """
    rows = [labels for some in found.drafts.values() for _, labels, _ in some]
    lengths = {len(labels) for labels in rows}
    hot = len(lengths) == 1 and all(one in SWITCH for labels in rows for one in labels)
    count = lengths.pop() if hot else 0
    if count < 2:
        found.drafts = _changed(found.drafts, lambda labels: tuple(dict.fromkeys(labels)))
        return
    if not any(len(set(labels)) < count for labels in rows):  # [0, 1] and [1, 0]
        raise UserError(
            f"標籤欄 {column} 都是 [0, 1] 或 [1, 0]，可能是開關，也可能是類別編號；請改寫成標籤的名稱"
        )
    names = found.first if len(found.first) == count else tuple(f"{column}_{place}" for place in range(count))
    on = [[place for place in range(count) if SWITCH[labels[place]]] for labels in rows]
    single = not asked and all(len(places) == 1 for places in on)
    found.drafts = _changed(
        found.drafts, lambda labels: tuple(names[p] for p in range(count) if SWITCH[labels[p]])
    )
    found.first, found.multi = names, not single
    how = "剛好一個 1，那一格就是類別" if single else "0 和 1 是開關，每一格是一個標籤"
    found.notes.append(f"標籤欄 {column} 是長度 {count} 的串列，{how}：{listed(names)}")


def _without_minus_one(found: Labels) -> None:
    """-1 beside 0, 1, 2 … is the sign of a row without a label; beside 0 and 1 alone it may be a class."""
    names = set(_names(found.drafts)) - {"-1"}
    counted = names == {str(number) for number in range(len(names))} and len(names) >= FEWEST_CLASSES
    for split, rows in found.drafts.items():
        minus = sum(labels == ("-1",) for _, labels, _ in rows)
        if minus and (counted or (minus == len(rows) and names)):
            found.without[split] = minus
            found.drafts[split] = [row for row in rows if row[1] != ("-1",)]
        elif minus:
            found.notes.append(
                f"{split or '資料'} 有 {minus} 列的標籤是 -1，當作一類；若是沒有標籤，請刪去那些列"
            )


def _refuse_scores(found: Labels, column: str) -> None:
    names = _names(found.drafts)
    numbers = [name for name in names if NUMBER.fullmatch(name)]
    broken = [name for name in numbers if not float(name).is_integer()]
    if broken and len(numbers) == len(names):
        raise UserError(
            f"標籤欄 {column} 是小數（{listed(broken, 3)}），像是分數而不是類別；"
            "分成幾類再用（例如 低、中、高），或用 --label_column 指出類別那一欄"
        )


def _several(found: Labels) -> None:
    """Tells of `喜|怒`, which may be two labels: of a mark that hardly stands in a name; of another, where
    each part is a label of its own elsewhere. --multi_label parts them.
    """
    names = _names(found.drafts)
    for mark in SEPARATORS:
        joined = [name for name in names if mark in name and all(_parts(name, mark))]
        alone = {name for name in names if mark not in name}
        if joined and (mark in SURE or all({*_parts(name, mark)} <= alone for name in joined)):
            found.notes.append(
                f"⚠️ {sum(names[name] for name in joined)} 列的標籤像 {listed(joined, 2)}，現在各當作一類；"
                "若是好幾個標籤，訓練時加上 --multi_label"
            )
            return


def _parts(name: str, mark: str) -> list[str]:
    return [part.strip() for part in name.split(mark)]


def alike(names: Iterable[str]) -> list[str]:
    """Warnings of names that differ by nothing but width, case, white space, script, or 1 and 1.0."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in sorted(set(names)):
        groups["".join(simplified(narrowed(name)).casefold().removesuffix(".0").split())].append(name)
    return [
        f"⚠️ 標籤 {'、'.join(map(repr, same))} 只差寬度、大小寫、空白、繁簡或 .0，現在當作 {len(same)} 類；"
        "同一類請改成一樣的寫法"
        for same in groups.values()
        if len(same) > 1
    ]


def padded(counts: Counter[str]) -> list[str]:
    """What is told of labels that had white space around them in the file."""
    return [f"標籤 {name} 有 {count} 列前後多了空白，當作同一類" for name, count in counts.items()]


def names_beside(columns: Sequence[str], label: str) -> str:
    """The column that names the classes which `label` counts: label_text beside label; "" without one."""
    plain = {name.strip().lower(): name for name in columns}
    endings = ("_text", "_name", "_names", "_str", "文字", "名稱")
    return next((plain[label.lower() + end] for end in endings if label.lower() + end in plain), "")
