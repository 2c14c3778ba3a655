"""Inspect an exam before training (--inspect): sizes, balance, duplicates, coverage, suspect rows."""

from __future__ import annotations

import math
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from finetune.cli.inference_args import InferenceArgs
from finetune.data.contamination import NEAR, TrainedQuestions
from finetune.data.exam import Exam
from finetune.data.question import LETTERS, Question, normalised
from finetune.data.subjects import subject_title
from finetune.prompts.causal_exam import CausalExamPrompts
from finetune.prompts.exam import ExamPrompts, unknown_parts
from finetune.prompts.option_order import PromptError, refers_to_other_options
from finetune.runtime.console import as_json, print_result
from finetune.runtime.text_width import align_table, display_width

USUAL_OPTIONS = 4
SHORT_STEM = 2  # characters
UNKNOWN_SHOWN = 40  # characters a model does not know
ROWS_SHOWN = 20  # rows of each kind on the screen; JSON has them all


def show_exam(flags: InferenceArgs, exam: Exam, load: Callable[[], ExamPrompts | CausalExamPrompts]) -> int:
    """Print the inspection of an exam. Returns the exit code, 2 when rows are unusable.

    Args:
        load: makes the exam prompts of the model of --model_path; called only when that was given.
    """
    inspection = inspect_exam(exam)
    if "model_path" in flags.given:
        inspection["model"] = {"path": flags.model_path, **tokenizer_coverage(exam, load())}
    print_result(as_json(inspection) if flags.json else format_exam_inspection(inspection))
    return 2 if inspection["unusable"] else 0


def inspect_exam(exam: Exam) -> dict[str, Any]:
    """Inspect an exam without a model. Rows are named by their ids: subject/split/line."""
    splits = {split or "all": rows for split, rows in exam.questions.items() if rows}
    everything = [(split, question) for split, rows in splits.items() for question in rows]
    keyless = {split or "all": len(rows) for split, rows in exam.keyless.items() if rows}
    questions = _all(exam)
    return {
        "origin": exam.origin,
        "rows": len(everything),
        "keyless": keyless,
        "read_as": exam.notes,
        "unusable": exam.skipped,
        "splits": {split: _balance(rows) for split, rows in splits.items()},
        "subjects": _subjects(splits),
        "duplicates": _duplicates(everything),
        "near_duplicates": _near_duplicates(everything),
        "suspect": _suspect(questions),
        "speaks_of_others": sum(any(map(refers_to_other_options, q.options)) for q in questions),
    }


def _all(exam: Exam) -> list[Question]:
    """Return every question, those without an answer last."""
    return [
        question for parts in (exam.questions, exam.keyless) for rows in parts.values() for question in rows
    ]


def _balance(rows: Sequence[Question]) -> dict[str, Any]:
    """Count rows and subjects, and the share of each letter in the key."""
    key = Counter(LETTERS[question.answer] for question in rows if question.answer is not None)
    return {
        "rows": len(rows),
        "subjects": len({question.subject for question in rows}),
        "answers": {letter: key[letter] / len(rows) for letter in sorted(key)},
    }


def _subjects(splits: dict[str, Sequence[Question]]) -> dict[str, dict[str, int]]:
    """Count the questions of each subject, by split."""
    counts: dict[str, dict[str, int]] = defaultdict(dict)
    for split, rows in splits.items():
        for subject, count in Counter(question.subject for question in rows).items():
            counts[subject][split] = count
    return dict(sorted(counts.items()))


def _duplicates(everything: list[tuple[str, Question]]) -> dict[str, list[list[str]]]:
    """Group the ids of questions that are the same.

    `within` one split; `between` splits, which leaks test questions into training; `contradict`: groups whose
    keys differ.
    """
    groups: dict[str, list[tuple[str, Question]]] = defaultdict(list)
    for split, question in everything:
        groups[question.fingerprint].append((split, question))
    repeated = [group for group in groups.values() if len(group) > 1]
    return {
        "within": [_ids(group) for group in repeated if len({split for split, _ in group}) == 1],
        "between": [_ids(group) for group in repeated if len({split for split, _ in group}) > 1],
        "contradict": [
            _ids(group)
            for group in repeated
            if len({normalised(q.options[q.answer]) for _, q in group if q.answer is not None}) > 1
        ],
    }


