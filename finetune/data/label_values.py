"""Interpretation of the labels of all rows together.

Only all rows together show whether lists of 0 and 1 are switches by place, whether one text holds several
labels, whether numbers are scores, and which names differ only in how they are written. For a single row see
`columns.parse_row`.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from finetune.data.cells import narrowed
from finetune.data.segmentation import simplified
from finetune.runtime.errors import UserError, listed

Draft = tuple[list[str], tuple[str, ...], str]  # texts, labels by name, id
NUMBER = re.compile(r"[-+]?\d+(\.\d+)?([eE][-+]?\d+)?")
SWITCH = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}
SEPARATORS = ("|", "｜", ";", "；", "、", ",", "，")  # separators of several labels in one text
SURE = "|｜"  # separators that hardly occur within a name
FEWEST_CLASSES = 3  # 0, 1, 2 …; from so many classes on, -1 means no label


@dataclass
class Labels:
    """The rows with their labels interpreted.

    Attributes:
        drafts: the rows by split.
        multi: a row may have any number of labels.
        first: names with an order of their own, whether or not a row has them; the others follow.
        without: rows left out of each split because -1 says that they have no label.
        notes: how the labels were read, in words.
    """

    drafts: dict[str, list[Draft]]
    multi: bool
    first: tuple[str, ...]
    without: Counter[str]
    notes: list[str]


def interpret_labels(
    drafts: dict[str, list[Draft]], multi: bool, column: str, first: tuple[str, ...], multi_label: bool
) -> Labels:
    """Interpret the labels of all splits together.

    Args:
        multi: cells hold lists.
        column: the label column, for names and messages.
        first: names that the data themselves give.
        multi_label: the flag: a row may have several labels even where each has one.

    Raises:
        UserError: the labels are scores, or switches that cannot be told from class numbers.
    """
    settled = Labels(drafts, multi, first, Counter(), [])
    if multi:
        _interpret_switches(settled, column, multi_label)
    elif not first:
        _drop_minus_one(settled)
        _check_not_scores(settled, column)
        _note_joined_labels(settled)
    settled.notes += similar_name_warnings(label for label in _label_counts(settled.drafts))
    return settled


def _label_counts(drafts: dict[str, list[Draft]]) -> Counter[str]:
    """Count the rows of each label."""
    return Counter(label for rows in drafts.values() for _, labels, _ in rows for label in labels)


def _map_labels(
    drafts: dict[str, list[Draft]], change: Callable[[tuple[str, ...]], tuple[str, ...] | None]
) -> dict[str, list[Draft]]:
    """Apply `change` to the labels of every row, and leave out the rows for which it returns None."""
    return {
        split: [(texts, new, name) for texts, labels, name in rows if (new := change(labels)) is not None]
        for split, rows in drafts.items()
    }


def _interpret_switches(settled: Labels, column: str, multi_label: bool) -> None:
    """Turn lists of 0 and 1, all of one length, into labels.

    Each place is a label (multi-hot), or the place of the only 1 is the class (one-hot). Lists of names lose
    their duplicates.

    Raises:
        UserError: the lists may be switches or class numbers.
    """
    rows = [labels for part in settled.drafts.values() for _, labels, _ in part]
    lengths = {len(labels) for labels in rows}
    hot = len(lengths) == 1 and all(value in SWITCH for labels in rows for value in labels)
    count = lengths.pop() if hot else 0
    if count < 2:
        settled.drafts = _map_labels(settled.drafts, lambda labels: tuple(dict.fromkeys(labels)))
        return
    if not any(len(set(labels)) < count for labels in rows):  # [0, 1] and [1, 0]
        raise UserError(
            f"標籤欄 {column} 都是 [0, 1] 或 [1, 0]，可能是開關，也可能是類別編號；請改寫成標籤的名稱"
        )
    names = (
        settled.first if len(settled.first) == count else tuple(f"{column}_{place}" for place in range(count))
    )
    on = [[place for place in range(count) if SWITCH[labels[place]]] for labels in rows]
    single = not multi_label and all(len(places) == 1 for places in on)
    settled.drafts = _map_labels(
        settled.drafts, lambda labels: tuple(names[p] for p in range(count) if SWITCH[labels[p]])
    )
    settled.first, settled.multi = names, not single
    meaning = "剛好一個 1，那一格就是類別" if single else "0 和 1 是開關，每一格是一個標籤"
    settled.notes.append(f"標籤欄 {column} 是長度 {count} 的串列，{meaning}：{listed(names)}")


def _drop_minus_one(settled: Labels) -> None:
    """Leave out the rows with -1 beside 0, 1, 2 …, which have no label.

    Beside 0 and 1 alone it may be a class.
    """
    names = set(_label_counts(settled.drafts)) - {"-1"}
    counted = names == {str(number) for number in range(len(names))} and len(names) >= FEWEST_CLASSES
    for split, rows in settled.drafts.items():
        minus = sum(labels == ("-1",) for _, labels, _ in rows)
        if minus and (counted or (minus == len(rows) and names)):
            settled.without[split] = minus
            settled.drafts[split] = [row for row in rows if row[1] != ("-1",)]
        elif minus:
            settled.notes.append(
                f"{split or '資料'} 有 {minus} 列的標籤是 -1，當作一類；若是沒有標籤，請刪去那些列"
            )


def _check_not_scores(settled: Labels, column: str) -> None:
    """Raise UserError where the labels are numbers with decimals."""
    names = _label_counts(settled.drafts)
    numbers = [name for name in names if NUMBER.fullmatch(name)]
    broken = [name for name in numbers if not float(name).is_integer()]
    if broken and len(numbers) == len(names):
        raise UserError(
            f"標籤欄 {column} 是小數（{listed(broken, 3)}），像是分數而不是類別；"
            "分成幾類再用（例如 低、中、高），或用 --label_column 指出類別那一欄"
        )


def _note_joined_labels(settled: Labels) -> None:
    """Note labels such as `喜|怒`, which may be two labels.

    Those are names with a separator that hardly occurs within a name, or with another one where each part
    is a label of its own elsewhere. --multi_label splits them.
    """
    names = _label_counts(settled.drafts)
    for mark in SEPARATORS:
        joined = [name for name in names if mark in name and all(_parts(name, mark))]
        alone = {name for name in names if mark not in name}
        if joined and (mark in SURE or all({*_parts(name, mark)} <= alone for name in joined)):
            settled.notes.append(
                f"⚠️ {sum(names[name] for name in joined)} 列的標籤像 {listed(joined, 2)}，現在各當作一類；"
                "若是好幾個標籤，訓練時加上 --multi_label"
            )
            return


def _parts(name: str, mark: str) -> list[str]:
    """Split a name at a separator."""
    return [part.strip() for part in name.split(mark)]


def similar_name_warnings(names: Iterable[str]) -> list[str]:
    """Warn of names that differ only in width, case, white space, script, or 1 and 1.0."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in sorted(set(names)):
        groups["".join(simplified(narrowed(name)).casefold().removesuffix(".0").split())].append(name)
    return [
        f"⚠️ 標籤 {'、'.join(map(repr, same))} 只差寬度、大小寫、空白、繁簡或 .0，現在當作 {len(same)} 類；"
        "同一類請改成一樣的寫法"
        for same in groups.values()
        if len(same) > 1
    ]


def whitespace_notes(counts: Counter[str]) -> list[str]:
    """Return a note for each label that had white space around it in the file."""
    return [f"標籤 {name} 有 {count} 列前後多了空白，當作同一類" for name, count in counts.items()]


def names_beside(columns: Sequence[str], label: str) -> str:
    """Return the column with the names of the classes that `label` numbers, or "".

    For `label` that is `label_text`, `label_name` and the like.
    """
    plain = {name.strip().lower(): name for name in columns}
    endings = ("_text", "_name", "_label_counts", "_str", "文字", "名稱")
    return next((plain[label.lower() + end] for end in endings if label.lower() + end in plain), "")
