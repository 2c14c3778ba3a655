"""Exam questions: read from the hub, a folder or a file, and chosen by subject.

Text stays text: no types are guessed, so the options `NA`, `None`, `1.0` and `無` arrive as they were
written.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.data import hub_dataset
from finetune.data.bad_rows import Unreadable, bad_rows_report, summarize_problems, where
from finetune.data.data_files import SHARD, DataFile, no_data_message, stem_of
from finetune.data.known_exams import KnownExam, default_revision, known_exam
from finetune.data.question import Question, Statement, as_dict
from finetune.data.question_columns import find_question_columns
from finetune.data.question_rows import NO_QUESTION_COLUMN, Draft, Reading, Survey, draft
from finetune.data.question_store import QuestionStore, QuestionView, as_view, concat
from finetune.data.subjects import CATEGORIES, category_of, chinese_name
from finetune.runtime.console import log
from finetune.runtime.errors import UserError, listed, nearest
from finetune.runtime.file_types import suffix_of
from finetune.runtime.files import atomic_open
from finetune.runtime.strict_json import dumps

if TYPE_CHECKING:
    from finetune.data.exam_revisions import RevisionJoin

AUXILIARY = "auxiliary_train"  # MMLU's rows of other datasets
TCEVAL = "tmmluplus-"  # begins the configurations of TCEval-v2 that are TMMLU+'s subjects
SPLITS = {"dev": "train", "train": "train", "val": "validation", "validation": "validation", "test": "test"}


@dataclass
class Exam:
    """Questions by official split, and their origin.

    Attributes:
        skipped: rows left out, each with the reason.
        statements: sentences that a model may be pre-trained on.
        keyless: questions without an answer, by split: they can be answered, but not trained on or scored.
        notes: how the rows were read, in words.
        columns: columns of the first question, for messages.
        dev: the split that files named dev belong to.
        test: the split that is the test: `train` of a benchmark that the hub has as one split of that name.
        revisions: what an earlier revision and this one share, see `data.exam_revisions`; None without one.
    """

    questions: dict[str, Sequence[Question]]
    origin: str
    skipped: list[str] = field(default_factory=list)
    statements: list[Statement] = field(default_factory=list)
    keyless: dict[str, Sequence[Question]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    dev: str = "train"
    test: str = "test"
    revisions: RevisionJoin | None = None

    def split(self, name: str) -> str:
        """Return the official name of a split that a person calls `dev`, `val` or `test`."""
        return {"dev": self.dev, "test": self.test}.get(name, SPLITS.get(name, name))

    def __len__(self) -> int:
        return sum(map(len, self.questions.values()))

    def need_answers(self, named: str) -> None:
        """Raise UserError where no question has an answer."""
        if not len(self):
            count = sum(map(len, self.keyless.values()))
            raise UserError(
                f"{named}：{count} 題都沒有答案（少了欄位 answer，有的是 {listed(self.columns)}）；"
                "訓練要有答案"
            )


# ---- reading -----------------------------------------------------------------------------------------------


def read_exam(
    source: str,
    revision: str | None = None,
    subjects: str = "all",
    on_bad_rows: str = "fail",
    flag: str = "--dataset",
    answers_from: str = "auto",
) -> Exam:
    """Read questions from the hub, a folder in TMMLU+'s layout, or one csv/json/jsonl/parquet file.

    Args:
        source: `ikala/tmmluplus`, a short name of `known_exams`, `./folder` ({subject}_{dev,val,test}.csv,
            also in data/ below it) or `./file.csv`.
        revision: revision of a dataset on the hub; None is the one of `known_exams`, else `main`.
        subjects: `all`, or subject and category names (English or Chinese) separated by commas.
        on_bad_rows: `fail` raises with every bad row; `skip` leaves them out and keeps their reasons in
            `skipped`.
        flag: the flag that named the source, for messages.
        answers_from: `0` or `1`, the number of the first option in integer answers; `auto` looks at all rows.

    Raises:
        UserError: nothing to read, bad rows, unknown subjects, or integers that may count from 0 or from 1.
    """
    known = known_exam(source)
    revision = revision or default_revision(source)
    folder, files, origin = hub_dataset.find_files(source, revision, flag)
    if not files:
        layout = "（要 {科目}_{dev,val,test}.csv 之類的題目檔）"
        raise UserError(no_data_message(folder, f"{flag} {source}") + layout)
    files = _exam_files(files)
    if known and not any(file.split for file in files):
        files = [replace(file, split=known.test) for file in files]
    wanted = _choose_files(_assign_splits(files), subjects)
    if answers_from == "auto" and known and known.answers_from:
        answers_from = known.answers_from
    first_option = None if answers_from == "auto" else int(answers_from)
    reader = _Reader(Reading())
    reader.read(wanted)
    reading = reader.survey.reading(f"{flag} {source}", first_option)
    notes = reader.survey.notes(reading, first_option)
    if reading != reader.reading:  # only the whole dataset shows how its rows are meant: read them again
        reader = _Reader(reading)
        reader.read(wanted)
    notes += _test_notes(known, flag)
    if notes:
        log(f"{flag} {source} 的讀法：{'；'.join(notes)}")
    problems = reader.problems
    if problems and on_bad_rows == "fail":
        raise UserError(bad_rows_report(problems, reader.count, "題"))
    answered = {f"answered/{split}": part for split, part in reader.questions.items()}
    unanswered = {f"keyless/{split}": part for split, part in reader.keyless.items()}
    kept = choose_rows({**answered, **unanswered}, subjects)  # at once: a subject may be in one of them alone
    questions = {split: kept[f"answered/{split}"] for split in reader.questions}
    keyless = {split: kept[f"keyless/{split}"] for split in reader.keyless}
    if not any(questions.values()) and not any(keyless.values()):
        names = "、".join(file.path.name for file in wanted[:3])
        raise UserError(summarize_problems(problems) or f"{flag} {source}：一題也沒有（{names}）")
    return Exam(
        questions,
        origin,
        problems,
        dev=_dev_split(files),
        keyless=keyless,
        notes=notes,
        columns=reader.columns,
        test=known.test if known else "test",
    )


def _test_notes(known: KnownExam | None, flag: str) -> list[str]:
    """Return what to know of an exam whose test is called otherwise, in words."""
    if known is None or known.test == "test":
        return []
    warning = "，訓練過就不能再拿它評測" if flag == "--dataset" else ""
    return [f"只有 {known.test} 這一部分，它就是測驗題{warning}"]


@dataclass
class _Reader:
    """Reads the questions of files under one `reading`; those without an answer are kept apart."""

    reading: Reading
    survey: Survey = field(default_factory=Survey)
    questions: dict[str, QuestionView] = field(default_factory=dict)
    keyless: dict[str, QuestionView] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    store: QuestionStore = field(default_factory=QuestionStore)

    @property
    def count(self) -> int:
        """The number of questions, with and without an answer."""
        return sum(map(len, [*self.questions.values(), *self.keyless.values()]))

    def read(self, files: Iterable[DataFile]) -> None:
        """Add the questions of files.

        A row that is no question adds `file:line：reason` to `problems`, and so does one with a blank answer,
        unless no row of its file has an answer; `-1` and `-` say on purpose that there is none.
        """
        for file in files:
            unanswered = QuestionView(store=self.store)
            lines = array("L")  # line of each question without an answer; 0 where that is on purpose
            has_answers = False
            for line, drafted in self._drafts(file):
                try:
                    question = drafted.question(self.reading, str(file.path))
                except ValueError as error:
                    self.problems.append(f"{where(file.path, line)}：{error}")
                    has_answers = True
                    continue
                if question.answer is not None:
                    has_answers = True
                    self.questions.setdefault(file.split, QuestionView(store=self.store)).append(question)
                else:
                    unanswered.append(question)
                    lines.append(line if drafted.key.blank else 0)
            if has_answers:
                self.problems += [f"{where(file.path, line)}：answer 是空的" for line in lines if line]
                unanswered = unanswered.pick(place for place, line in enumerate(lines) if not line)
            if len(unanswered):
                earlier = self.keyless.get(file.split, QuestionView(store=self.store))
                self.keyless[file.split] = concat([earlier, unanswered])

    def _drafts(self, file: DataFile) -> Iterator[tuple[int, Draft]]:
        """Yield (line, draft) of each row that is a question; note the others."""
        seen, stem = False, file.subject or stem_of(file.path)
        for line, row in file.rows():
            if isinstance(row, dict) and not seen:
                seen, self.columns = True, self.columns or list(map(str, row))
                if (
                    suffix_of(file.path) not in (".json", ".jsonl")
                    and not find_question_columns(tuple(row)).question
                ):
                    self.problems.append(f"{file.path}：{NO_QUESTION_COLUMN}，有的是 {listed(row)}")
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


def _exam_files(files: list[DataFile]) -> list[DataFile]:
    """Return the files of an exam, without what other datasets add to it.

    Of TCEval-v2 those of TMMLU+, under its names of subjects; of MMLU those without its auxiliary rows.
    """
    kept = [replace(file, config=name, subject=name) for file in files if (name := _tceval_subject(file))]
    kept = kept or [file for file in files if not _is_auxiliary(file)] or files
    paths = {file.path for file in kept}
    left = [file for file in files if file.path not in paths]
    if names := sorted(
        {AUXILIARY if _is_auxiliary(file) else file.config or file.path.name for file in left}
    ):
        log(f"略過 {listed(names, 5)}：不是這份題庫的選擇題")
    return kept


def _tceval_subject(file: DataFile) -> str:
    """Return TMMLU+'s subject of a file of TCEval-v2, "" for another file."""
    config = file.config.split("/")[-1]
    return config.removeprefix(TCEVAL) if config.startswith(TCEVAL) else ""


