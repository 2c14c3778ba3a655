"""Columns of flat rows of extractive question answering, by their usual names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from finetune.data.cells import column_key
from finetune.runtime.errors import UserError, listed

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
IMPOSSIBLE = ("isimpossible", "impossible", "unanswerable", "noanswer", "無答案", "无答案")
ID = ("id", "qid", "questionid", "queryid", "題號", "题号", "編號", "编号")


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
