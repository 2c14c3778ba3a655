"""True labels in a file that a classifier reads: their column, and the accuracy of the predictions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from finetune.data.label_columns import LABELS, LabelColumns, column_names, parse_row
from finetune.data.labelled import SHOWN
from finetune.evaluation.metrics import share
from finetune.runtime.console import log
from finetune.runtime.errors import UserError, listed


class TrueLabels:
    """The labels in a file's own column, read as in training.

    Args:
        columns: columns of the file; `texts` are among them.
        label_column: --label_column; "" takes the only obvious one, and none where there is none or several.
        names: names of the model's classes.
        source: flag and file, for messages.

    Attributes:
        right, scored: rows predicted right, and rows that count.
        empty: rows that were answered and have no label.
        unknown: labels that the model does not have -> how often.

    Raises:
        UserError: a column that is not there.
    """

    def __init__(
        self,
        columns: Sequence[str],
        texts: Sequence[str],
        label_column: str,
        names: Sequence[str],
        multi: bool,
        source: str,
    ):
        labels = column_names(label_column)
        if absent := [name for name in labels if name not in columns]:
            raise UserError(f"{source} --label_column {absent[0]}：沒有這一欄，有的是 {listed(columns)}")
        if not labels:
            labels = tuple(name for name in columns if name.strip().lower() in LABELS and name not in texts)
            labels = labels if len(labels) == 1 else ()
        self.columns, self.names = LabelColumns((), labels, multi or len(labels) > 1), list(names)
        self.right = self.scored = self.empty = 0
        self.unknown: Counter[str] = Counter()

    def __bool__(self) -> bool:
        return bool(self.columns.labels)

    def labels_of(self, row: object) -> list[str] | None:
        """Return the labels of a row; None where it has none that can be read."""
        try:
            labels = parse_row(row, self.columns, ())[1]
        except ValueError:
            return None
        if not any(label in self.names for label in labels) and labels:
            numbers = {str(number): name for number, name in enumerate(self.names)}
            labels = tuple(numbers.get(label, label) for label in labels)
        return sorted(dict.fromkeys(labels))

    def count(self, true: str | list[str] | None, predicted: str | list[str] | None) -> None:
        """Count one row of the output; without labels or a prediction it is not scored."""
        if true is None or predicted is None:
            self.empty += predicted is not None
            return
        true_set, predicted_set = (
            {value} if isinstance(value, str) else {*value} for value in (true, predicted)
        )
        if unknown := true_set - {*self.names}:
            self.unknown.update(unknown)
            return
        self.scored += 1
        self.right += true_set == predicted_set

    def lines(self) -> list[str]:
        """Return the accuracy in words; no line where no row has a label the model knows."""
        lines = []
        if self.scored:
            accuracy = share(self.right, self.scored)
            low, high = accuracy["interval_95"]
            lines.append(
                f"{'整列全對' if self.columns.multi else '正確率'} {accuracy['accuracy']:.3f}："
                f"{self.scored} 列答對 {self.right} 列（95 % 區間 {low:.3f}–{high:.3f}；"
                f"標籤欄 {'、'.join(self.columns.labels)}）"
            )
        if self.unknown:
            named = "、".join(f"{name} {count}" for name, count in self.unknown.most_common(SHOWN))
            lines.append(f"{self.unknown.total()} 列的標籤是模型沒有的，沒有列入：{named}")
        if self.empty and (self.scored or self.unknown):
            lines.append(f"{self.empty} 列沒有標籤，沒有列入")
        return lines

    def metrics(self) -> dict[str, Any]:
        """Return the accuracy for --json; {} where no row was scored."""
        if not self.scored:
            return {}
        return {**share(self.right, self.scored), "unknown_labels": dict(self.unknown)}


def log_numeric_labels(truth: TrueLabels, rows: Sequence[dict[str, Any]]) -> None:
    """Log that labels are read as numbers of the model's classes, where they are."""
    raw = {str(row.get(name)) for row in rows for name in truth.columns.labels[:1]}
    if truth and len(truth.columns.labels) == 1 and raw and not raw & {*truth.names}:
        numbers = {str(number) for number in range(len(truth.names))}
        if raw <= numbers:
            listed_as = "、".join(f"{number} = {name}" for number, name in enumerate(truth.names[:SHOWN]))
            log(f"標籤欄 {truth.columns.labels[0]} 是編號，照模型的順序：{listed_as}")
