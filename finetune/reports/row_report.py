"""Report of rows that are measured one by one: tagged texts, answers, texts written from texts.

What is said of a task stands in a module of its own, a `TaskReport`; this one finds it and gives it form for
the screen, Markdown and the page. Metrics are those that a run card keeps, by set (`validation`, `held_back`,
`test`). `samples` among them are texts with marked parts, a list of
{"title": …, "lines": [{"label": …, "pieces": [[text, mark, look], …]}]}; a mark is a short word beside the
text, and looks are those of LOOKS.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

from finetune.evaluation.set_names import in_order
from finetune.reports.classification import CHOSEN_BY, title_of
from finetune.runtime.files import atomic_open
from finetune.runtime.strict_json import dumps

Figure = Callable[[float], str]
Metrics = dict[str, Any]
MODULES = {"tag": "tagging", "span": "spans", "seq2seq": "seq2seq"}  # task -> its module of this wing
LOOKS = (
    "right",
    "missed",
    "extra",
    "",
)  # in the answer and in the key; in the key alone; in the answer alone
NONE = "沒有留下驗證資料（--split_ratio），不知道成績如何。"


class Table(NamedTuple):
    """A table of a report: its title, head and rows; the first column is a name."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


class Bar(NamedTuple):
    """A share in the chart of a set, with its 95 % interval; `look` is model, other or trivial."""

    look: str
    label: str
    value: float
    low: float
    high: float


class TaskReport(Protocol):
    """Words and figures of one task, from the metrics of one set. `figure` writes a share as text."""

    def headline(self, metrics: Metrics) -> float:
        """Return the share that stands in large letters, 0 to 1."""

    def sentence(self, metrics: Metrics, figure: Figure) -> str:
        """Return the outcome in words, against the baselines, with a full stop."""

    def screen_line(self, metrics: Metrics) -> str:
        """Return the figures that the sentence rests on, for the screen."""

    def notes(self, metrics: Metrics) -> list[str]:
        """Return what must stand beside the figures."""

    def bars(self, metrics: Metrics) -> list[Bar]:
        """Return the shares of the chart, the model's first and the simplest baseline's last."""

    def overview(self, metrics: Metrics, figure: Figure) -> list[tuple[str, str]]:
        """Return (label, value) of every figure of the whole set."""

    def tables(self, metrics: Metrics, figure: Figure) -> list[Table]:
        """Return the tables, such as that of the figures by type."""

    def summary(self, metrics: Metrics) -> dict[str, float]:
        """Return the metrics that are one number for the whole set, for trackers and all_results.json."""


def task_report(task: str) -> TaskReport:
    """Return the words and figures of a task of MODULES."""
    return cast(TaskReport, importlib.import_module(f"finetune.reports.{MODULES[task]}"))


@dataclass(frozen=True)
class RowSection:
    """One set of a report, as the templates read it."""

    task: str
    name: str
    metrics: Metrics

    @property
    def title(self) -> str:
        """Title of the set."""
        return title_of(self.name)

    @property
    def headline(self) -> float:
        """The share that stands in large letters."""
        return task_report(self.task).headline(self.metrics)

    def sentence(self, figure: Figure) -> str:
        """Return the outcome in words."""
        return task_report(self.task).sentence(self.metrics, figure)

    @property
    def notes(self) -> list[str]:
        """What must stand beside the figures."""
        return row_notes(self.task, self.name, self.metrics)

    @property
    def bars(self) -> list[Bar]:
        """The shares of the chart."""
        return task_report(self.task).bars(self.metrics)

    def overview(self, figure: Figure) -> list[tuple[str, str]]:
        """Return (label, value) of every figure."""
        return task_report(self.task).overview(self.metrics, figure)

    def tables(self, figure: Figure) -> list[Table]:
        """Return the tables."""
        return task_report(self.task).tables(self.metrics, figure)

    @property
    def samples(self) -> list[dict[str, Any]]:
        """Texts with marked parts."""
        return self.metrics.get("samples", [])

    @property
    def marked(self) -> bool:
        """Whether a part of a sample has a look, which a legend then explains."""
        return any(look for one in self.samples for line in one["lines"] for *_, look in line["pieces"])


def sections(task: str, metrics: dict[str, Metrics]) -> list[RowSection]:
    """Return a section for each set, the most trustworthy first."""
    return [RowSection(task, name, of_set) for name, of_set in in_order(metrics).items()]


def row_notes(task: str, name: str, metrics: Metrics) -> list[str]:
    """Return what must stand beside the figures of a set."""
    return [*task_report(task).notes(metrics), *([CHOSEN_BY] if name == "validation" else [])]


def verdict(task: str, metrics: dict[str, Metrics]) -> list[str]:
    """Return the outcome for the screen: of each set a sentence, and below it the figures it rests on."""
    if task not in MODULES:
        return []
    if not metrics:
        return [NONE]
    words, lines = task_report(task), []
    for name, of_set in in_order(metrics).items():
        lines.append(f"{title_of(name)}：{words.sentence(of_set, '{:.3f}'.format)}")
        lines.append(f"  {title_of(name)} {words.screen_line(of_set)}")
        lines += [f"  {note}" for note in row_notes(task, name, of_set)]
    return lines


def write_predictions(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write predictions.jsonl: an object for each row."""
    with atomic_open(path) as stream:
        for record in records:
            stream.write(dumps(record) + "\n")


def summary(task: str, metrics: Metrics) -> dict[str, float]:
    """Return the metrics of a set that are one number for the whole."""
    return task_report(task).summary(metrics)