def _ids(group: Iterable[tuple[str, Question]]) -> list[str]:
    return [question.id for _, question in group]


def _near_duplicates(everything: list[tuple[str, Question]]) -> list[str]:
    """Return the ids of questions that share NEAR or more of their 5-grams with another one."""
    known = TrainedQuestions.of(question for _, question in everything)
    return [question.id for _, question in everything if known.find(question, exact=False)[0]]


def _suspect(questions: list[Question]) -> dict[str, list[str]]:
    """Return rows that are usable, but that someone should look at: kind -> ids."""
    signs: dict[str, Callable[[Question], bool]] = {
        "equal_options": lambda q: len({" ".join(text.split()) for text in q.options}) < len(q.options),
        "more_than_four_options": lambda q: len(q.options) > USUAL_OPTIONS,
        "fewer_than_four_options": lambda q: len(q.options) < USUAL_OPTIONS,
        "short_stem": lambda q: len(normalised(q.stem)) < SHORT_STEM,
        "odd_characters": lambda q: any(map(_has_bad_characters, (q.stem, *q.options))),
    }
    return {kind: [q.id for q in questions if sign(q)] for kind, sign in signs.items()}


def _has_bad_characters(text: str) -> bool:
    """Return True for a text with a replacement, control or private-use character."""
    return any(c == "\ufffd" or (unicodedata.category(c) in ("Cc", "Co") and c not in "\n\r\t") for c in text)


# ---- with a model ------------------------------------------------------------------------------------------


def tokenizer_coverage(exam: Exam, prompts: ExamPrompts | CausalExamPrompts) -> dict[str, Any]:
    """Check how a model's tokenizer reads the questions.

    Characters it does not know, lengths in tokens, which questions would be shortened or could not be used at
    the length of `prompts`, which have options that are the same to it.

    Raises:
        UserError: the tokenizer has no token that can stand for an option.
    """
    from finetune.evaluation.scoring import indistinguishable_options  # brings torch

    questions = _all(exam)
    tokenizer = prompts.tokenizer
    unknown: Counter[str] = Counter()
    subjects: dict[str, list[bool]] = defaultdict(list)
    lengths: list[int] = []
    shortened: list[str] = []
    skipped: list[str] = []
    same: list[str] = []
    whole = replace(prompts, max_length=sys.maxsize)
    for question in questions:
        missing = [
            word for text in (question.stem, *question.options) for word in unknown_parts(tokenizer, text)
        ]
        unknown.update(missing)
        subjects[question.subject].append(bool(missing))
        order = range(len(question.options))
        lengths.append(len(whole.mcq_prompt(question, order).ids))
        if indistinguishable_options(prompts, question):
            same.append(question.id)
        try:
            if prompts.mcq_prompt(question, order).cut:
                shortened.append(question.id)
        except PromptError:
            skipped.append(question.id)
    lengths.sort()
    rates = {subject: sum(rows) / len(rows) for subject, rows in subjects.items()}
    return {
        "max_length": prompts.max_length,
        "with_unknown": sum(map(sum, subjects.values())) / len(questions),
        "unknown": dict(unknown.most_common()),
        "with_unknown_by_subject": dict(sorted(rates.items(), key=lambda item: -item[1])),
        "tokens": {
            "median": median(lengths), "p90": lengths[math.ceil(0.9 * len(lengths)) - 1],
            "longest": lengths[-1],
        },
        "shortened": shortened,
        "skipped": skipped,
        "indistinguishable": same,
    }  # fmt: skip


# ---- as text -----------------------------------------------------------------------------------------------

KINDS = {
    "equal_options": "選項相同", "more_than_four_options": "選項多於 4 個（D 之後還有）",
    "fewer_than_four_options": "選項少於 4 個", "short_stem": "題幹太短",
    "odd_characters": "有控制字元或亂碼",
}  # fmt: skip


