"""Rows of extractive question answering, in the layouts that datasets and people write.

Nested: SQuAD 1.1 and 2.0, DRCD, CMRC 2018 (its own and in SQuAD's layout): articles with paragraphs with
`qas`. Flat: a row a question, as the hub has SQuAD (`answers: {"text": […], "answer_start": […]}`), or
`context, question, answer[, answer_start]`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from finetune.data.bad_rows import Unreadable
from finetune.data.cells import cell_text, is_blank
from finetune.data.question import normalised
from finetune.data.span_answers import check_answers, parse_truth, read_answers
from finetune.data.span_columns import SpanColumns
from finetune.data.span_offsets import FOUND, Answer, place_answer
from finetune.runtime.errors import listed
from finetune.runtime.strict_json import too_long

# columns of the rows that `nested_questions` makes
NESTED = SpanColumns("context", "question", "answers", "", "title", "is_impossible", "id")
ANSWERS = ("answers", "answer", "detected_answers")  # names in a nested question
IDS = ("id", "query_id", "qid")


@dataclass(frozen=True)
class SpanRow:
    """A question about a passage, with every answer that counts as right; none: the passage has no answer.

    Attributes:
        group: the article: its questions are never divided among splits.
    """

    question: str
    context: str
    answers: tuple[Answer, ...] = ()
    id: str = ""
    group: str = ""

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the normalised question and passage, 16 hex digits."""
        texts = [normalised(text) or text.strip() for text in (self.question, self.context)]
        return hashlib.sha256("\x1f".join(texts).encode("utf-8", "replace")).hexdigest()[:16]

    @property
    def texts(self) -> list[str]:
        """The texts of the answers, each once."""
        return list(dict.fromkeys(answer.text for answer in self.answers))


def is_nested(row: object) -> bool:
    """Return whether a row is an article or a passage with its questions."""
    if not isinstance(row, dict):
        return False
    paragraphs = row.get("paragraphs")  # of an article for pre-training they are texts
    inside = isinstance(paragraphs, list) and any(isinstance(one, dict) for one in paragraphs)
    return inside or isinstance(row.get("qas"), list)


def nested_questions(article: dict) -> Iterator[tuple[str, dict[str, Any] | Unreadable]]:
    """Yield the questions of an article, or of a passage by itself: their place in words, and a flat row.

    Its columns are those of NESTED, as far as they are there; Unreadable stands for what is no question.
    """
    paragraphs = article["paragraphs"] if isinstance(article.get("paragraphs"), list) else [article]
    for number, paragraph in enumerate(paragraphs, 1):
        place = f"第 {number} 段"
        if not isinstance(paragraph, dict) or not isinstance(paragraph.get("qas"), list):
            yield place, Unreadable("沒有 qas（問答的串列）")
            continue
        context = paragraph.get("context", paragraph.get("context_text"))
        for at, qa in enumerate(paragraph["qas"], 1):
            asked = f"{place}第 {at} 題"
            if not isinstance(qa, dict):
                yield asked, Unreadable(f"應該是一個物件，得到 {type(qa).__name__}")
                continue
            found = {
                "id": next((qa[key] for key in IDS if is_name(qa.get(key))), None),
                "title": article.get("title") or article.get("id"), "context": context,
                "question": qa.get("question", qa.get("query_text")),
                "answers": next((qa[key] for key in ANSWERS if key in qa), None),
                "is_impossible": qa.get("is_impossible"),
            }  # fmt: skip
            yield asked, {name: value for name, value in found.items() if value is not None}


class SpanParser:
    """Makes rows of what a file holds.

    Args:
        columns: of flat rows; None where all are nested.
        need_answers: a question without any word about its answers is a bad row; else it has none.

    Attributes:
        remarks: how rows were read, with the number of rows.
    """

    def __init__(self, columns: SpanColumns | None = None, need_answers: bool = True):
        self.columns, self.need_answers = columns, need_answers
        self.remarks: Counter[str] = Counter()

    def __call__(self, row: Any, row_id: str) -> Iterator[SpanRow | Unreadable]:
        """Yield the rows of a row of the file, and the reasons of those that cannot be used."""
        if is_nested(row):
            for place, flat in nested_questions(row):
                if isinstance(flat, Unreadable):
                    yield Unreadable(f"{place}：{flat}")
                    continue
                try:
                    yield self._flat(flat, NESTED, f"{row_id} {place}")
                except ValueError as error:
                    name = f"（{flat['id']}）" if "id" in flat else ""
                    yield Unreadable(f"{place}{name}：{error}")
            return
        if not isinstance(row, dict):
            raise ValueError(f"應該是一個物件，得到 {type(row).__name__}")
        if {*row} == {"header"}:  # MRQA's files begin with it
            return
        if self.columns is None:
            raise ValueError(f"不是文章與問答（沒有 paragraphs），有的是 {listed(row)}")
        yield self._flat(row, self.columns, row_id)

    def _flat(self, row: dict, columns: SpanColumns, row_id: str) -> SpanRow:
        """Return the row of a flat row. Raises ValueError with the reason why it cannot be used."""
        for name in (columns.question, columns.context):
            if name not in row:
                raise ValueError(f"沒有 {name}，有的是 {listed(row)}")
        question, context = (_named_text(row, name) for name in (columns.question, columns.context))
        impossible = bool(columns.impossible) and parse_truth(row.get(columns.impossible), columns.impossible)
        if columns.answer and columns.answer not in row and not impossible and self.need_answers:
            raise ValueError(f"沒有 {columns.answer}，有的是 {listed(row)}（沒有答案請留空，或寫成 []）")
        starts = row.get(columns.start) if columns.start else None
        answers = read_answers(row.get(columns.answer), starts, context) if columns.answer else []
        named = row.get(columns.id) if columns.id else None
        title = row.get(columns.title) if columns.title else ""
        texts = (question, context, _group(title, context))
        return self._row(texts, check_answers(answers, impossible), str(named) if is_name(named) else row_id)

    def _row(
        self, texts: tuple[str, str, str], answers: list[tuple[str, int | None]], row_id: str
    ) -> SpanRow:
        """Return a row whose answers stand where their texts do.

        Args:
            texts: question, passage, group.

        Raises:
            ValueError: a text that is missing or too long, an answer that is not in the passage.
        """
        question, context, group = texts
        for text, what in ((question, "問題"), (context, "文章")):
            if is_blank(text):
                raise ValueError(f"{what}是空的")
            if reason := too_long(text):
                raise ValueError(f"{what}{reason}")
        placed: dict[Answer, None] = {}
        remarks = set()
        for text, start in answers:
            answer, remark = place_answer(context, text, start)
            placed[answer] = None
            remarks.add(remark)
        self.remarks.update(remarks - {"", FOUND})
        return SpanRow(question, context, tuple(placed), row_id, group)


def _named_text(row: dict, column: str) -> str:
    """Return the text of a column. Raises ValueError, with its name, where it is none."""
    try:
        return cell_text(row[column])
    except ValueError as error:
        raise ValueError(f"{column} {error}") from None


def is_name(value: object) -> bool:
    """Return whether a value can name a row: a text that is not empty, or a whole number."""
    return isinstance(value, (str, int)) and not isinstance(value, bool) and value != ""


def _group(title: object, context: str) -> str:
    """Return the name of an article; where there is none the passage stands for it."""
    if is_name(title) and not is_blank(title):
        return str(title)
    return hashlib.sha256(context.encode("utf-8", "replace")).hexdigest()[:16]
