"""Rows of any usual layout become Questions; a survey of a whole file shows how its rows are written.

A row is first drafted: its stem, options and all readings of its answer. Some facts only the other rows show:
whether numbers count from 0 or from 1, whether `4` is a number or an option's text, whether `(A)` in front of
an option belongs to it. `Survey` looks at all rows; `Draft.question` then makes the Question.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace

from finetune.data import answer_key, option_syntax
from finetune.data.answer_key import AnswerConvention, Key, read_key, resolve_answer
from finetune.data.cells import cell_text, is_blank
from finetune.data.question import LETTERS, MAX_OPTIONS, MIN_OPTIONS, Question, seeded_hash
from finetune.data.question_columns import QuestionColumns, find_question_columns
from finetune.runtime.errors import listed, shown
from finetune.runtime.strict_json import too_long

NEARLY_ALL = 0.9  # share of a file's rows from which on labels in front of the options are taken off
NO_QUESTION_COLUMN = "看不出哪一欄是題目（question、題目）"
MANY = ("questions",)  # columns with several questions about one passage


@dataclass(frozen=True)
class Reading:
    """Conventions for reading the rows of a dataset.

    Attributes:
        convention: how the answers are written.
        labelled: the files whose options carry labels, which are taken off.
    """

    convention: AnswerConvention = AnswerConvention(first=None)
    labelled: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Draft:
    """A row before it is known how its dataset is to be read.

    Attributes:
        bare: the options without the labels that they carry; () where they carry none.
        first: the number of the first option by its column's name; None where that says nothing.
        found: where the options were, if not in columns or lists of their own: "cell", "stem" or "apart".
    """

    stem: str
    options: tuple[str, ...]
    bare: tuple[str, ...]
    key: Key
    subject: str
    id: str
    passage: str = ""
    first: int | None = None
    found: str = ""

    def question(self, reading: Reading, file: str = "") -> Question:
        """Return the question with its answer.

        Raises:
            ValueError: the answer cannot be read; in Chinese.
        """
        texts = self._texts(reading, file)
        convention = reading.convention
        if convention.first is None:
            convention = replace(convention, first=self.first)
        answer = resolve_answer(self.key, texts, convention)
        return Question(self.stem, texts, answer, self.subject, self.id, self.passage)

    def without_answer(self, reading: Reading, file: str = "") -> Question:
        """Return the question without its answer."""
        return Question(self.stem, self._texts(reading, file), None, self.subject, self.id, self.passage)

    def _texts(self, reading: Reading, file: str) -> tuple[str, ...]:
        """Return the options, without labels where the file has labels."""
        return self.bare if self.bare and file in reading.labelled else self.options


def draft(row: object, subject: str = "", row_id: str = "") -> Draft:
    """Draft a row.

    Raises:
        ValueError: it is no question; the reason in Chinese.
    """
    if not isinstance(row, dict):
        raise ValueError(f"應該是一個物件，得到 {type(row).__name__}")
    if isinstance(nested := row.get("question"), dict) and "stem" in nested:  # {"question": {stem, choices}}
        row = {**row, **nested, "question": nested["stem"]}
    columns = find_question_columns(tuple(row))
    if not columns.question:
        if question_lists := [name for name in MANY if isinstance(row.get(name), (list, dict))]:
            raise ValueError(f"{question_lists[0]} 是好幾題；請拆成一列一題")
        raise ValueError(f"{NO_QUESTION_COLUMN}，有的是 {listed(row)}")
    stem = cell_text(row[columns.question])
    if isinstance(row[columns.question], bool):
        raise ValueError(f"{columns.question} 應該是文字，得到 bool")
    if is_blank(stem):
        raise ValueError("question 是空的" + f"（{columns.question} 欄）" * (columns.question != "question"))
    value = _answer_cell(row, columns)
    texts, labels, source = _options(row, columns)
    if source == "stem":
        stem, options_in_stem = option_syntax.split_stem(stem)
        texts, labels = list(options_in_stem.values()), list(options_in_stem)
    while texts and is_blank(texts[-1]):
        texts.pop()
    labels = labels[: len(texts)]
    if source == "apart" and not is_blank(value):
        texts, value = _insert_right_answer(stem, cell_text(value), texts)
    if not MIN_OPTIONS <= len(texts) <= MAX_OPTIONS:
        raise ValueError(f"有 {len(texts)} 個選項，應為 {MIN_OPTIONS} 到 {MAX_OPTIONS} 個")
    if empty := [LETTERS[i] for i, text in enumerate(texts) if is_blank(text)]:
        raise ValueError(f"選項 {'、'.join(empty)} 是空的")
    passage = _passage(row, columns)
    if reason := too_long(passage, stem, *texts):
        raise ValueError(f"題目或選項{reason}")
    bare, key = _read_answer(row, columns, texts, labels, value)
    return Draft(
        f"{passage}\n\n{stem}" if passage else stem, tuple(texts), bare, key,
        _joined_cell(row, columns.subject) or subject, _joined_cell(row, columns.id) or row_id,
        digest(passage), 1 if columns.counts_from_1 else columns.first, source,
    )  # fmt: skip


def parse_question(row: object, subject: str = "", row_id: str = "", need_answer: bool = True) -> Question:
    """Parse a single row as a Question.

    An integer `answer` counts from 0, or as the options' columns do.

    Raises:
        ValueError: with the reason in Chinese.
    """
    drafted = draft(row, subject, row_id)
    if need_answer and (drafted.key.blank or drafted.key.no_gold):
        raise ValueError("answer 是空的")
    first = 0 if drafted.first is None else drafted.first
    return drafted.question(Reading(AnswerConvention(first=first)))


# ---- parts of a row ----------------------------------------------------------------------------------------


def _answer_cell(row: dict, columns: QuestionColumns) -> object:
    """Return the first cell of answers that is not blank."""
    cells = (row[name] for name in columns.answers)
    return next((cell for cell in cells if not is_blank(cell)), None)


def _joined_cell(row: dict, column: str) -> str:
    """Return a subject or an id; several are joined."""
    cell = row.get(column) if column else None
    if isinstance(cell, list):
        return "、".join(str(value) for value in cell)
    return "" if is_blank(cell) or isinstance(cell, dict) else str(cell)


def _options(row: dict, columns: QuestionColumns) -> tuple[list[str], list[str], str]:
    """Return the texts of the options, their own labels if any, and where they were found."""
    together = row.get(columns.together) if columns.together else None
    if not is_blank(together):
        texts, labels = option_syntax.parse_together(together)
        return texts, labels, "cell" if isinstance(together, str) else ""
    if clashing := [name for name in columns.twice if not is_blank(row.get(name))]:
        raise ValueError(f"欄位 {listed(clashing)} 和另一欄只差大小寫或寬度，看不出哪一欄是選項")
    if columns.options:
        return [cell_text(row.get(name)) if name else "" for name in columns.options], [], ""
    if columns.wrong:
        wrong = [row[name] for name in columns.wrong]
        cells = [cell for part in wrong for cell in (part if isinstance(part, list) else [part])]
        return [cell_text(cell) for cell in cells if not is_blank(cell)], [], "apart"
    return [], [], "stem"


def _insert_right_answer(stem: str, right: str, wrong: list[str]) -> tuple[list[str], str]:
    """Insert the right answer among the wrong ones, at a place that only the question decides.

    Returns:
        the options, and the letter of the right one.
    """
    place = seeded_hash(0, stem)[0] % (len(wrong) + 1)
    return [*wrong[:place], right, *wrong[place:]], LETTERS[min(place, MAX_OPTIONS - 1)]


def _read_answer(
    row: dict, columns: QuestionColumns, texts: list[str], labels: list[str], value: object
) -> tuple[tuple[str, ...], Key]:
    """Return the options without the labels they carry, and all readings of the answer."""
    bare = option_syntax.without_labels(texts) or ()
    if bare and not labels and texts[0].lstrip("（(【[ ")[:1] in "1１":
        labels = [str(place + 1) for place in range(len(texts))]
    typed = all(isinstance(cell, str) for cell in _option_cells(row, columns))
    place = columns.place_of(value) if isinstance(value, str) and len(value.strip()) > 2 else None
    if place is not None and place < len(texts):
        return bare, Key(value, answer_key.LETTER, place)
    if list(labels) in ([*LETTERS[: len(labels)]], [*LETTERS[: len(labels)].lower()]):
        labels = []  # plain letters add nothing to the places
    return bare, read_key(value, texts, bare, labels, typed)


def _option_cells(row: dict, columns: QuestionColumns) -> Iterable[object]:
    """Return the cells of the options as they came."""
    cell = row.get(columns.together) if columns.together else None
    if isinstance(cell, (dict, list)):
        return cell.values() if isinstance(cell, dict) else cell
    return [row[name] for name in columns.options if name in row]


def _passage(row: dict, columns: QuestionColumns) -> str:
    """Return the passage of a row, "" without one."""
    cell = row.get(columns.passage) if columns.passage else None
    if isinstance(cell, list) and all(isinstance(part, str) for part in cell):
        cell = "\n".join(cell)
    return "" if is_blank(cell) else cell_text(cell)


def digest(passage: str) -> str:
    """Return the hash of a passage, 16 hex digits; "" without one."""
    return hashlib.sha256(passage.strip().encode("utf-8", "replace")).hexdigest()[:16] if passage else ""


# ---- all of the rows ---------------------------------------------------------------------------------------


@dataclass
class Survey:
    """Look at all rows of a dataset, file by file.

    Attributes:
        keys: survey of the answers.
        rows: by file.
        labelled: rows whose options carry labels, by file.
        found: rows by `Draft.found`.
        firsts: numbers of the first option by the columns' names.
    """

    keys: answer_key.Survey = field(default_factory=answer_key.Survey)
    rows: Counter[str] = field(default_factory=Counter)
    labelled: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    firsts: set[int | None] = field(default_factory=set)
    example: str = ""

    def add(self, drafted: Draft, file: str, where: str = "") -> None:
        """Count a row."""
        self.rows[file] += 1
        if drafted.bare:
            self.labelled[file] += 1
            self.example = self.example or drafted.options[0]
        self.found[drafted.found] += 1
        self.firsts.add(drafted.first)
        self.keys.add(drafted.key, len(drafted.options), where or file)

    def reading(self, named: str, answers_from: int | None = None) -> Reading:
        """Return how the rows are to be read.

        Args:
            named: flag and source, for messages.
            answers_from: the number in --answers_from.

        Raises:
            UserError: the rows are ambiguous; see `answer_key.Survey.convention`.
        """
        return Reading(self.keys.convention(named, answers_from, self.first), self.files_with_labels)

    @property
    def files_with_labels(self) -> frozenset[str]:
        """The files nearly all of whose rows have options with labels."""
        return frozenset(f for f, count in self.labelled.items() if count >= NEARLY_ALL * self.rows[f])

    @property
    def first(self) -> int | None:
        """The number of the first option by the columns' names, where all files agree."""
        return next(iter(self.firsts)) if len(self.firsts) == 1 else None

    def notes(self, reading: Reading, answers_from: int | None = None) -> list[str]:
        """Return how the rows were read, in words; nothing for rows with a plain letter."""
        notes = self.keys.notes(reading.convention, answers_from, self.first)
        if count := sum(self.labelled[file] for file in reading.labelled):
            notes.append(f"{count} 列的選項前面有代號（{shown(self.example)}），拿掉了")
        if kept := sum(count for file, count in self.labelled.items() if file not in reading.labelled):
            notes.append(f"{kept} 列的選項前面像有代號（{shown(self.example)}），多數列沒有，照原樣留著")
        descriptions = {"cell": "選項寫在同一格，分開了", "stem": "選項寫在題目裡，取了出來"}
        descriptions["apart"] = "正確答案與誘答分欄，位置依題目固定抽出"
        return notes + [
            f"{self.found[key]} 列的{text}" for key, text in descriptions.items() if self.found[key]
        ]


def survey(rows: Iterable[object], file: str = "") -> tuple[Survey, Reading]:
    """Survey rows only for how their options are written, whatever their answers are."""
    counts = Survey()
    for row in rows:
        with suppress(ValueError):  # reported when the row itself is read
            counts.add(draft(row), file)
    return counts, Reading(labelled=counts.files_with_labels)
