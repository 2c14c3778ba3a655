"""Report of two files of answers (--compare): in words, in tables, and as files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.data.subjects import CATEGORIES, subject_title
from finetune.evaluation.answer_comparison import Joined, moved_records
from finetune.evaluation.answer_files import TITLES, AnswerFile
from finetune.evaluation.metrics import CERTAIN, SIGNIFICANT
from finetune.reports import report_folder
from finetune.reports.number_format import counted, percent, points, small
from finetune.reports.report_folder import ReportFiles
from finetune.runtime.errors import listed
from finetune.runtime.files import atomic_write
from finetune.runtime.strict_json import dumps

FIRST, SECOND = "甲", "乙"
SIDES = (("first", FIRST), ("second", SECOND))
STANDINGS = {
    "right": "答對", "partly": "部分答對", "wrong": "答錯", "unreadable": "看不出選了哪一個",
    "truncated": "沒寫完", "refused": "沒有作答",
}  # fmt: skip
LISTED = 10  # questions of each kind on the page
NAMES = ("compare.json", "moved.jsonl", "report.md", "index.html")
OF_COMPARISON = ReportFiles(
    NAMES,
    re.compile(r"compare\.json|moved\.jsonl|report\.md|index\.html|\.lock|\..*\.half"),
    "compare.json",
    "這支程式寫的比較報告",
)


@dataclass
class ComparisonReport:
    """Comparison of two files, as the templates and the screen show it.

    Args:
        first: one file of answers.
        second: the other one.
        joined: their questions.
        figures: of `answer_comparison.compare`.
    """

    first: AnswerFile
    second: AnswerFile
    joined: Joined
    figures: dict[str, Any]
    heading: str = "比較報告"
    moved: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self):
        self.moved = moved_records(self.joined)

    @property
    def facts(self) -> dict[str, str]:
        """What is compared, in words."""
        return {name: _fact(file) for name, file in ((FIRST, self.first), (SECOND, self.second))}

    @property
    def summary(self) -> dict[str, Any]:
        """The object of compare.json and of --json."""
        files = {"first_file": _described(self.first), "second_file": _described(self.second)}
        return {"facts": self.facts, **files, **self.figures}


def _fact(file: AnswerFile) -> str:
    parts = f"，{len(file.files)} 個檔案" if len(file.files) > 1 else ""
    runs = f"，共作答 {file.rows} 次" if file.rows > len(file.answers) else ""
    return f"{file.path}（{TITLES[file.layout]}{parts}，{len(file.answers)} 題{runs}）"


def _described(file: AnswerFile) -> dict[str, Any]:
    return {
        "path": file.path, "layout": file.layout, "files": [str(path) for path in file.files],
        "questions": len(file.answers), "answers": file.rows, "without_key": file.keyless,
        "unreadable_rows": file.bad,
    }  # fmt: skip


# ---- in words ----------------------------------------------------------------------------------------------


def verdict(figures: dict[str, Any]) -> str:
    """Return the outcome in one sentence."""
    changed = figures["key_changed"]["n"]
    if not figures["paired"]:
        return f"共同的 {changed} 題，兩份的正解都不同，無從比較誰答得好。"
    first, second, pair = figures["first"], figures["second"], figures["paired"]
    text = f"共同的 {figures['joined']} 題，"
    text += f"{FIRST}答對 {counted(first['right'])} 題（{small(first['accuracy'])}），"
    text += f"{SECOND}答對 {counted(second['right'])} 題（{small(second['accuracy'])}）"
    p, gap = pair["p_value"], pair["difference"]
    if not figures["moved"]:
        return f"{text}：每一題的對錯都相同。"
    if p >= SIGNIFICANT:
        return f"{text}：相差 {points(abs(gap)).lstrip('+')} 個百分點，分不出高下（p = {p:.2g}）。"
    sure = "極不可能只是運氣" if p < CERTAIN else f"不像是運氣（p = {p:.2g}）"
    better, worse = (FIRST, SECOND) if gap > 0 else (SECOND, FIRST)
    return f"{text}：{better}高於{worse} {points(abs(gap)).lstrip('+')} 個百分點，差異{sure}。"


def comparison_rows(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (label, value) of the paired test and of the differences, the first's − the second's."""
    if not (pair := figures["paired"]):
        return []
    rows = []
    for key, title in (("difference", "每題平均"), ("macro_4_difference", "四大類平均")):
        if key in pair:
            rows.append((f"{title}的差異（{FIRST} − {SECOND}）", _gap(pair, key)))
    p = pair["p_value"]
    return [
        *rows,
        (f"只有{FIRST}答對，或{FIRST}得分較高", f"{pair['only_first_right']} 題"),
        (f"只有{SECOND}答對，或{SECOND}得分較高", f"{pair['only_second_right']} 題"),
        ("McNemar 檢定", f"p = {p:.2g}" if p >= CERTAIN else f"p < {CERTAIN:.4f}"),
    ]