def _is_auxiliary(file: DataFile) -> bool:
    """Return whether a file holds MMLU's auxiliary rows."""
    return AUXILIARY in (file.config, file.path.parent.name, SHARD.sub("", stem_of(file.path)))


def _assign_splits(files: list[DataFile]) -> list[DataFile]:
    """Return the files with the splits and subjects of an exam.

    Files without a split are left out where others have one.
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
    dev = _dev_split(files)
    return [
        replace(
            file,
            split=dev if file.split == "dev" else file.split,
            subject=file.subject * bool(named) or file.config.split("/")[-1] * (len(configs) > 1),
        )
        for file in files
    ]


def _dev_split(files: list[DataFile]) -> str:
    """Return the split that `dev` files belong to.

    It is the training split (TMMLU+, C-Eval) beside a `val`, and the validation split beside a `train` alone.
    """
    splits = {file.split for file in files}
    return "validation" if "train" in splits and "validation" not in splits else "train"


# ---- choosing subjects -------------------------------------------------------------------------------------


def _select_subjects(chosen: str, available: set[str]) -> set[str] | None:
    """Return the subjects named by --subjects, None for all.

    Raises:
        UserError: unknown names, each with the nearest known one.
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
            present = "、".join(sorted(map(chinese_name, available)))
            hint = f"有的是：{present}" if present else "這份資料沒有註明科目"
            hint = f"是不是 {guess[0]}？" if guess else hint
            problems.append(f"--subjects：沒有 {name!r} 這個科目，{hint}")
        elif not by_name[name]:
            problems.append(f"--subjects：這份資料沒有 {name} 類的科目")
    if problems:
        raise UserError(problems)
    return set().union(*(by_name[name] for name in names))


