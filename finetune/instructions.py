"""What a model is to answer, and how: rows of Alpaca, chats, reading comprehension and exam questions.

    Alpaca   instruction, input (may be empty), output; also system and history ([[asked, answered], …])
    chat     messages ([{role, content}, …]) or conversations ([{from, value}, …])
    reading  文章, 問題, 選項1–4, 正確答案 (from 1), or article, question, option1–4, answer
    exam     question, A, B, …, answer, and the other layouts of exams.py

The last two become exam questions: they are split, taught and examined as such.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from . import hub
from .bad_rows import Unreadable, abridged, too_many, where
from .chats import Message
from .data_files import DataFile, nothing_in, stem_of, without_test
from .errors import UserError, listed, shown
from .exams import Exam, read_exam

ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}
TELLS = {"instruction", "messages", "conversations"}  # columns of rows that are no questions
WAYS = "instruction/output（Alpaca）、messages（對話）、文章/問題/選項1–4（閱讀）或 question/A/B…/answer"


@dataclass(frozen=True)
class Instruction:
    """A conversation whose last message is what the assistant is to say: (role, content) of each message."""

    turns: tuple[tuple[str, str], ...]
    id: str = ""

    @property
    def messages(self) -> list[Message]:
        return [{"role": role, "content": content} for role, content in self.turns]

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256("\x1f".join(content for _, content in self.turns).encode()).hexdigest()[:16]


@dataclass
class Course:
    """Instructions, and where they came from."""

    rows: list[Instruction]
    origin: str
    skipped: list[str] = field(default_factory=list)


def read_course(
    source: str,
    revision: str | None = None,
    subjects: str = "all",
    on_bad_rows: str = "fail",
    flag: str = "--dataset",
) -> Course | Exam:
    """Instructions from a file, a folder or the hub; an Exam where the rows are questions.

    Raises:
        UserError: nothing there, rows that are none (all of them are named).
    """
    folder, files, origin = hub.find_files(source, revision or "main", flag)
    if not files:
        raise UserError(nothing_in(folder, f"{flag} {source}"))
    first = next((row for file in files for _, row in file.rows() if isinstance(row, dict)), {})
    if not first.keys() & TELLS and _asks(first):
        return read_exam(source, revision or "main", subjects, on_bad_rows, flag)
    if first.keys() & {"text", "paragraphs", "content"} and not first.keys() & TELLS:
        raise UserError(f"{flag} {source}：看起來是文章（欄位 {listed(first)}）；請用 --task cpt")
    problems: list[str] = []
    rows = [row for file in without_test(files) for row in _rows(file, problems)]
    if problems and on_bad_rows == "fail":
        raise UserError(too_many(problems, len(rows)))
    if not rows:
        raise UserError([*abridged(problems), f"{flag} {source}：一列也沒有"])
    return Course(rows, origin, problems)


def _asks(row: dict) -> bool:
    """True for a row that looks like a question with options."""
    from .reading import is_reading

    return is_reading(row) or ("question" in row and bool(row.keys() & {"A", "choices", "options"}))


def _rows(file: DataFile, problems: list[str]) -> Iterator[Instruction]:
    for line, row in file.rows():
        if isinstance(row, Unreadable):
            problems.append(f"{where(file.path, line)}：{row}")
            continue
        try:
            yield parse_instruction(row, f"{stem_of(file.path)}/{line}")
        except ValueError as error:
            problems.append(f"{where(file.path, line)}：{error}")


def parse_instruction(row: object, row_id: str = "", need_answer: bool = True) -> Instruction:
    """A row of Alpaca's or a chat's layout.

    Args:
        need_answer: False takes a row whose answer is yet to be given: what stands there is dropped.

    Raises:
        ValueError: with the reason in Chinese.
    """
    if not isinstance(row, dict):
        raise ValueError(f"應該是一個物件，得到 {type(row).__name__}")
    name = _text(row, "id") or _text(row, "ID") or row_id
    turns = _chat(row) if row.keys() & {"messages", "conversations"} else _alpaca(row)
    if not need_answer:
        turns = turns[:-1] if turns and turns[-1][0] == "assistant" else turns
        if not turns or turns[-1][0] != "user":
            raise ValueError("最後一句要是使用者說的，才能回答")
    elif turns[-1][0] != "assistant" or not turns[-1][1].strip():
        raise ValueError("沒有回答（output，或最後一則 assistant 訊息）")
    return Instruction(tuple(turns), name)


def _alpaca(row: dict) -> list[tuple[str, str]]:
    if "instruction" not in row:
        raise ValueError(f"欄位是 {listed(row)}；要有 {WAYS}")
    asked = _text(row, "instruction").strip()
    if more := _text(row, "input").strip():
        asked = f"{asked}\n\n{more}" if asked else more
    if not asked:
        raise ValueError("instruction 是空的")
    turns = [("system", system)] if (system := _text(row, "system").strip()) else []
    history = row.get("history") or []
    for pair in history if isinstance(history, list) else [history]:
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError("history 應該是一串 [問, 答]")
        turns += [("user", str(pair[0])), ("assistant", str(pair[1]))]
    return [*turns, ("user", asked), ("assistant", _text(row, "output").strip())]


def _chat(row: dict) -> list[tuple[str, str]]:
    listed = row.get("messages") or row.get("conversations")
    if not isinstance(listed, list) or not listed:
        raise ValueError("messages 應該是一串 {role, content}")
    turns = []
    for message in listed:
        if not isinstance(message, dict):
            raise ValueError("messages 應該是一串 {role, content}")
        role = ROLES.get(str(message.get("role", message.get("from"))))
        content = message.get("content", message.get("value"))
        if role is None:
            known = "、".join(dict.fromkeys(ROLES.values()))
            raise ValueError(f"不認得角色 {shown(message.get('role', message.get('from')))}，要是 {known}")
        if not isinstance(content, str):
            raise ValueError(f"{role} 的 content 應該是文字")
        turns.append((role, content))
    if "user" not in [role for role, _ in turns]:
        raise ValueError("沒有使用者的訊息")
    return turns


def _text(row: dict, name: str) -> str:
    value = row.get(name)
    if value is None or value != value:  # NaN is not itself
        return ""
    if isinstance(value, (list, dict)):
        raise ValueError(f"{name} 應該是文字，得到 {type(value).__name__}")
    return str(value)


def split_course(
    rows: list[Instruction], ratio: tuple[float, float, float], seed: int
) -> tuple[list[Instruction], list[Instruction], list[Instruction]]:
    """Rows to fit on, to choose by and to keep back. The same row twice counts once, so that none stands on
    both sides."""
    from .exams import shared_out
    from .questions import draw

    once = list({row.fingerprint: row for row in rows}.values())
    once.sort(key=lambda row: draw(seed, row.fingerprint))
    return shared_out(once, ratio)
