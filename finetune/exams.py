"""Exam questions: read from the hub, a folder or a file; chosen by subject; split without leaking.

Text stays text: nothing guesses types, so the options `NA`, `None`, `1.0` and `無` arrive as they were
written.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from heapq import nsmallest
from itertools import groupby
from pathlib import Path

from . import hub, reading
from .bad_rows import Unreadable, abridged, too_many, where
from .cli import nearest, say
from .data_files import DataFile, nothing_in, stem_of
from .disk import whole_file
from .errors import UserError, shown
from .headers import STEMS
from .questions import LETTERS, MAX_OPTIONS, MIN_OPTIONS, Question, Statement, as_dict, draw
from .rows import Rows, Shelf, joined, on_shelf, pick
from .strictness import dumps
from .subjects import CATEGORIES, category_of, chinese_name

SPLITS = {"dev": "train", "train": "train", "val": "validation", "validation": "validation", "test": "test"}
ONE_TOO_MANY = "K"  # looked at, so that an eleventh option is refused and not lost


@dataclass
class Exam:
    """Questions by official split, and where they came from. `told`: sentences a model may read. `dev`: the
    split that files called so are in."""

    questions: dict[str, Sequence[Question]]
    origin: str
    skipped: list[str] = field(default_factory=list)
    told: list[Statement] = field(default_factory=list)
    dev: str = "train"

    def split(self, name: str) -> str:
        """The official name of a split that a person calls `dev`, `val` or `test`."""
        return self.dev if name == "dev" else SPLITS.get(name, name)

    def __len__(self) -> int:
        return sum(map(len, self.questions.values()))


@dataclass
class Pools:
    """What one fits on, chooses by, keeps back, and the official test rows that are only ever scored."""

    fit: Sequence[Question]
    validation: Sequence[Question]
    held_back: Sequence[Question]
    test: Sequence[Question]
    duplicates: int = 0  # rows left out of the pool because the same question stands elsewhere


# ---- reading -----------------------------------------------------------------------------------------------


def read_exam(
    source: str,
    revision: str = "v1.1",
    subjects: str = "all",
    on_bad_rows: str = "fail",
    flag: str = "--dataset",
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

    Raises:
        UserError: nothing there, bad rows, unknown subjects.
    """
    folder, files, origin = hub.find_files(source, revision, flag)
    if not files:
        layout = "（要 {科目}_{dev,val,test}.csv 之類的題目檔）"
        raise UserError(nothing_in(folder, f"{flag} {source}") + layout)
    wanted = _choose_files(_by_split(files), subjects)
    shelf, questions = Shelf(), {}
    problems: list[str] = []
    for file in wanted:
        for question in read_rows(file, problems):
            questions.setdefault(file.split, Rows(shelf=shelf)).append(question)
    if problems and on_bad_rows == "fail":
        raise UserError(too_many(problems, sum(map(len, questions.values())), "題"))
    questions = choose_rows(questions, subjects)
    if not any(questions.values()):
        names = "、".join(file.path.name for file in wanted[:3])
        raise UserError([*abridged(problems), f"{flag} {source}：一題也沒有（{names}）"])
    return Exam(questions, origin, problems, dev=_dev_of(files))


def _by_split(files: list[DataFile]) -> list[DataFile]:
    """The files in the splits and subjects of an exam: those without a split are left out where others have
    one."""
    named = [file for file in files if file.split]
    if named and (others := [file.path.name for file in files if not file.split]):
        count = f" 等 {len(others)} 個檔案" if len(others) > 5 else ""
        say(f"略過 {'、'.join(others[:5])}{count}：名稱看不出是 dev、val 或 test，而資料夾裡有這樣的檔案")
    files = named or files
    configs = {file.config for file in files} - {""}
    if "all" in configs and len(configs) > 1:
        say("略過 all：它的題目也在別的資料夾裡")
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


def read_rows(file: DataFile, problems: list[str]) -> Iterator[Question]:
    """The questions of one file; each row that is none adds `file:line: reason` to `problems`."""
    answers = () if file.split == "test" else (reading.ANSWER[::-1],)  # a test part may keep its key back
    for line, row in file.rows(required=((*reading.ASKED[::-1], *STEMS), *answers)):
        if isinstance(row, Unreadable):
            problems.append(f"{where(file.path, line)}：{row}")
            continue
        try:
            stem = file.subject or stem_of(file.path)
            yield parse_question(row, file.subject, f"{stem}/{file.split or 'all'}/{line}")
        except ValueError as error:
            problems.append(f"{where(file.path, line)}：{error}")


def parse_question(row: object, subject: str = "", row_id: str = "", need_answer: bool = True) -> Question:
    """A row of any of the layouts people use, as a Question.

    Layouts: columns `question, A, B, …, answer` (a letter); `choices` (a list) with an integer or letter
    `answer`; `options` (a dict letter -> text, or a list); reading comprehension, see reading.py.

    Raises:
        ValueError: with the reason in Chinese.
    """
    if not isinstance(row, dict):
        raise ValueError(f"應該是一個物件，得到 {type(row).__name__}")
    passage = ""
    if reading.is_reading(row):
        passage, row = reading.passage_of(row), reading.as_question(row)
    stem = _text(row.get("question"))
    if not stem.strip():
        raise ValueError("question 是空的")
    listed = row.get("choices", row.get("options"))
    if isinstance(listed, dict):
        row, listed = {**row, **listed}, None
    if listed is None:
        options = [_text(row.get(letter)) for letter in (*LETTERS, ONE_TOO_MANY)]
        while options and not options[-1].strip():
            options.pop()
    elif isinstance(listed, list):
        options = [_text(option) for option in listed]
    else:
        raise ValueError(f"choices 應該是一串選項，得到 {type(listed).__name__}")
    if not MIN_OPTIONS <= len(options) <= MAX_OPTIONS:
        raise ValueError(f"有 {len(options)} 個選項，應為 {MIN_OPTIONS} 到 {MAX_OPTIONS} 個")
    if blank := [LETTERS[i] for i, option in enumerate(options) if not option.strip()]:
        raise ValueError(f"選項 {'、'.join(blank)} 是空的")
    answer = _answer_index(row.get("answer"), len(options), need_answer)
    subject, name = _text(row.get("subject")) or subject, _text(row.get("id")) or row_id
    return Question(stem, tuple(options), answer, subject, name, passage)


