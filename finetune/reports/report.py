"""Report of an evaluation, and the verdict on the screen.

results.json and predictions.jsonl are for programs, report.md and index.html for people.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from finetune.evaluation import evaluator
from finetune.evaluation.evaluator import ExamResult
from finetune.evaluation.set_names import in_order
from finetune.models.run_card import TASK_TITLES, RunCard, as_line
from finetune.reports import doubtful_keys, evidence, plots, repeats, report_folder, revisions, row_report
from finetune.reports.html import render
from finetune.reports.number_format import small
from finetune.reports.report_folder import ReportFiles
from finetune.reports.row_report import RowSection
from finetune.reports.sections import (
    BASE_MODEL_TITLE,
    NOT_COMPARABLE,
    Section,
    calibration,
    caveats,
    comparison,
    order_bias,
    our_name,
    ranked,
    score_rows,
    section_notes,
    title_of,
    verdict_sentence,
)
from finetune.reports.templates import template
from finetune.runtime.files import atomic_open, atomic_write
from finetune.runtime.strict_json import dumps

FILES = ("results.json", "predictions.jsonl", doubtful_keys.FILE, "report.md", "index.html")
OURS = re.compile(
    r"results\.json|predictions\.jsonl|doubtful_keys\.jsonl|report\.md|index\.html|\.lock|\..*\.half"
    r"|answers(\.rank\d+)?\.part\.jsonl"  # of a run that this report ends
    r"|(subjects|confusion)(_(train|validation|test|held_back|all))?\.png"
)
OF_REPORT = ReportFiles(FILES, OURS, "results.json")


class TrainingRecord(Protocol):
    """Facts about a training run that reports need; training.state.TrainingState has them.

    Attributes:
        step: optimizer steps finished.
        epoch: epochs finished.
        seconds: spent training.
        best_step: step of the best model.
        best_accuracy: accuracy of the best model on the validation rows, 0..1; -1 where it was not measured.
        best_loss: validation loss of the best model, nats.
        history: an entry an epoch.
    """

    step: int
    epoch: int
    seconds: float
    best_step: int
    best_accuracy: float
    best_loss: float
    history: list[dict]

    @property
    def history_from_start(self) -> list[dict]:
        """The history, after the metrics from before the first step, where there are any."""
        ...


@dataclass
class Report:
    """Results of an evaluation and what they are to be read with.

    Args:
        facts: label -> value, of the model and the exam, in Chinese.
        results: metrics of each set of questions (`evaluator.compute_metrics`), by its name.
        exam_results: by set, the answers of the model and of the other one, or None.
        other: what the other model is called: 微調前, or a path.
        other_key: key of the other model's answers in predictions.jsonl.
        history: an entry for each epoch of training; empty when it is not known.
        best_step: step of training with the best model.
        notes: sentences that must stand beside every figure.
        growth: perplexity of a language model before and after training, see reports/perplexity.py.
        labels: metrics of a classifier by set, see reports/classification.py.
        task: of the rows that `metrics` are about, see reports/row_report.py.
        metrics: those of a tagger, an extractor or an encoder-decoder by set.
        unscored: answers to questions without a key, for predictions.jsonl alone.
        doubtful_keys: questions whose key is to be checked, rows of doubtful_keys.jsonl; None if none were
            looked for.
        evidence: protocol, a prompt, precision, versions and data, see predict/evidence.py.
        revisions: what changed between two revisions of the exam, see reports/revisions.py.
    """

    facts: dict[str, str]
    results: dict[str, dict[str, Any]]
    exam_results: dict[str, tuple[ExamResult, ExamResult | None]]
    other: str = BASE_MODEL_TITLE
    other_key: str = "untuned"
    history: Sequence[dict[str, Any]] = ()
    best_step: int = 0
    notes: list[str] = field(default_factory=list)
    growth: dict[str, Any] = field(default_factory=dict)
    labels: dict[str, dict[str, Any]] = field(default_factory=dict)
    task: str = ""
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    unscored: ExamResult | None = None
    doubtful_keys: Sequence[dict[str, Any]] | None = None
    evidence: dict[str, Any] = field(default_factory=dict)
    revisions: dict[str, Any] = field(default_factory=dict)

    @property
    def heading(self) -> str:
        """Title of the report."""
        if self.metrics:
            return f"{TASK_TITLES[self.task]}報告"
        return "評測報告" if self.exam_sets() else "分類報告" if self.labels else "訓練報告"

    def __post_init__(self):
        self.labels = in_order(self.labels)

    def row_sections(self) -> list[RowSection]:
        """Return a section for each set of rows that are measured one by one."""
        return row_report.sections(self.task, self.metrics)

    def exam_sets(self) -> dict[str, dict[str, Any]]:
        """Return the metrics of the sets that hold questions."""
        return in_order({name: metrics for name, metrics in self.results.items() if metrics})

    def sections(self) -> list[Section]:
        """Return a section for each set that holds questions."""
        return [self._section(name, metrics) for name, metrics in self.exam_sets().items()]

    def _section(self, name: str, metrics: dict[str, Any]) -> Section:
        return Section(
            name=name,
            title=title_of(name),
            metrics=metrics,
            result=self.exam_results[name][0],
            verdict=verdict_sentence(self, metrics),
            notes=section_notes(self, metrics),
            score_rows=score_rows(self, metrics),
            comparison=comparison(self, metrics),
            categories=ranked(metrics["categories"]),
            subjects=ranked(metrics["subjects"]),
            order_bias=order_bias(metrics),
            calibration=calibration(metrics),
        )


def of_training(
    card: RunCard, exam_results: Mapping[str, Sequence[ExamResult]], progress: TrainingRecord
) -> Report:
    """Make the report of the evaluation that ends a training run.

    Args:
        card: run card, with its results.
        exam_results: by set, the answers of the tuned and the untuned model.
        progress: how training went.
    """
    objective = card.objective or TASK_TITLES[card.task]
    facts = {
        "底模": card.base_model, "資料": card.dataset, "目標": objective,
        **({"作答方式": card.scoring} if any(card.results.values()) else {}),
        "訓練": f"{progress.step} 步、{progress.seconds:.0f} 秒；驗證最好的是第 {progress.best_step} 步",
    }  # fmt: skip
    pairs: dict[str, tuple[ExamResult, ExamResult | None]] = {
        name: (tuned, untuned) for name, (tuned, untuned, *_) in exam_results.items()
    }
    notes = [NOT_COMPARABLE] if card.pool == "all" else []
    if card.lineage:
        facts["來歷"] = as_line(card.lineage)
    return Report(
        facts, card.results, pairs, history=progress.history_from_start, best_step=progress.best_step,
        notes=notes, growth=card.growth, labels=card.labels, task=card.task, metrics=card.metrics,
    )  # fmt: skip


def check_folder(folder: str | Path, flag: str) -> None:
    """Refuse a folder in which this report would replace something else.

    Args:
        folder: the report's folder.
        flag: that named it, for the message.

    Raises:
        UserError: a file of the same name that is of no report written here; no folder; not to be written.
    """
    report_folder.check_folder(Path(folder), flag, OF_REPORT)


def write(folder: Path, report: Report, hint: str = "請清出空間，或換一個資料夾") -> None:
    """Write results.json, predictions.jsonl, report.md with its pictures and index.html into `folder`.

    A reader sees the former report or this one.

    Args:
        folder: the report's folder.
        report: the report to write.
        hint: what can be done when it cannot be written.

    Raises:
        RunError: it cannot be written; the former report is as it was.
    """
    report_folder.write(folder, OF_REPORT, lambda staging: _write(staging, report), hint)


def _write(folder: Path, report: Report) -> None:
    summary = {"facts": report.facts, "notes": report.notes, **report.results, **report.evidence}
    if report.growth:
        summary["growth"] = report.growth
    if report.revisions:
        summary["revisions"] = report.revisions
    if report.labels:
        summary["labels"] = report.labels
    if report.metrics:
        summary |= {"task": report.task, "metrics": report.metrics}
    write_json(folder / "results.json", summary)
    if report.exam_sets() or report.unscored:
        _write_predictions(folder, report)
    if report.doubtful_keys is not None:
        rows = (dumps(row) + "\n" for row in report.doubtful_keys)
        atomic_write(folder / doubtful_keys.FILE, "".join(rows))
    if report.unscored and not report.exam_sets():
        return  # nothing to draw
    pictures = {}
    for section in report.sections():
        file = f"subjects_{section.name}.png" if len(report.exam_sets()) > 1 else "subjects.png"
        if plots.plot_intervals(folder / file, section.subjects, section.metrics["model"]["chance"]):
            pictures[section.name] = file
    heat = _heat_maps(folder, report.labels)
    atomic_write(folder / "report.md", markdown(report, {**pictures, **heat}))
    shown = {name: (folder / file).read_bytes() for name, file in heat.items()}
    atomic_write(folder / "index.html", render(report, shown))


def _write_predictions(folder: Path, report: Report) -> None:
    """Write predictions.jsonl, an object a question."""
    answers = [(name, *pair) for name, pair in report.exam_results.items()]
    answers += [("unscored", report.unscored, None)] if report.unscored else []
    with atomic_open(folder / "predictions.jsonl") as stream:
        for name, result, other in answers:
            for record in evaluator.records(result, other, report.other_key):
                stream.write(dumps({"set": name, **record}) + "\n")


def _heat_maps(folder: Path, labels: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Draw the confusion matrix of each set of single labels. Return the files, by the set's name."""
    files = {}
    for name, metrics in labels.items():
        file = f"confusion_{name}.png" if len(labels) > 1 else "confusion.png"
        classes = list(metrics["per_class"])
        if not metrics["multi"] and plots.plot_confusion(folder / file, metrics["confusion"], classes):
            files[name] = file
    return files