def _gap(figures: dict[str, Any], key: str = "difference") -> str:
    gap, low, high = map(points, (figures[key], *figures[f"{key}_interval_95"]))
    return f"{gap} 個百分點（95 % 區間 {low} 到 {high}）"


def subject_note(figures: dict[str, Any]) -> str:
    """Return which subjects differ after the correction for their number; "" where there is but one."""
    subjects = figures["subjects"]
    if len(subjects) < 2:
        return ""
    rows = {name: row for name, row in subjects.items() if row["p_holm"] < SIGNIFICANT}
    single = sum(row["p_value"] < SIGNIFICANT for row in subjects.values())
    chance = f"{SIGNIFICANT * len(subjects):.2g} 科的 p 小於 {SIGNIFICANT}"
    text = f"一次檢定 {len(subjects)} 科，全無差異時也會有約 {chance}；這裡有 {single} 科。經 Holm 校正後"
    if not rows:
        return f"{text}，沒有一科能說有高下。"
    names = listed(
        (f"{subject_title(name)}（{points(row['difference'])}）" for name, row in rows.items()), 10
    )
    return f"{text}仍有高下的是 {len(rows)} 科：{names}。"


def notes(report: ComparisonReport) -> list[str]:
    """Return what must stand beside the figures."""
    figures, lines = report.figures, []
    for key, name in (("only_first", FIRST), ("only_second", SECOND)):
        if (only := figures[key])["n"]:
            lines.append(f"只有{name}有的 {only['n']} 題沒有比較：{_examples(only['ids'], only['n'])}")
    changed = figures["key_changed"]
    if changed["n"]:
        by_first, by_second = changed["accuracy_by_key_of_first"], changed["accuracy_by_key_of_second"]
        ids = _examples([row["first"]["id"] for row in changed["questions"]], changed["n"])
        lines.append(
            f"{changed['n']} 題的正解兩份不同（題庫版本不同？），不列入上面的比較：{ids}。"
            f"照{FIRST}的正解，{FIRST} {small(by_first['first'])}、{SECOND} {small(by_first['second'])}；"
            f"照{SECOND}的正解，{FIRST} {small(by_second['first'])}、{SECOND} {small(by_second['second'])}"
        )
    if figures["joined_by"] == "id":
        lines.append("舊版的 predictions.jsonl 沒有題目的指紋：兩份依編號對應，請確定出自同一份題庫")
    if count := figures["repeated_questions"]:
        lines.append(f"{count} 題與同一份裡的另一題內容相同：先依編號、再依順序對應，每一題都計入")
    if left := figures["sets_left_out"]:
        sets = "、".join(f"{name or '未註明'} {count} 題" for name, count in left.items())
        lines.append(f"另有別的部分沒有比較（{sets}）；以 --split 指定要比的部分，--split all 全部都比")
    for file, name in ((report.first, FIRST), (report.second, SECOND)):
        if file.bad:
            lines.append(f"{name}有 {len(file.bad)} 處無法讀取，沒有比較：{listed(file.bad, 3)}")
        if file.keyless:
            lines.append(f"{name}有 {file.keyless} 題沒有正解，沒有比較")
        if file.other_filters:
            lines.append(
                f"{name}的每個回答以幾種 filter 各計分一次，只取第一種；沒有用 {listed(file.other_filters)}"
            )
    return lines


def _examples(ids: Sequence[str], count: int) -> str:
    return "、".join(ids[:5]) + (" …" if count > 5 else "")


def screen_lines(report: ComparisonReport) -> list[str]:
    """Return the comparison for the screen: the verdict, the figures that it rests on, notes."""
    figures = report.figures
    lines = [verdict(figures), *(f"  {name}：{fact}" for name, fact in report.facts.items())]
    for key, name in SIDES:
        if scores := figures[key]:
            low, high = scores["interval_95"]
            line = f"  {name} {scores['accuracy']:.3f}（95 % 區間 {low:.3f}–{high:.3f}）"
            if macro := figures["macro_4"].get(key):
                low, high = macro["interval_95"]
                line += f"，四大類平均（macro-4，{macro['subjects']} 科）{macro['macro_4']:.3f}"
                line += f"（{low:.3f}–{high:.3f}）"
            lines.append(line)
    lines += [f"  {label}：{value}" for label, value in comparison_rows(figures)]
    if note := subject_note(figures):
        lines.append(f"  {note}")
    return [*lines, *(f"  {note}" for note in notes(report))]


# ---- in tables ---------------------------------------------------------------------------------------------


