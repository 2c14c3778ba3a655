"""Exam questions: read from the hub, a folder or a file; chosen by subject; split without leaking.

Text stays text: nothing guesses types, so the options `NA`, `None`, `1.0` and `無` arrive as they were
written.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from finetune.data import hub_dataset
from finetune.data.bad_rows import Unreadable, abridged, too_many, where
from finetune.data.data_files import DataFile, nothing_in, stem_of
from finetune.data.question import Question, Statement, as_dict
from finetune.data.question_columns import find_columns
from finetune.data.question_rows import NOT_ASKED, Draft, Reading, Survey, draft
from finetune.data.question_store import QuestionStore, QuestionView, as_view, concat
from finetune.data.subjects import CATEGORIES, category_of, chinese_name
from finetune.runtime.console import log
from finetune.runtime.errors import UserError, listed, nearest
from finetune.runtime.file_types import suffix_of
from finetune.runtime.files import atomic_open
from finetune.runtime.strict_json import dumps

SPLITS = {"dev": "train", "train": "train", "val": "validation", "validation": "validation", "test": "test"}


@dataclass
class Exam:
    """Questions by official split, and where they came from.

    Attributes:
        told: sentences a model may read.
        keyless: questions without an answer, by split: they can be asked, and neither taught nor scored.
        notes: what was interpreted in reading, in words.
        columns: those of the first question, for messages.
        dev: the split that files called so are in.
    """

    questions: dict[str, Sequence[Question]]
    origin: str
    skipped: list[str] = field(default_factory=list)
    statements: list[Statement] = field(default_factory=list)
    keyless: dict[str, Sequence[Question]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    dev: str = "train"

    def split(self, name: str) -> str:
        """The official name of a split that a person calls `dev`, `val` or `test`."""
        return self.dev if name == "dev" else SPLITS.get(name, name)

    def __len__(self) -> int:
        return sum(map(len, self.questions.values()))

    def need_answers(self, named: str) -> None:
        """Raises UserError where no question has an answer."""
        if not len(self):
            count = sum(map(len, self.keyless.values()))
            raise UserError(
                f"{named}：{count} 題都沒有答案（少了欄位 answer，有的是 {listed(self.columns)}）；"
                "訓練要有答案"
            )


# ---- reading -----------------------------------------------------------------------------------------------


def read_exam(
    source: str,
    revision: str = "v1.1",
    subjects: str = "all",
    on_bad_rows: str = "fail",
    flag: str = "--dataset",
    answers_from: str = "auto",
) -> Exam:
    """Questions from a hub name, a folder in TMMLU+'s layout, or one csv/json/jsonl/parquet file.

    Args:
        source: `ikala/tmmluplus`, `./folder` ({subject}_{dev,val,test}.csv, also in data/ below it) or
            `./file.csv`.
        revision: of the hub data set.
        subjects: `all`, or subject and category names (English or Chinese) separated by commas.
        on_bad_rows: `fail` raises with every bad row; `skip` leaves them out and keeps their reasons in
            `skipped`.
        flag: what named the source, for messages.
        answers_from: `0` or `1`, the number of the first option in integer answers; `auto` looks at all rows.

    Raises:
        UserError: nothing there, bad rows, unknown subjects, integers that may count from 0 or from 1.
    """
    folder, files, origin = hub_dataset.find_files(source, revision, flag)
    if not files:
        layout = "（要 {科目}_{dev,val,test}.csv 之類的題目檔）"
        raise UserError(nothing_in(folder, f"{flag} {source}") + layout)
    wanted = _choose_files(_by_split(files), subjects)
    told = None if answers_from == "auto" else int(answers_from)
    found = _Reader(Reading())
    found.read(wanted)
    reading = found.survey.reading(f"{flag} {source}", told)
    notes = found.survey.notes(reading, told)
    if reading != found.reading:  # only now is it known how the rows are meant
        found = _Reader(reading)
        found.read(wanted)
    if notes:
        log(f"{flag} {source} 的讀法：{'；'.join(notes)}")
    problems = found.problems
    if problems and on_bad_rows == "fail":
        raise UserError(too_many(problems, found.count, "題"))
    both = [(True, split) for split in found.questions] + [(False, split) for split in found.keyless]
    rows = {key: (found.questions if key[0] else found.keyless)[key[1]] for key in both}
    kept = choose_rows(rows, subjects)
    questions, keyless = (
        {split: some for (has, split), some in kept.items() if has is key} for key in (True, False)
    )
    if not any(questions.values()) and not any(keyless.values()):
        names = "、".join(file.path.name for file in wanted[:3])
        raise UserError(abridged(problems) or f"{flag} {source}：一題也沒有（{names}）")
    return Exam(
        questions, origin, problems, dev=_dev_of(files), keyless=keyless, notes=notes, columns=found.columns
    )


@dataclass
class _Reader:
    """The questions of files, read in one way; those without an answer apart."""

    reading: Reading
    survey: Survey = field(default_factory=Survey)
    questions: dict[str, QuestionView] = field(default_factory=dict)
    keyless: dict[str, QuestionView] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    shelf: QuestionStore = field(default_factory=QuestionStore)

    @property
    def count(self) -> int:
        return sum(map(len, [*self.questions.values(), *self.keyless.values()]))

    def read(self, files: Iterable[DataFile]) -> None:
        """A row that is no question adds `file:line：reason` to `problems`. So does one whose answer is
        blank, unless no row of its file has one; `-1` and `-` say on purpose that there is none.
        """
        for file in files:
            kept, lines, keyed = (
                QuestionView(shelf=self.shelf),
                array("L"),
                False,
            )  # lines: 0 where it is on purpose
            for line, drafted in self._drafts(file):
                try:
                    question = drafted.question(self.reading, str(file.path))
                except ValueError as error:
                    self.problems.append(f"{where(file.path, line)}：{error}")
                    keyed = True
                    continue
                if question.answer is not None:
                    keyed = True
                    self.questions.setdefault(file.split, QuestionView(shelf=self.shelf)).append(question)
                else:
                    kept.append(question)
                    lines.append(line if drafted.key.blank else 0)
            if keyed:
                self.problems += [f"{where(file.path, line)}：answer 是空的" for line in lines if line]
                kept = kept.pick(place for place, line in enumerate(lines) if not line)
            if len(kept):
                former = self.keyless.get(file.split, QuestionView(shelf=self.shelf))
                self.keyless[file.split] = concat([former, kept])

    def _drafts(self, file: DataFile) -> Iterator[tuple[int, Draft]]:
        seen, stem = False, file.subject or stem_of(file.path)
        for line, row in file.rows():
            if isinstance(row, dict) and not seen:
                seen, self.columns = True, self.columns or list(map(str, row))
                if suffix_of(file.path) not in (".json", ".jsonl") and not find_columns(tuple(row)).asked:
                    self.problems.append(f"{file.path}：{NOT_ASKED}，有的是 {listed(row)}")
                    return  # all its rows have the same columns
            if isinstance(row, Unreadable):
                self.problems.append(f"{where(file.path, line)}：{row}")
                continue
            try:
                drafted = draft(row, file.subject, f"{stem}/{file.split or 'all'}/{line}")
            except ValueError as error:
                self.problems.append(f"{where(file.path, line)}：{error}")
                continue
            self.survey.add(drafted, str(file.path), where(file.path, line))
            yield line, drafted


def _by_split(files: list[DataFile]) -> list[DataFile]:
    """The files in the splits and subjects of an exam: those without a split are left out where others have
    one.
    """
    named = [file for file in files if file.split]
    if named and (others := [file.path.name for file in files if not file.split]):
        count = f" 等 {len(others)} 個檔案" if len(others) > 5 else ""
        log(f"略過 {'、'.join(others[:5])}{count}：名稱看不出是 dev、val 或 test，而資料夾裡有這樣的檔案")
    files = named or files
    configs = {file.config for file in files} - {""}
    if "all" in configs and len(configs) > 1:
        log("略過 all：它的題目也在別的資料夾裡")
        files = [file for file in files if file.config != "all"]
    dev = _dev_of(files)
    return [
        replace(
            file,
            split=dev if file.split == "dev" else file.split,
            subject=file.subject * bool(named) or file.config.split("/")[-1] * (len(configs) > 1),
        )
        for file in files
    ]


def _dev_of(files: list[DataFile]) -> str:
    """`dev` is to train on (TMMLU+, C-Eval) beside a `val`, and to choose by beside a `train` alone."""
    splits = {file.split for file in files}
    return "validation" if "train" in splits and "validation" not in splits else "train"


# ---- choosing subjects -------------------------------------------------------------------------------------


def _wanted_subjects(chosen: str, available: set[str]) -> set[str] | None:
    """The subjects named by --subjects, None for all.

    Raises:
        UserError: with each unknown name and the nearest known one.
    """
    names = [name.strip() for name in re.split(r"[,，、]", chosen) if name.strip()]
    if not names or "all" in names:
        return None
    by_name = {name: {name} for name in available}
    by_name |= {chinese_name(name): {name} for name in available}
    for category, chinese in CATEGORIES.items():
        members = {name for name in available if category_of(name) == category}
        by_name |= {category: members, chinese: members, chinese.split("（")[0]: members}
    problems = []
    for name in names:
        if name not in by_name:
            guess = nearest(name, by_name)
            there = "、".join(sorted(map(chinese_name, available)))
            hint = f"有的是：{there}" if there else "這份資料沒有註明科目"
            hint = f"是不是 {guess[0]}？" if guess else hint
            problems.append(f"--subjects：沒有 {name!r} 這個科目，{hint}")
        elif not by_name[name]:
            problems.append(f"--subjects：這份資料沒有 {name} 類的科目")
    if problems:
        raise UserError(problems)
    return set().union(*(by_name[name] for name in names))


def _choose_files(files: list[DataFile], subjects: str) -> list[DataFile]:
    available = {file.subject for file in files} - {""}
    if not available:  # subjects, if any, are a column; chosen once the rows are read
        return files
    wanted = _wanted_subjects(subjects, available)
    return [file for file in files if wanted is None or file.subject in wanted]


def choose_rows(questions: dict[str, Sequence[Question]], subjects: str) -> dict[str, Sequence[Question]]:
    found = {split: as_view(rows) for split, rows in questions.items()}
    wanted = _wanted_subjects(subjects, set().union(*(rows.subjects for rows in found.values())))
    return found if wanted is None else {split: rows.of_subjects(wanted) for split, rows in found.items()}


# ---- splitting ---------------------------------------------------------------------------------------------


def write_questions(path: Path, questions: Iterable[Question]) -> None:
    """test_qa_data.json: the rows a model will be examined on, for other tools."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_open(path) as file:
        file.write("[")
        for number, question in enumerate(questions):
            lines = dumps(as_dict(question), indent=1).split("\n")
            file.write((",\n " if number else "\n ") + "\n ".join(lines))
        file.write("\n]\n")
