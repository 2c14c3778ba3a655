"""Rows of extractive question answering, in the layouts that datasets and people write.

Nested: SQuAD 1.1 and 2.0, DRCD, CMRC 2018 (its own and in SQuAD's layout): articles with paragraphs with
`qas`. Flat: a row a question, as the hub has SQuAD (`answers: {"text": […], "answer_start": […]}`), or
`context, question, answer[, answer_start]`.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from finetune.data.bad_rows import Unreadable
from finetune.data.cells import cell_text, column_key, is_blank, written_list
from finetune.data.question import normalised
from finetune.data.span_offsets import FOUND, Answer, parse_start, place_answer
from finetune.runtime.errors import UserError, listed, shown
from finetune.runtime.strict_json import too_long

# Names as `cells.column_key` writes them; the first one present counts.
CONTEXT = (
    "context", "passage", "article", "paragraph", "contexttext", "document", "文章", "段落", "短文", "內文",
    "内文", "本文", "課文", "课文", "篇章", "材料", "上下文", "文本", "內容", "内容", "text", "content",
    "body",
)  # fmt: skip
QUESTION = (
    "question", "query", "questiontext", "querytext", "問題", "问题", "題目", "题目", "題幹", "题干", "提問",
    "提问", "問句", "问句", "問", "问",
)  # fmt: skip
ANSWER = (
    "answers", "answer", "answertext", "答案", "正確答案", "正确答案", "標準答案", "标准答案", "參考答案",
    "参考答案", "解答", "正解", "回答", "goldanswer", "gold", "answerspan", "span", "答", "label", "ans",
)  # fmt: skip
START = (
    "answerstart", "answerstarts", "start", "startposition", "startchar", "startindex", "answeroffset",
    "answerposition", "offset", "答案位置", "答案起點", "答案起点", "答案起始", "答案開始", "答案开始",
    "起點", "起点", "起始位置", "開始位置", "开始位置", "位置",
)  # fmt: skip
TITLE = (
    "title", "標題", "标题", "篇名", "articleid", "articletitle", "documentid", "docid", "contextid",
    "paragraphid", "passageid", "group", "文章編號", "文章编号", "主題", "主题",
)  # fmt: skip
ANSWER_KEYS = ("answers", "answer", "detected_answers")  # of nested questions
IMPOSSIBLE = ("isimpossible", "impossible", "unanswerable", "noanswer", "無答案", "无答案")
ID = ("id", "qid", "questionid", "queryid", "題號", "题号", "編號", "编号")
YES, NO = ("true", "1", "1.0", "yes", "是", "y"), ("false", "0", "0.0", "no", "否", "n", "")
BETWEEN = ("|||", "|", "｜", "\n", "；", ";")  # marks between several answers in one cell
ARRAY = re.compile(r"array\((\[.*?\])(?:,\s*dtype=[\w.]+)?\)", re.DOTALL)  # as pandas writes hub rows to csv


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


@dataclass(frozen=True)
class SpanColumns:
    """Names of the columns of flat rows; "" for one that is not there."""

    context: str
    question: str
    answer: str = ""
    start: str = ""
    title: str = ""
    impossible: str = ""
    id: str = ""


def find_span_columns(
    names: Sequence[str], context: str = "", answer: str = "", named: str = "", need_answer: bool = True
) -> SpanColumns:
    """Find the columns of flat rows.

    Args:
        names: columns of the first rows.
        context, answer: values of --text_column and --label_column; "" chooses the usual names.
        named: flag and source, for messages.
        need_answer: there must be a column of answers.

    Raises:
        UserError: a column is missing.
    """
    keys: dict[str, str] = {}
    for name in names:
        keys.setdefault(column_key(name), name)
    problems = [
        f"{named} {flag} {given}：沒有這一欄，有的是 {listed(names)}"
        for flag, given in (("--text_column", context), ("--label_column", answer))
        if given and given not in names
    ]
    taken = {context, answer}

    def known(words: Sequence[str]) -> str:
        return next((keys[word] for word in words if word in keys and keys[word] not in taken), "")

    question = known(QUESTION)
    taken.add(question)
    context = context or known(CONTEXT)
    taken.add(context)
    answer = answer or known(ANSWER)
    taken.add(answer)
    for found, what, way in (
        (question, "問題", "請把那一欄叫做 question 或 問題"),
        (context, "文章", "用 --text_column 指出來"),
        (answer or not need_answer, "答案", "用 --label_column 指出來"),
    ):
        if not found and not problems:
            problems.append(f"{named}：看不出哪一欄是{what}，有的是 {listed(names)}；{way}")
    if problems:
        raise UserError(problems)
    return SpanColumns(
        context, question, answer, known(START), known(TITLE), known(IMPOSSIBLE), known(ID)
    )  # fmt: skip


def is_nested(row: object) -> bool:
    """Return whether a row is an article or a passage with its questions."""
    return isinstance(row, dict) and (
        isinstance(row.get("paragraphs"), list) or isinstance(row.get("qas"), list)
    )


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
            yield from self._article(row, row_id)
            return
        if not isinstance(row, dict):
            raise ValueError(f"應該是一個物件，得到 {type(row).__name__}")
        if set(row) <= {"header"} or self.columns is None:  # MRQA's files begin with {"header": …}
            if "header" not in row:
                raise ValueError(f"不是文章與問答（沒有 paragraphs），有的是 {listed(row)}")
            return
        columns = self.columns
        if columns.question not in row or columns.context not in row:
            missing = columns.question if columns.question not in row else columns.context
            raise ValueError(f"沒有 {missing} 欄，有的是 {listed(row)}")
        context = cell_text(row[columns.context])
        title = row.get(columns.title) if columns.title else ""
        named = row.get(columns.id) if columns.id else None
        yield self._row(
            (cell_text(row[columns.question]), context, _group(title, context)),
            self._flat_answers(row, context),
            str(named) if isinstance(named, (str, int)) and named != "" else row_id,
        )

    # ---- nested --------------------------------------------------------------------------------------------

    def _article(self, article: dict, row_id: str) -> Iterator[SpanRow | Unreadable]:
        """Yield the questions of an article, or of a passage by itself."""
        paragraphs = article["paragraphs"] if isinstance(article.get("paragraphs"), list) else [article]
        title = article.get("title") or article.get("id") or ""
        for number, paragraph in enumerate(paragraphs, 1):
            place = f"第 {number} 段"
            if not isinstance(paragraph, dict) or not isinstance(paragraph.get("qas"), list):
                yield Unreadable(f"{place}沒有 qas（問答的串列）")
                continue
            context = paragraph.get("context", paragraph.get("context_text"))
            if not isinstance(context, str):
                yield Unreadable(f"{place}沒有 context（文章）")
                continue
            group = _group(title, context)
            for at, qa in enumerate(paragraph["qas"], 1):
                name = ""
                try:
                    if not isinstance(qa, dict):
                        raise ValueError(f"應該是一個物件，得到 {type(qa).__name__}")
                    found = next((qa[key] for key in ("id", "query_id", "qid") if is_name(qa.get(key))), "")
                    name = str(found) or f"{row_id}-{number}-{at}"
                    question = qa.get("question", qa.get("query_text"))
                    if not isinstance(question, str):
                        raise ValueError("沒有 question（問題）")
                    yield self._row((question, context, group), self._nested_answers(qa), name)
                except ValueError as error:
                    yield Unreadable(f"{place}第 {at} 題{f'（{name}）' * bool(name)}：{error}")

    def _nested_answers(self, qa: dict) -> list[tuple[str, int | None]]:
        """Return (text, start) of the answers of a question."""
        impossible = _truth(qa.get("is_impossible"), "is_impossible")
        cell = next((qa[key] for key in ANSWER_KEYS if key in qa), None)
        if cell is None and not impossible and self.need_answers:
            raise ValueError("沒有 answers（沒有答案請寫成空的串列 []）")
        return _checked(_answers(cell, None), impossible)

    # ---- flat ----------------------------------------------------------------------------------------------

    def _flat_answers(self, row: dict, context: str) -> list[tuple[str, int | None]]:
        """Return (text, start) of the answers of a flat row."""
        columns = self.columns
        assert columns is not None
        impossible = bool(columns.impossible) and _truth(row.get(columns.impossible), columns.impossible)
        if not columns.answer:
            return []
        if columns.answer not in row and not impossible and self.need_answers:
            raise ValueError(f"沒有 {columns.answer} 欄，有的是 {listed(row)}（沒有答案就留空）")
        cell, starts = row.get(columns.answer), row.get(columns.start) if columns.start else None
        if isinstance(cell, str) and cell not in context:
            written = written_list(ARRAY.sub(r"\1", cell))
            cell = _separate(cell, context) if written is None else written
        if isinstance(starts, str):
            written = written_list(ARRAY.sub(r"\1", starts))
            starts = _numbers(starts) if written is None else written
        return _checked(_answers(cell, starts), impossible)

    # ---- both ----------------------------------------------------------------------------------------------

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


def is_name(value: object) -> bool:
    """Return whether a value can name a row: a text that is not empty, or a whole number."""
    return isinstance(value, (str, int)) and not isinstance(value, bool) and value != ""


def _group(title: object, context: str) -> str:
    """Return the name of an article; where there is none the passage stands for it."""
    if is_name(title) and not is_blank(title):
        return str(title)
    return hashlib.sha256(context.encode("utf-8", "replace")).hexdigest()[:16]


def _truth(value: object, name: str) -> bool:
    """Return a cell that says yes or no. Raises ValueError: it says neither."""
    if isinstance(value, bool) or is_blank(value):
        return bool(value) and not is_blank(value)
    text = str(value).strip().lower()
    if text not in (*YES, *NO):
        raise ValueError(f"{name} 應是 true 或 false，得到 {shown(value)}")
    return text in YES


def _checked(answers: list[tuple[str, int | None]], impossible: bool) -> list[tuple[str, int | None]]:
    """Return the answers. Raises ValueError where there are some and the row says that there are none."""
    if impossible and answers:
        raise ValueError(f"註明沒有答案（is_impossible），卻有答案 {shown(answers[0][0])}")
    return answers


def _answers(cell: Any, starts: Any) -> list[tuple[str, int | None]]:
    """Return (text, start) of each answer in a cell, whatever its layout; blank texts are no answers.

    Args:
        cell: a text, a list of texts or of dicts, or a dict of text(s) and start(s).
        starts: start or starts of a column of its own.

    Raises:
        ValueError: no such layout, or not as many starts as texts.
    """
    if isinstance(cell, dict):
        texts = next((cell[key] for key in ("text", "texts", "answer_text") if key in cell), None)
        if texts is None and cell:
            raise ValueError(f"答案沒有 text，有的是 {listed(cell)}")
        keys = ("answer_start", "answer_starts", "start", "starts")
        return _answers(texts, next((cell[key] for key in keys if key in cell), starts))
    if isinstance(cell, (list, tuple)):
        if any(isinstance(item, dict) for item in cell):
            return [pair for item in cell for pair in _answers(item, None)]
        texts = [_answer_text(item) for item in cell]
        if starts is None or is_blank(starts):
            starts = [None] * len(texts)
        places = list(starts) if isinstance(starts, (list, tuple)) else [starts]
        if len(places) != len(texts):
            raise ValueError(f"有 {len(texts)} 個答案，answer_start 卻有 {len(places)} 個")
        pairs = zip(texts, map(parse_start, places), strict=True)
        return [(text, place) for text, place in pairs if not is_blank(text)]
    if isinstance(starts, (list, tuple)):
        starts = starts[0] if len(starts) == 1 else starts or None
        if isinstance(starts, (list, tuple)):
            raise ValueError(f"有 1 個答案，answer_start 卻有 {len(starts)} 個")
    text = _answer_text(cell)
    return [] if is_blank(text) else [(text, parse_start(starts))]


def _answer_text(value: object) -> str:
    """Return an answer as text. Raises ValueError for what is none."""
    if isinstance(value, bool):
        raise ValueError(f"答案應是文章裡的一段文字，得到 {value}")
    return cell_text(value)


def _separate(cell: str, context: str) -> str | list[str]:
    """Return the answers of a cell that is not in the passage as a whole, where all its parts are."""
    for mark in BETWEEN:
        parts = [part.strip() for part in cell.split(mark)]
        parts = [part for part in parts if part]
        if len(parts) > 1 and all(part in context for part in parts):
            return parts
    return cell


def _numbers(cell: str) -> str | list[str]:
    """Return the starts of a cell: several are separated as the answers are, or by commas."""
    parts = [part.strip() for part in re.split(r"[|｜；;,，、\s]+", cell.strip()) if part.strip()]
    return parts if len(parts) > 1 else cell


def flat_questions(article: dict) -> Iterator[dict[str, Any] | Unreadable]:
    """Yield the questions of an article, or of a passage by itself, as flat rows with what is there of them.

    Their columns are `id`, `title`, `question`, `context`, `answers` and `is_impossible`.
    """
    paragraphs = article["paragraphs"] if isinstance(article.get("paragraphs"), list) else [article]
    for number, paragraph in enumerate(paragraphs, 1):
        if not isinstance(paragraph, dict) or not isinstance(paragraph.get("qas"), list):
            yield Unreadable(f"第 {number} 段沒有 qas（問答的串列）")
            continue
        context = paragraph.get("context", paragraph.get("context_text"))
        for qa in paragraph["qas"]:
            if not isinstance(qa, dict):
                yield Unreadable(f"第 {number} 段有一題不是物件，得到 {type(qa).__name__}")
                continue
            found = {
                "id": next((qa[key] for key in ("id", "query_id", "qid") if is_name(qa.get(key))), ""),
                "title": article.get("title") or article.get("id") or "",
                "question": qa.get("question", qa.get("query_text")), "context": context,
                "answers": next((qa[key] for key in ANSWER_KEYS if key in qa), None),
                "is_impossible": qa.get("is_impossible"),
            }  # fmt: skip
            yield {name: value for name, value in found.items() if value is not None}
