"""What an exam leaves for people to read: results.json and predictions.jsonl for programs, report.md and
index.html for people, and the verdict on the screen.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from finetune.data.subjects import SUBJECTS
from finetune.evaluation import evaluator
from finetune.evaluation.evaluator import ExamResult
from finetune.evaluation.sets import in_order
from finetune.models.run_card import TASK_TITLES, RunCard, as_line
from finetune.reports import classification as classification_report
from finetune.reports import perplexity, plots
from finetune.reports.classification import (
    AVERAGES,
    confusion_table,
    escaped,
    label_verdict,
    overview_table,
    table,
)
from finetune.reports.html import percent, render, small
from finetune.reports.sections import (
    BASE_MODEL_TITLE,
    NOT_COMPARABLE,
    ScoreRow,
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
from finetune.runtime.errors import UserError
from finetune.runtime.files import (
    atomic_open,
    atomic_write,
    flush_folder,
    flush_tree,
    hidden,
    new_folder,
    replace_folder,
    writable,
    write_errors,
)
from finetune.runtime.strict_json import dumps

FILES = ("results.json", "predictions.jsonl", "report.md", "index.html")
OURS = re.compile(
    r"results\.json|predictions\.jsonl|report\.md|index\.html|\.lock|\..*\.half"
    r"|(subjects|confusion)(_(train|validation|test|held_back|all))?\.png"
)


@dataclass
class Report:
    """An exam and what it is to be read with.

    Args:
        facts: label -> value, of the model and the exam, in Chinese.
        results: figures of each set of questions (`examining.figures`), by its name.
        sittings: of each set, the model's sitting and the other model's, or None.
        other: what the other model is called: 微調前, or a path.
        other_key: of the other model's answers in predictions.jsonl.
        history: of training, an entry an epoch; empty when it is not known.
        best_step: of training.
        notes: sentences that must stand beside every figure.
        growth: what a causal model gained on texts or replies.
        labels: how good a classifier is, figures by set.
        unscored: of questions without a key; their answers stand in predictions.jsonl.
    """

    facts: dict[str, str]
    results: dict[str, dict]
    sittings: dict[str, tuple[ExamResult, ExamResult | None]]
    other: str = BASE_MODEL_TITLE
    other_key: str = "untuned"
    history: Sequence[dict] = ()
    best_step: int = 0
    notes: list[str] = field(default_factory=list)
    growth: dict = field(default_factory=dict)  # of a causal model, see reports/perplexity.py
    labels: dict = field(default_factory=dict)  # see reports/classification.py
    unscored: ExamResult | None = None

    @property
    def heading(self) -> str:
        return "測驗報告" if self.asked() else "分類報告" if self.labels else "訓練報告"

    def __post_init__(self):
        self.labels = in_order(self.labels)

    def asked(self) -> dict[str, dict]:
        """The sets that hold questions."""
        return in_order({name: found for name, found in self.results.items() if found})

    def chapters(self) -> list[Section]:
        """What is told of each set that holds questions."""
        return [
            Section(
                name, title_of(name), found, self.sittings[name][0], verdict_sentence(self, found),
                section_notes(self, found), score_rows(self, found), comparison(self, found),
                ranked(found["categories"]), ranked(found["subjects"]), order_bias(found), calibration(found),
            )
            for name, found in self.asked().items()
        ]  # fmt: skip


def of_training(card: RunCard, sittings: dict[str, Sequence[ExamResult]], progress) -> Report:
    """The report of the exam that ends a training run."""
    aim = card.objective or TASK_TITLES[card.task]
    facts = {
        "底模": card.base_model, "資料": card.dataset, "目標": aim,
        **({"作答方式": card.scoring} if any(card.results.values()) else {}),
        "訓練": f"{progress.step} 步、{progress.seconds:.0f} 秒；驗證最好的是第 {progress.best_step} 步",
    }  # fmt: skip
    pairs = {name: tuple(sat[:2]) for name, sat in sittings.items()}
    notes = [NOT_COMPARABLE] if card.pool == "all" else []
    if card.lineage:
        facts["來歷"] = as_line(card.lineage)
    return Report(
        facts, card.results, pairs, history=progress.course, best_step=progress.best_step, notes=notes,
        growth=card.growth, labels=card.labels,
    )  # fmt: skip


def check_folder(folder: str | Path, flag: str) -> None:
    """Refuses a folder in which this report would take the place of something else.

    Raises:
        UserError: a file of the same name that is of no report written here; no folder; not to be written.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{flag} {folder} 是一個檔案，應為資料夾")
    if not writable(folder):
        raise UserError(f"{flag} {folder} 不能寫入（唯讀，或沒有權限）；請換一個資料夾")
    there = [name for name in FILES if os.path.lexists(folder / name)]
    if there and not _is_report(folder):
        named = "、".join(there)
        raise UserError(
            f"{flag} {folder} 裡已有 {named}，而且不是這支程式寫的報告，會被換掉；請換一個資料夾或先移開"
        )


