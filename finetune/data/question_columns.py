"""Columns of exam questions: question, passage, options, answer and subject.

They are found by the names that datasets and people give them, in Chinese (both scripts) and English,
whatever case and spaces.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from finetune.data.cells import column_key
from finetune.data.option_syntax import STEMS

# Names as `cells.column_key` writes them; the first one present counts.
QUESTION = (
    "question", "問題", "问题", "題目", "题目", "題幹", "题干", "試題", "试题", "stem", "questionstem",
    "questiontext", "題目內容", "題目敘述", "問題敘述", "題", "题",
)  # fmt: skip
MAYBE_QUESTION = ("query", "goal", "ctx", "startphrase", "sentence", "input")  # only beside options
PASSAGE = (
    "文章", "article", "passage", "context", "florespassage", "短文", "材料", "閱讀材料", "阅读材料",
    "premise", "文本",
)  # fmt: skip
ANSWER = (
    "正確答案", "正确答案", "答案", "正解", "解答", "標準答案", "标准答案", "參考答案", "参考答案",
    "correctanswer", "answer", "answerkey", "correctanswernum", "correctoption", "correctchoice",
    "correctindex", "answeridx", "answerindex", "answerletter", "correct", "rightanswer", "goldanswer",
    "gold", "ans", "cop", "正確選項", "正确选项", "answers", "target", "key", "label",
)  # fmt: skip
NUMBERED_FROM_1 = ("correctanswernum",)  # columns whose name says that answers count from 1
TOGETHER = (
    "choices", "options", "選項", "选项", "choice", "option", "endings", "candidates", "候選", "候选",
    "選項列表",
    "答案選項", "答案选项",
)  # fmt: skip
SUBJECT = (
    "subject", "科目", "學科", "学科", "subjectname", "category", "類別", "类别", "discipline", "領域",
    "领域", "topic",
)  # fmt: skip
ID = ("id", "題號", "题号", "編號", "编号", "questionid", "qid")
WRONG = (
    "distractor",
    "incorrectanswer",
    "wronganswer",
    "誘答",
    "干擾項",
)  # numbered, beside the column of the right one
_DIGITS = "一二三四五六七八九十"
_WORDS = (  # before an option's label
    "", "選項", "选项", "option", "choice", "opt", "op", "ending", "sol", "solution", "mcanswer", "candidate",
    "hypothesis", "answer", "ans", "alternative", "答案", "候選",
)  # fmt: skip
_OPTION_COLUMN = re.compile(
    rf"(?P<word>{'|'.join(_WORDS)})(?P<label>[a-k]|\d{{1,2}}|[{STEMS}]|[{_DIGITS}])(?:選項|选项|項)?"
)


@dataclass(frozen=True)
class QuestionColumns:
    """Column names as the row has them; "" or () for a missing column.

    Attributes:
        options: columns of one option each, by place; "" where one is missing between two.
        first: the number of the first option column: `ending0` 0, 選項1 1; None where they bear letters.
        twice: names of options that differ from another column only in how they are written: `a` beside `A`.
        wrong: columns of the wrong options, beside the right one in `answers`.
    """

    question: str = ""
    passage: str = ""
    answers: tuple[str, ...] = ()
    together: str = ""
    options: tuple[str, ...] = ()
    first: int | None = None
    wrong: tuple[str, ...] = ()
    twice: tuple[str, ...] = ()
    subject: str = ""
    id: str = ""

    @property
    def has_options(self) -> bool:
        """True if there is any column of options."""
        return bool(self.together or self.options or self.wrong)

    @property
    def counts_from_1(self) -> bool:
        """True if the name of the answer column says that answers count from 1."""
        return bool(self.answers) and column_key(self.answers[0]) in NUMBERED_FROM_1

    def place_of(self, name: str) -> int | None:
        """Return the place of the option that is called by its column's name: 選項B."""
        wanted = column_key(name)
        if len(wanted) < 2:
            return None
        return next((i for i, column in enumerate(self.options) if column_key(column) == wanted), None)


@lru_cache(maxsize=256)
def find_question_columns(names: tuple[str, ...]) -> QuestionColumns:
    """Find the columns of a row by its names."""
    by_name: dict[str, str] = {}
    twice = []
    for name in names:
        if by_name.setdefault(column_key(name), name) != name and _OPTION_COLUMN.fullmatch(column_key(name)):
            twice.append(name)
    options, first = _option_columns(by_name)
    wrong = tuple(
        by_name[key] for key in by_name if key.rstrip("0123456789") in WRONG or key.rstrip("s") in WRONG
    )
    taken = {*options}
    remaining = {key: name for key, name in by_name.items() if name not in taken}
    together = _first_known(remaining, TOGETHER)
    question = _first_known(remaining, QUESTION)
    if not question and (options or together or wrong):
        question = _first_known(remaining, MAYBE_QUESTION)
    return QuestionColumns(
        question, _first_known(remaining, tuple(word for word in PASSAGE if remaining.get(word) != question)),
        tuple(remaining[key] for key in ANSWER if key in remaining), together, options, first, wrong,
        tuple(twice), _first_known(remaining, SUBJECT), _first_known(remaining, ID),
    )  # fmt: skip


def looks_like_question(row: object) -> bool:
    """Return whether a row is a question with options: it has a column for either."""
    if not isinstance(row, dict):
        return False
    columns = find_question_columns(tuple(map(str, row)))
    return bool(columns.question) and columns.has_options


def _first_known(by_name: dict[str, str], words: Iterable[str]) -> str:
    """Return the name of the first of these columns that is present, "" for none."""
    return next((by_name[word] for word in words if word in by_name), "")


def _option_columns(by_name: dict[str, str]) -> tuple[tuple[str, ...], int | None]:
    """Return the columns of one option each, in order, and the number of the first.

    They are the largest family of one word and one kind of label.
    """
    families: dict[tuple[str, str], dict[int, str]] = {}
    for key, name in by_name.items():
        match = _OPTION_COLUMN.fullmatch(key)
        if match is None:
            continue
        label = match["label"]
        if label.isdecimal():
            kind, place = "number", int(label)
        else:
            kind = next(series for series in ("abcdefghijk", STEMS, _DIGITS) if label in series)
            place = kind.index(label)
        families.setdefault((match["word"], kind), {})[place] = name
    best: tuple[tuple[str, ...], int | None] = ((), None)
    for (_, kind), places in sorted(families.items(), key=lambda item: _WORDS.index(item[0][0])):
        first = min(places)
        if first > (1 if kind == "number" else 0) or max(places) > 11:
            continue
        columns = tuple(places.get(place, "") for place in range(first, max(places) + 1))
        if len(columns) > len(best[0]):
            best = columns, first if kind == "number" else 1 if kind == _DIGITS else None
    return best
