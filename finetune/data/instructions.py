"""Instruction data: chats, instructions, reading comprehension and exam questions.

    chat     conversations, instructions, prompts with their answers: the layouts of data/turns.py
    reading  文章, 問題, 選項1–4, 正確答案 (from 1), or article, question, option1–4, answer
    exam     question, A, B, …, answer, and the other layouts of data/exam.py

The last two become exam questions, and are split, trained on and evaluated as such.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from finetune.data import hub_dataset
from finetune.data.bad_rows import Unreadable, bad_rows_report, summarize_problems, where
from finetune.data.data_files import DataFile, no_data_message, stem_of, without_test
from finetune.data.exam import Exam, read_exam
from finetune.data.messages import Turn
from finetune.data.question_columns import looks_like_question
from finetune.data.question_rows import draft
from finetune.data.turns import (
    CHATS,
    UnusableRowError,
    check_trainable,
    is_answered,
    is_answered_chat,
    is_chat,
    turns_of,
)
from finetune.runtime.errors import UserError, listed
from finetune.runtime.strict_json import too_long

# role and content, as chat templates take them; also reasoning_content, and train: False
Message = dict[str, Any]
LOOKED = 20  # rows looked at to find out what a file holds


@dataclass(frozen=True)
class Instruction:
    """A conversation whose last message is the answer of the assistant to learn.

    Attributes:
        turns: (role, content) of each message.
        untaught: places of the answers that are context only.
        thoughts: (place, text) of the reasoning before an answer.
    """

    turns: tuple[tuple[str, str], ...]
    id: str = ""
    untaught: tuple[int, ...] = ()
    thoughts: tuple[tuple[int, str], ...] = ()

    @property
    def messages(self) -> list[Message]:
        """The messages as `prompts.chat.Chat` takes them."""
        messages: list[Message] = [{"role": role, "content": content} for role, content in self.turns]
        for place, thought in self.thoughts:
            messages[place]["reasoning_content"] = thought
        for place in self.untaught:
            messages[place]["train"] = False
        return messages

    @property
    def fingerprint(self) -> str:
        """Hash of all contents and thoughts, 16 hex digits, whichever answers are trained on."""
        texts = [*(content for _, content in self.turns), *(thought for _, thought in self.thoughts)]
        return hashlib.sha256("\x1f".join(texts).encode()).hexdigest()[:16]


@dataclass
class InstructionDataset:
    """Instructions and their origin.

    Attributes:
        skipped: rows left out, each with the reason.
        remarks: how rows were read, with the number of rows each remark holds for.
    """

    rows: list[Instruction]
    origin: str
    skipped: list[str] = field(default_factory=list)
    remarks: Counter[str] = field(default_factory=Counter)


def read_instructions(
    source: str,
    revision: str | None = None,
    subjects: str = "all",
    on_bad_rows: str = "fail",
    flag: str = "--dataset",
    answers_from: str = "auto",
) -> InstructionDataset | Exam:
    """Read instructions from a file, a folder or the hub; an Exam where the rows are questions.

    Raises:
        UserError: nothing to read, or rows that are no instructions, with every such row named.
    """
    folder, files, origin = hub_dataset.find_files(source, revision or "main", flag)
    if not files:
        raise UserError(no_data_message(folder, f"{flag} {source}"))
    rows = (row for file in files for _, row in islice(file.rows(), LOOKED) if isinstance(row, dict))
    head = list(islice(rows, LOOKED))
    if any(map(is_question, head)) and not any(map(is_answered_chat, head)):
        return read_exam(source, revision or "main", subjects, on_bad_rows, flag, answers_from)
    if head and head[0].keys() & {"text", "paragraphs", "content"} and not any(map(_is_conversation, head)):
        raise UserError(f"{flag} {source}：看起來是文章（欄位 {listed(head[0])}）；請用 --task cpt")
    dataset = InstructionDataset([], origin)
    for file in without_test(files):
        dataset.rows += _read_rows(file, dataset)
    problems = dataset.skipped
    if problems and on_bad_rows == "fail":
        raise UserError(bad_rows_report(problems, len(dataset.rows)))
    if not dataset.rows:
        notes = [f"{text}（{count} 列）" for text, count in dataset.remarks.items()]
        raise UserError([*summarize_problems(problems), *notes, f"{flag} {source}：一列也沒有"])
    return dataset


def is_question(row: dict) -> bool:
    """Return whether a row is, or is meant as, a question with options."""
    if looks_like_question(row):
        return True
    try:
        return bool(draft({**row, "answer": None}))
    except ValueError:
        return False


def _is_conversation(row: dict) -> bool:
    """Return whether a row is a conversation, or one message of it."""
    return is_chat(row) or is_answered(row) or bool(row.keys() & {"role", *CHATS})


def _read_rows(file: DataFile, dataset: InstructionDataset) -> Iterator[Instruction]:
    """Yield the instructions of a file; note bad rows and remarks in `dataset`."""
    for line, row in file.rows():
        place = where(file.path, line)
        remarks: set[str] = set()
        if isinstance(row, Unreadable):
            dataset.skipped.append(f"{place}：{row}")
            continue
        try:
            yield parse_instruction(row, f"{stem_of(file.path)}/{line}", remarks=remarks)
            dataset.remarks.update(remarks)
        except UnusableRowError as reason:
            dataset.remarks[f"{reason}不用於訓練"] += 1
        except ValueError as error:
            dataset.skipped.append(f"{place}：{error}")


def parse_instruction(
    row: object, row_id: str = "", need_answer: bool = True, remarks: set[str] | None = None
) -> Instruction:
    """Parse a row of any layout of data/turns.py.

    Args:
        need_answer: False takes a row to be answered, and drops the answer that it may have.
        remarks: readings that a person may not expect are added here.

    Raises:
        ValueError: with the reason in Chinese; UnusableRowError where nothing is wrong with the row, but it
            is not for training.
    """
    remarks = set() if remarks is None else remarks
    if need_answer:
        check_trainable(row)
    turns = turns_of(row, remarks)
    if reason := too_long(*(turn.content for turn in turns)):
        raise ValueError(f"有一句話{reason}")
    if need_answer:
        turns = _trim_after_last_answer(turns, remarks)
    else:
        turns = turns[:-1] if turns and turns[-1].role == "assistant" else turns
        if not turns or turns[-1].role != "user":
            raise ValueError("最後一句要是使用者說的，才能回答")
        if not turns[-1].content.strip():
            raise ValueError("最後一句是空的")
    names = [row.get(key) for key in ("id", "ID")] if isinstance(row, dict) else []
    name = next((str(value) for value in names if value not in (None, "") and value == value), "")
    return Instruction(
        tuple((turn.role, turn.content) for turn in turns),
        name or row_id,
        tuple(at for at, turn in enumerate(turns) if not turn.trained),
        tuple((at, turn.thought) for at, turn in enumerate(turns) if turn.thought),
    )


def _trim_after_last_answer(turns: list[Turn], remarks: set[str]) -> list[Turn]:
    """Drop the turns after the last trained answer: they contribute nothing to the loss.

    Raises:
        ValueError: there is no trained answer.
    """
    trained = [at for at, turn in enumerate(turns) if turn.role == "assistant" and turn.trained]
    if not trained:
        if any(turn.role == "assistant" and turn.content.strip() and turn.marked for turn in turns):
            raise UnusableRowError("每一則回答都標了不訓練的列")
        raise ValueError("沒有回答（output，或最後一則 assistant 訊息）")
    if turns[-1].role != "assistant" or not (turns[-1].content.strip() or turns[-1].thought):
        remarks.add("最後的話沒有回答，不訓練")
    return turns[: trained[-1] + 1]