def format_exam_inspection(inspection: dict[str, Any]) -> str:
    """Format an inspection as tables for the screen (they are Markdown too)."""
    letters = sorted({letter for split in inspection["splits"].values() for letter in split["answers"]})
    lines = [f"題庫 {inspection['origin']}：{inspection['rows']} 題，{len(inspection['subjects'])} 科"]
    if inspection["keyless"]:
        counts = "、".join(f"{split} {count}" for split, count in inspection["keyless"].items())
        lines.append(f"另有無答案的題目：{counts}")
    lines += [f"讀法：{note}" for note in inspection["read_as"]] + [""]
    lines += table(
        ["部分", "題數", "科數", *(f"答案 {letter}" for letter in letters)],
        [
            [name, row["rows"], row["subjects"], *(f"{row['answers'].get(x, 0):.1%}" for x in letters)]
            for name, row in inspection["splits"].items()
        ],
    )
    names = list(inspection["splits"])
    lines += table(
        ["科目", *names],
        [
            [subject_title(subject), *(counts.get(name, 0) for name in names)]
            for subject, counts in inspection["subjects"].items()
        ],
    )
    duplicates = inspection["duplicates"]
    checks = [
        ("用不了的列", inspection["unusable"]),
        ("同一部分裡重複的題目", [" = ".join(group) for group in duplicates["within"]]),
        ("跨部分重複的題目（訓練與測驗會互相洩題）", [" = ".join(group) for group in duplicates["between"]]),
        ("重複而答案互相矛盾", [" ≠ ".join(group) for group in duplicates["contradict"]]),
        (f"幾乎相同的題目（5-gram 重疊 {NEAR:.0%} 以上）", inspection["near_duplicates"]),
        *((KINDS[kind], ids) for kind, ids in inspection["suspect"].items()),
    ]
    lines += table(["檢查", "筆數"], [[name, len(rows)] for name, rows in checks])
    lines += [
        f"選項提到別的選項（以上皆是、A與C）：{inspection['speaks_of_others']} 題，換順序時留在原位",
        "",
    ]
    if model := inspection.get("model"):
        lines += _coverage_lines(model)
    if any(rows for _, rows in checks):
        lines += ["題目的編號是 科目（或檔名）/部分/行號。", ""]
    for name, rows in checks:
        if rows:
            more = f"（前 {ROWS_SHOWN} 筆，全部見 --json）" if len(rows) > ROWS_SHOWN else ""
            lines += [f"{name}{more}：", *(f"  - {row}" for row in rows[:ROWS_SHOWN]), ""]
    return "\n".join(lines).rstrip()


def _coverage_lines(model: dict[str, Any]) -> list[str]:
    """Format what `tokenizer_coverage` returned."""
    tokens = model["tokens"]
    shown = list(model["unknown"].items())[:UNKNOWN_SHOWN]
    worst = [(subject, rate) for subject, rate in model["with_unknown_by_subject"].items() if rate][:5]
    lines = [
        f"模型 {model['path']}，一題最長 {model['max_length']} 個 token",
        f"  長度：中位數 {tokens['median']:g}，九成以下 {tokens['p90']}，最長 {tokens['longest']} 個 token",
        f"  要縮短題幹：{len(model['shortened'])} 題；連選項都放不下：{len(model['skipped'])} 題",
        f"  含有 [UNK] 的題目：{model['with_unknown']:.1%}",
    ]
    if same := model["indistinguishable"]:
        more = f" 等 {len(same)} 題" if len(same) > ROWS_SHOWN else ""
        lines.append(f"  選項是同樣的 token、模型分不出來（算並列）：{'、'.join(same[:ROWS_SHOWN])}{more}")
    if worst:
        lines.append("  最多的科目：" + "、".join(f"{subject_title(s)} {rate:.0%}" for s, rate in worst))
    if shown:
        lines.append("  不認得的字：" + " ".join(f"{word}×{count}" for word, count in shown))
    return [*lines, ""]


def table(header: list[str], rows: list[list[Any]]) -> list[str]:
    """Return the lines of a Markdown table, and an empty one."""
    aligned = align_table([[str(cell) for cell in row] for row in [header, *rows]])
    lines = [f"| {' | '.join(row)} |" for row in aligned]
    rule = "|".join("-" * (display_width(cell) + 2) for cell in aligned[0])
    return [lines[0], f"|{rule}|", *lines[1:], ""]
