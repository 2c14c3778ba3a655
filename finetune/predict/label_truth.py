"""The true labels of a file that a classifier reads: their column, and how often the answers agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from finetune.data.columns import LABELS, Columns, column_names, parse_row
from finetune.data.labelled import SHOWN
from finetune.evaluation.metrics import share
from finetune.runtime.console import log
from finetune.runtime.errors import UserError, listed


class Truth:
    """The labels in a file's own column, read as in training.

    Args:
        there: the file's columns; `texts` are among them.
        wanted: --label_column; "" takes the only obvious one, and none where there is none or several.
        names: of the model's classes.
        named: flag and source, for messages.

    Raises:
        UserError: a column that is not there.
    """

    def __init__(
        self,
        there: Sequence[str],
        texts: Sequence[str],
        wanted: str,
        names: Sequence[str],
        multi: bool,
        named: str,
    ):
        found = column_names(wanted)
        if absent := [name for name in found if name not in there]:
            raise UserError(f"{named} --label_column {absent[0]}：沒有這一欄，有的是 {listed(there)}")
        if not found:
            found = tuple(name for name in there if name.strip().lower() in LABELS and name not in texts)
            found = found if len(found) == 1 else ()
        self.columns, self.names = Columns((), found, multi or len(found) > 1), list(names)
        self.right = self.asked = self.empty = 0
        self.unknown: Counter[str] = Counter()

    def __bool__(self) -> bool:
        return bool(self.columns.labels)

    def of(self, row: object) -> list[str] | None:
        """The labels of a row; None where it has none that can be read."""
        try:
            labels = parse_row(row, self.columns, ())[1]
        except ValueError:
            return None
        if not any(label in self.names for label in labels) and labels:
            numbers = {str(place): name for place, name in enumerate(self.names)}
            labels = tuple(numbers.get(label, label) for label in labels)
        return sorted(dict.fromkeys(labels))

    def count(self, true: str | list[str] | None, answered: str | list[str] | None) -> None:
        """One row of the output; without an answer it does not count."""
        if true is None or answered is None:
            self.empty += answered is not None
            return
        wanted, said = ({value} if isinstance(value, str) else {*value} for value in (true, answered))
        if strange := wanted - {*self.names}:
            self.unknown.update(strange)
            return
        self.asked += 1
        self.right += wanted == said

    def lines(self) -> list[str]:
        """The accuracy, in words; none where no row has a label the model knows."""
        lines = []
        if self.asked:
            found = share(self.right, self.asked)
            low, high = found["interval_95"]
            lines.append(
                f"{'整列全對' if self.columns.multi else '正確率'} {found['accuracy']:.3f}："
                f"{self.asked} 列答對 {self.right} 列（95 % 區間 {low:.3f}–{high:.3f}；"
                f"標籤欄 {'、'.join(self.columns.labels)}）"
            )
        if self.unknown:
            named = "、".join(f"{name} {count}" for name, count in self.unknown.most_common(SHOWN))
            lines.append(f"{self.unknown.total()} 列的標籤是模型沒有的，沒有列入：{named}")
        if self.empty and (self.asked or self.unknown):
            lines.append(f"{self.empty} 列沒有標籤，沒有列入")
        return lines

    def told(self) -> dict:
        """The same for --json."""
        if not self.asked:
            return {}
        return {**share(self.right, self.asked), "unknown_labels": dict(self.unknown)}


def tell_of_numbers(truth: Truth, rows: Sequence[dict]) -> None:
    """Says where labels are read as numbers of the model's classes."""
    raw = {str(row.get(name)) for row in rows for name in truth.columns.labels[:1]}
    if truth and len(truth.columns.labels) == 1 and raw and not raw & {*truth.names}:
        numbers = {str(place) for place in range(len(truth.names))}
        if raw <= numbers:
            listed_as = "、".join(f"{place} = {name}" for place, name in enumerate(truth.names[:SHOWN]))
            log(f"標籤欄 {truth.columns.labels[0]} 是編號，照模型的順序：{listed_as}")