def _text(value: object) -> str:
    if isinstance(value, (list, dict)):
        raise ValueError(f"應該是文字，得到 {type(value).__name__}")
    return "" if value is None or value != value else str(value)  # NaN is not itself


def _answer_index(value: object, count: int, needed: bool) -> int | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        if needed:
            raise ValueError("answer 是空的")
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        index = value
    else:
        letter = unicodedata.normalize("NFKC", str(value)).strip().upper()
        index = LETTERS.find(letter) if len(letter) == 1 else -1
    if not 0 <= index < count:
        raise ValueError(f"答案 {shown(value)} 沒有對應的選項（選項是 {LETTERS[0]} 到 {LETTERS[count - 1]}）")
    return index


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
    found = {split: on_shelf(rows) for split, rows in questions.items()}
    wanted = _wanted_subjects(subjects, set().union(*(rows.subjects for rows in found.values())))
    return found if wanted is None else {split: rows.of_subjects(wanted) for split, rows in found.items()}


# ---- splitting ---------------------------------------------------------------------------------------------


def split_pool(exam: Exam, ratio: tuple[float, float, float], pool: str, seed: int) -> Pools:
    """Splits the rows one may fit on into fit / validation / held-back, stratified by subject.

    `pool="fit"`: official train + validation rows; the official test rows are only ever scored.
    `pool="all"`: the test rows are split too, and no figure is comparable with a published one. A file
    without official splits is all pool. The same question twice counts once, and never stands on both sides
    of a split; nor does a passage that several questions are about.
    """
    found = {split: on_shelf(rows) for split, rows in exam.questions.items()}
    test = Rows() if pool == "all" else found.pop("test", Rows())
    all_rows = joined(list(found.values()))
    rows = all_rows.once(other_than=test)
    if not rows:
        raise UserError(
            "可用來訓練的題目是 0 題：資料裡只有 test，或全部與 test 重複（--pool all 會連 test 一起切）"
        )
    rows = rows.dealt(seed)
    parts = shared_out(range(len(rows)), ratio, rows.passages.tolist().__getitem__)
    return Pools(*map(rows.pick, parts), test=test, duplicates=len(all_rows) - len(rows))


def shared_out(
    rows: Sequence, ratio: tuple[float, float, float], key=lambda row: ""
) -> tuple[list, list, list]:
    """Rows, in the order given, into three parts of these shares. Neighbours with the same `key` stay
    together; those with "" or 0 are on their own."""
    parts: tuple[list, list, list] = ([], [], [])
    count = 0
    for name, group in groupby(rows, key):
        for together in [list(group)] if name else ([row] for row in group):
            count += len(together)  # the part that lags furthest behind its share gets them
            owed = [share * count - len(part) for share, part in zip(ratio, parts, strict=True)]
            parts[owed.index(max(owed))].extend(together)
    return parts


def sample(questions: Sequence[Question], limit: int, seed: int) -> Sequence[Question]:
    """At most `limit` questions, the same ones for the same seed; all of them for 0."""
    if not limit or len(questions) <= limit:
        return questions
    chosen = nsmallest(limit, range(len(questions)), key=lambda i: draw(seed, questions[i].id))
    return pick(questions, sorted(chosen))


def describe(exam: Exam, pools: Pools) -> None:
    """Prints what was read and how it was split."""
    counts = "、".join(f"{split or '不分'} {len(rows)}" for split, rows in exam.questions.items() if rows)
    subjects = set().union(*(on_shelf(rows).subjects for rows in exam.questions.values()))
    named = f"{len(subjects)} 科" if subjects else "未註明科目"
    say(f"題庫 {exam.origin}：{len(exam)} 題（{counts}），{named}")
    if exam.skipped:
        say(f"  略過 {len(exam.skipped)} 列：")
        for problem in abridged(exam.skipped):
            say(f"    - {problem}")
    say(
        f"  訓練 {len(pools.fit)}、驗證 {len(pools.validation)}、保留 {len(pools.held_back)}、正式測驗 "
        f"{len(pools.test)} 題"
        + (f"；另有 {pools.duplicates} 題重複，未列入" if pools.duplicates else "")
        + (f"；另有 {len(exam.told)} 句敘述供閱讀" if exam.told else "")
    )


def write_questions(path: Path, questions: Iterable[Question]) -> None:
    """test_qa_data.json: the rows a model will be examined on, for other tools."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        file.write("[")
        for number, question in enumerate(questions):
            lines = dumps(as_dict(question), indent=1).split("\n")
            file.write((",\n " if number else "\n ") + "\n ".join(lines))
        file.write("\n]\n")