def write_json(path: Path, value: object) -> None:
    """Write a value as an indented JSON file."""
    atomic_write(path, dumps(value, indent=1) + "\n")


def verdict(report: Report) -> list[str]:
    """Return the outcome in a few lines, for the screen: a sentence a set, then the metrics it rests on."""
    lines = []
    for name, metrics in report.exam_sets().items():
        lines.append(f"{title_of(name)}：{verdict_sentence(report, metrics)}")
        model, (low, high) = metrics["model"], metrics["model"]["interval_95"]
        line = f"  {title_of(name)} {model['n']} 題：{our_name(report, metrics)} "
        line += f"{model['accuracy']:.3f}（95 % 區間 {low:.3f}–{high:.3f}），"
        if metrics["other"]:
            line += f"{report.other} {metrics['other']['accuracy']:.3f}，"
        line += (
            f"亂猜 {model['chance']:.3f}，全答 {model['majority_letter_is']} {model['majority_letter']:.3f}，"
            f"全選最長 {model['longest_option']:.3f}"
        )
        if metrics["option_only"]:
            line += f"，只看選項 {metrics['option_only']['accuracy']:.3f}"
        if metrics["paired"]:
            line += f"；McNemar p = {metrics['paired']['p_value']:.2g}"
        lines.append(line)
        if macro := metrics["macro_4"]:
            note = evidence.macro_note(report.evidence, macro["subjects"])
            low, high = macro["interval_95"]
            line = f"  四大類平均（macro-4，{macro['subjects']} 科{note}）{macro['macro_4']:.3f}"
            line += f"（{low:.3f}–{high:.3f}）"
            if metrics["other"]:
                line += f"，{report.other} {metrics['other_macro_4']['macro_4']:.3f}"
            lines.append(line)
        lines += [*repeats.screen_lines(metrics), *doubtful_keys.screen_lines(metrics)]
        if "repeats" not in metrics and (bias := metrics["order_bias"]):
            lines.append(
                f"  換選項順序，{small(bias['flips'])} 的題目答案會變；"
                f"照原順序 {bias['accuracy_as_written']:.3f}"
            )
        lines += [f"  {line}" for line in evidence.protocol_lines(report.evidence, metrics)]
        lines += [f"  {line}" for line in caveats(metrics)]
    if report.revisions:
        lines += revisions.lines(report.revisions, report.other)
    return [*lines, *report.notes]


def markdown(report: Report, pictures: dict[str, str]) -> str:
    """Return report.md: the verdict on each set, its metrics, categories and subjects with their intervals.

    Args:
        report: the report to write.
        pictures: file of a set's subjects or of its confusion, by the set's name.
    """
    return template("report.md.j2").render(report=report, sections=report.sections(), pictures=pictures)