def _is_report(folder: Path) -> bool:
    try:
        found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and "facts" in found


def write(folder: Path, report: Report, way_on: str = "請清出空間，或換一個資料夾") -> None:
    """Writes everything into `folder`: results.json, predictions.jsonl, report.md with its pictures,
    index.html. A reader sees the former report or this one.

    Args:
        way_on: what can be done when it cannot be written.

    Raises:
        RunError: it cannot be written; the former report is as it was.
    """
    folder = Path(os.path.realpath(folder))
    kept = "；先前的報告沒有動" if _is_report(folder) else ""
    with write_errors(f"報告寫不進 {folder}", way_on + kept):
        half = hidden(folder, "half") if _is_replaced(folder) else folder / ".report.half"
        try:
            _write(new_folder(half), report)
            if _is_replaced(folder):
                replace_folder(half, folder)
            else:
                _move_in(half, folder)
        finally:
            shutil.rmtree(half, ignore_errors=True)


def _is_replaced(folder: Path) -> bool:
    """Whether a report takes the place of the whole folder: nothing but a report is in it, nobody works in
    it, and it can be exchanged.
    """
    if not folder.is_dir():
        return True
    return (
        all(map(OURS.fullmatch, os.listdir(folder)))
        and folder not in (Path.cwd(), *Path.cwd().parents)
        and not os.path.ismount(folder)
        and writable(folder.parent)
    )


def _move_in(half: Path, folder: Path) -> None:
    """Puts the files of a report among others, and takes away those of the former one that it has not."""
    flush_tree(half)
    names = os.listdir(half)
    for name in names:
        (half / name).replace(folder / name)
    for name in os.listdir(folder):
        if name not in names and OURS.fullmatch(name) and not name.startswith("."):
            (folder / name).unlink()
    flush_folder(folder)


def _write(folder: Path, report: Report) -> None:
    summary = {"facts": report.facts, "notes": report.notes, **report.results}
    if report.growth:
        summary["growth"] = report.growth
    if report.labels:
        summary["labels"] = report.labels
    write_json(folder / "results.json", summary)
    if report.asked() or report.unscored:
        _write_predictions(folder, report)
    if report.unscored and not report.asked():
        return  # nothing to draw
    pictures = {}
    for chapter in report.chapters():
        file = f"subjects_{chapter.name}.png" if len(report.asked()) > 1 else "subjects.png"
        if plots.plot_intervals(folder / file, chapter.subjects, chapter.found["model"]["chance"]):
            pictures[chapter.name] = file
    heat = _heat_maps(folder, report.labels)
    atomic_write(folder / "report.md", markdown(report, {**pictures, **heat}))
    shown = {name: (folder / file).read_bytes() for name, file in heat.items()}
    atomic_write(folder / "index.html", render(report, shown))


def _write_predictions(folder: Path, report: Report) -> None:
    """predictions.jsonl, an object a question."""
    answered = [(name, *pair) for name, pair in report.sittings.items()]
    answered += [("unscored", report.unscored, None)] if report.unscored else []
    with atomic_open(folder / "predictions.jsonl") as stream:
        for name, sitting, other in answered:
            for record in evaluator.records(sitting, other, report.other_key):
                stream.write(dumps({"set": name, **record}) + "\n")


def _heat_maps(folder: Path, labels: dict) -> dict[str, str]:
    """Draws who was taken for whom in each set of single labels. Returns the files, by the set's name."""
    files = {}
    for name, found in labels.items():
        file = f"confusion_{name}.png" if len(labels) > 1 else "confusion.png"
        names = list(found["per_class"])
        if not found["multi"] and plots.plot_confusion(folder / file, found["confusion"], names):
            files[name] = file
    return files


def write_json(path: Path, value: object) -> None:
    atomic_write(path, dumps(value, indent=1) + "\n")


