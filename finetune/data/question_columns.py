"""Which columns of a row hold the question, its passage, its options, the answer, the subject: by the names
that data sets and people give them, in Chinese (both scripts) and English, whatever case and spaces.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from finetune.data.cells import plain_name
from finetune.data.option_syntax import STEMS

# Names as `cells.plain_name` writes them; the first of them that is there counts.
ASKED = (
    "question", "問題", "问题", "題目", "题目", "題幹", "题干", "試題", "试题", "stem", "questionstem",
    "questiontext", "題目內容", "題目敘述", "問題敘述", "題", "题",
)  # fmt: skip
MAYBE_ASKED = ("query", "goal", "ctx", "startphrase", "sentence", "input")  # where options stand beside it
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
NUMBERED_FROM_1 = ("correctanswernum",)  # an answer that counts so by its column's name
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
WRONG = ("distractor", "incorrectanswer", "wronganswer", "誘答", "干擾項")  # numbered, beside the right one
_DIGITS = "一二三四五六七八九十"
_WORDS = (  # before an option's label
    "", "選項", "选项", "option", "choice", "opt", "op", "ending", "sol", "solution", "mcanswer", "candidate",
    "hypothesis", "answer", "ans", "alternative", "答案", "候選",
)  # fmt: skip
_ONE = re.compile(
    rf"(?P<word>{'|'.join(_WORDS)})(?P<label>[a-k]|\d{{1,2}}|[{STEMS}]|[{_DIGITS}])(?:選項|选项|項)?"
)


@dataclass(frozen=True)
class Columns:
    """Names as the row has them; "" or () for what is not there.

    options: columns of one option each, by place; "" where one is missing between two.
    first: the number of the first option column: `ending0` 0, 選項1 1; None where they bear letters.
    twice: names of options that another column has too, but for how it is written: `a` beside `A`.
    wrong: columns of the wrong options, beside the right one in `answers`.
    """

    asked: str = ""
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
        return bool(self.together or self.options or self.wrong)

    @property
    def counts_from_1(self) -> bool:
        """The answer's column says so."""
        return bool(self.answers) and plain_name(self.answers[0]) in NUMBERED_FROM_1

    def place_of(self, name: str) -> int | None:
        """The option that is called by its column's name: 選項B."""
        plain = plain_name(name)
        if len(plain) < 2:
            return None
        return next((i for i, column in enumerate(self.options) if plain_name(column) == plain), None)


@lru_cache(maxsize=256)
def find_columns(names: tuple[str, ...]) -> Columns:
    """The columns of a row by the names it has."""
    named: dict[str, str] = {}
    twice = []
    for name in names:
        if named.setdefault(plain_name(name), name) != name and _ONE.fullmatch(plain_name(name)):
            twice.append(name)
    options, first = _option_columns(named)
    wrong = tuple(
        named[key] for key in named if key.rstrip("0123456789") in WRONG or key.rstrip("s") in WRONG
    )
    taken = {*options}
    known = {key: name for key, name in named.items() if name not in taken}
    together = _first(known, TOGETHER)
    asked = _first(known, ASKED)
    if not asked and (options or together or wrong):
        asked = _first(known, MAYBE_ASKED)
    return Columns(
        asked, _first(known, tuple(word for word in PASSAGE if known.get(word) != asked)),
        tuple(known[key] for key in ANSWER if key in known), together, options, first, wrong, tuple(twice),
        _first(known, SUBJECT), _first(known, ID),
    )  # fmt: skip


def looks_asked(row: object) -> bool:
    """True for a row that is a question with options: it has a column of questions, and options beside it."""
    if not isinstance(row, dict):
        return False
    columns = find_columns(tuple(map(str, row)))
    return bool(columns.asked) and columns.has_options


def _first(named: dict[str, str], words: Iterable[str]) -> str:
    return next((named[word] for word in words if word in named), "")


def _option_columns(named: dict[str, str]) -> tuple[tuple[str, ...], int | None]:
    """Columns of one option each, in order: the largest family of one word and one kind of label."""
    families: dict[tuple[str, str], dict[int, str]] = {}
    for key, name in named.items():
        match = _ONE.fullmatch(key)
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