def _choose_files(files: list[DataFile], subjects: str) -> list[DataFile]:
    """Return the files of the chosen subjects."""
    available = {file.subject for file in files} - {""}
    if not available:  # subjects, if any, are in a column, and chosen once the rows are read
        return files
    wanted = _select_subjects(subjects, available)
    return [file for file in files if wanted is None or file.subject in wanted]


def choose_rows(questions: Mapping[str, Sequence[Question]], subjects: str) -> dict[str, Sequence[Question]]:
    """Return the questions of the chosen subjects, by split.

    Raises:
        UserError: unknown subjects.
    """
    views = {split: as_view(rows) for split, rows in questions.items()}
    wanted = _select_subjects(subjects, set().union(*(rows.subjects for rows in views.values())))
    return {split: rows if wanted is None else rows.of_subjects(wanted) for split, rows in views.items()}


# ---- writing -----------------------------------------------------------------------------------------------


def write_questions(path: Path, questions: Iterable[Question]) -> None:
    """Write test_qa_data.json: the questions a model is evaluated on, for other tools."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_open(path) as file:
        file.write("[")
        for number, question in enumerate(questions):
            lines = dumps(as_dict(question), indent=1).split("\n")
            file.write((",\n " if number else "\n ") + "\n ".join(lines))
        file.write("\n]\n")