def verdict(report: Report) -> list[str]:
    """The outcome in a few lines, for the screen: the sentence, then what it rests on."""
    lines = []
    for name, found in report.asked().items():
        lines.append(f"{title_of(name)}：{verdict_sentence(report, found)}")
        mine, (low, high) = found["model"], found["model"]["interval_95"]
        line = f"  {title_of(name)} {mine['n']} 題：{our_name(report, found)} "
        line += f"{mine['accuracy']:.3f}（95 % 區間 {low:.3f}–{high:.3f}），"
        if found["other"]:
            line += f"{report.other} {found['other']['accuracy']:.3f}，"
        line += (
            f"亂猜 {mine['chance']:.3f}，全答 {mine['majority_letter_is']} {mine['majority_letter']:.3f}，"
            f"全選最長 {mine['longest_option']:.3f}"
        )
        if found["option_only"]:
            line += f"，只看選項 {found['option_only']['accuracy']:.3f}"
        if found["paired"]:
            line += f"；McNemar p = {found['paired']['p_value']:.2g}"
        lines.append(line)
        if macro := found["macro_4"]:
            whole = "，與公布的算法相同" if macro["subjects"] == len(SUBJECTS) else "；公布的是 66 科"
            low, high = macro["interval_95"]
            line = f"  四大類平均（macro-4，{macro['subjects']} 科{whole}）{macro['macro_4']:.3f}"
            line += f"（{low:.3f}–{high:.3f}）"
            if found["other"]:
                line += f"，{report.other} {found['other_macro_4']['macro_4']:.3f}"
            lines.append(line)
        if bias := found["order_bias"]:
            lines.append(
                f"  換選項順序，{bias['flips']:.1%} 的題目答案會變；"
                f"照原順序 {bias['accuracy_as_written']:.3f}"
            )
        lines += [f"  {line}" for line in caveats(found)]
    return [*lines, *report.notes]


def markdown(report: Report, pictures: dict[str, str]) -> str:
    """report.md: the verdict on each set, its figures, every category and subject with its interval.

    Args:
        pictures: file of a set's subjects or of its confusion, by the set's name.
    """
    lines = [
        f"# {report.heading}",
        "",
        ("選項順序與校準的圖、最有把握的錯題、" if report.asked() else "")
        + "訓練曲線等等，見 [index.html](index.html)。",
        "",
    ]
    lines += [f"- {label}：{escaped(value)}" for label, value in report.facts.items()]
    for chapter in report.chapters():
        lines += ["", f"## {escaped(chapter.title)}", "", f"**{escaped(chapter.verdict)}**", ""]
        lines += [f"- {escaped(remark)}" for remark in chapter.notes]
        lines += _table("", chapter.score_rows)
        lines += ["", *(f"- {escaped(label)}：{value}" for label, value in chapter.comparison)]
        lines += [f"- 選項順序：{chapter.order_bias}", f"- 校準：{chapter.calibration}"]
        if chapter.name in pictures:
            lines += ["", f"![各科正確率]({pictures[chapter.name]})"]
        lines += _table("類別", chapter.categories) + _table("科目", chapter.subjects)
    for name, found in report.labels.items():
        lines += ["", f"## {classification_report.title_of(name)}", ""]
        lines += [f"**{escaped(label_verdict(found, small))}**", ""]
        lines += [
            f"- {escaped(remark)}" for remark in [*report.notes, *classification_report.notes(name, found)]
        ]
        lines += ["", *overview_table(found, percent), "", *table(found, percent)]
        lines += ["", *confusion_table(found)]
        if name in pictures:
            lines += ["", f"![混淆矩陣]({pictures[name]})"]
    if report.labels:
        lines += ["", AVERAGES]
    if report.growth:
        lines += [
            "",
            f"## {perplexity.TITLE}",
            "",
            perplexity.meaning(report.growth),
            "",
            *perplexity.table(report.growth),
        ]
        if report.growth["samples"]:
            lines += ["", f"## {perplexity.samples_title(report.growth)}", ""]
            lines += perplexity.samples(report.growth)
    return "\n".join([*lines, ""])


def _table(what: str, rows: Sequence[ScoreRow]) -> list[str]:
    """Lines of a table, an empty one before it; none without rows."""
    if not rows:
        return []
    lines = ["", f"| {what} | 題數 | 正確率 | 95 % 區間 |", "|---|--:|--:|--:|"]
    for row in rows:
        interval = "–".join(map(percent, row.interval))
        lines.append(f"| {escaped(row.label)} | {row.n or ''} | {percent(row.accuracy)} | {interval} |")
    return lines