def group_columns(title: str) -> list[str]:
    """Return the head of the table of subjects or categories."""
    return [title, "題數", FIRST, SECOND, "差（百分點）", "95 % 區間", "p", "p（Holm）"]


def group_rows(groups: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Return the rows of that table, the largest difference in favour of the first on top."""
    ranked = sorted(groups.items(), key=lambda item: -item[1]["difference"])
    return [
        [
            CATEGORIES.get(name) or subject_title(name), str(row["n"]), percent(row["first"]["accuracy"]),
            percent(row["second"]["accuracy"]), points(row["difference"]),
            " 到 ".join(map(points, row["difference_interval_95"])),
            p_value(row["p_value"]), p_value(row["p_holm"]),
        ]
        for name, row in ranked
    ]  # fmt: skip


def p_value(p: float) -> str:
    """Write a p-value with two digits."""
    return f"< {CERTAIN:.4f}" if p < CERTAIN else f"{p:.2g}"


def standing_columns(figures: dict[str, Any]) -> list[str]:
    """Return the head of the table of how questions fared in both files."""
    return ["", *(f"{SECOND}：{STANDINGS.get(name, name)}" for name in figures["outcomes"])]


def standing_rows(figures: dict[str, Any]) -> list[list[str]]:
    """Return the rows of that table, in numbers of questions."""
    return [
        [f"{FIRST}：{STANDINGS.get(name, name)}", *map(str, counts.values())]
        for name, counts in figures["outcomes"].items()
    ]


def moved_lists(report: ComparisonReport) -> list[tuple[str, int, list[dict[str, Any]]]]:
    """Return (title, number, the first questions) of those that one file has right, and of changed keys."""
    lists = []
    for kind, title in (
        ("only_first", f"{FIRST}答對、{SECOND}答錯"), ("only_second", f"{SECOND}答對、{FIRST}答錯"),
        ("more_first", f"{FIRST}得分較高"), ("more_second", f"{SECOND}得分較高"),
    ):  # fmt: skip
        rows = [row for row in report.moved if row["moved"] == kind]
        lists.append((title, len(rows), rows[:LISTED]))
    changed = report.figures["key_changed"].get("questions", [])
    lists.append(("正解不同", len(changed), changed[:LISTED]))
    return [one for one in lists if one[1]]


def marks(row: dict[str, Any], letter: str) -> str:
    """Return what is to be said of an option: whose key it is, who chose it."""
    golds = [name for key, name in SIDES if row[key]["gold"] == letter]
    said = ["正解" if len(golds) == 2 else f"{golds[0]}的正解"] if golds else []
    for key, name in SIDES:
        chosen = row[key]["prediction"]
        count = sum(letter in (one or "").split("=") for one in chosen)
        if count:
            said.append(f"{name}選" + (f" {count}/{len(chosen)} 次" if len(chosen) > 1 else ""))
    return "、".join(said)


def unread(row: dict[str, Any]) -> str:
    """Return whose answer names no option, with the reason; "" where both do."""
    return "、".join(
        f"{name}{STANDINGS.get(row[key]['outcome'], row[key]['outcome'])}"
        for key, name in SIDES
        if not any(row[key]["prediction"])
    )


# ---- as files ----------------------------------------------------------------------------------------------


def write(folder: Path, report: ComparisonReport) -> None:
    """Write compare.json, moved.jsonl, report.md and index.html into a folder.

    Raises:
        RunError: they cannot be written.
    """
    report_folder.write(
        folder, OF_COMPARISON, lambda staging: _write(staging, report), "請清出空間，或換一個資料夾"
    )


def _write(folder: Path, report: ComparisonReport) -> None:
    from finetune.reports.html import embedded
    from finetune.reports.templates import template

    atomic_write(folder / "compare.json", dumps(report.summary, indent=1) + "\n")
    atomic_write(folder / "moved.jsonl", "".join(dumps(row) + "\n" for row in report.moved))
    variables = {
        "report": report, "figures": report.figures, "verdict": verdict(report.figures),
        "notes": notes(report), "pairs": comparison_rows(report.figures),
        "subject_note": subject_note(report.figures),
        "standing_table": (standing_columns(report.figures), standing_rows(report.figures)),
        "groups": [
            (title, group_columns(column), group_rows(report.figures[key]))
            for key, title, column in (("categories", "各大類", "類別"), ("subjects", "各科", "科目"))
            if report.figures[key]
        ],
        "moved_lists": moved_lists(report), "sides": SIDES, "marks": marks, "unread": unread,
    }  # fmt: skip
    atomic_write(folder / "report.md", template("comparison.md.j2").render(variables))
    page = template("comparison.html.j2")
    atomic_write(
        folder / "index.html", page.render(variables, font=embedded(page.render(variables, font="")))
    )
