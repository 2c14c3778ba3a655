"""What a model is to answer, and how: chats, instructions, reading comprehension and exam questions.

    talk     conversations, instructions, prompts with their answers: the layouts of data/turns.py
    reading  文章, 問題, 選項1–4, 正確答案 (from 1), or article, question, option1–4, answer
    exam     question, A, B, …, answer, and the other layouts of data/exam.py

The last two become exam questions: they are split, taught and examined as such.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from finetune.data import hub_dataset
from finetune.data.bad_rows import Unreadable, abridged, too_many, where
from finetune.data.data_files import DataFile, nothing_in, stem_of, without_test
from finetune.data.exam import Exam, read_exam
from finetune.data.question_columns import looks_asked
from finetune.data.question_rows import draft
from finetune.data.turns import (
    CHATS,
    Turn,
    UnusableRowError,
    check_taught,
    is_answered,
    is_talk,
    is_told,
    turns_of,
)
from finetune.runtime.errors import UserError, listed
from finetune.runtime.strict_json import too_long

Message = dict[str, object]  # role and content, as chat templates take them; reasoning_content; train: False


LOOKED = 20  # rows of a file that tell what it holds


@dataclass(frozen=True)
class Instruction:
    """A conversation whose last message is what the assistant is to say.

    Args:
        turns: (role, content) of each message.
        untaught: places of what the assistant said that is context only.
        thoughts: (place, text) of what the assistant thought before it spoke.
    """

    turns: tuple[tuple[str, str], ...]
    id: str = ""
    untaught: tuple[int, ...] = ()
    thoughts: tuple[tuple[int, str], ...] = ()

    @property
    def messages(self) -> list[Message]:
        """As `chats.Chat` takes them."""
        found: list[Message] = [{"role": role, "content": content} for role, content in self.turns]
        for place, thought in self.thoughts:
            found[place]["reasoning_content"] = thought
        for place in self.untaught:
            found[place]["train"] = False
        return found

    @property
    def fingerprint(self) -> str:
        """Of what is said; not of what is taught of it."""
        said = [*(content for _, content in self.turns), *(thought for _, thought in self.thoughts)]
        return hashlib.sha256("\x1f".join(said).encode()).hexdigest()[:16]


@dataclass
class InstructionDataset:
    """Instructions, and where they came from."""

    rows: list[Instruction]
    origin: str
    skipped: list[str] = field(default_factory=list)
    remarks: Counter[str] = field(default_factory=Counter)  # how rows were read, and of how many that is so


def read_instructions(
    source: str,
    revision: str | None = None,
    subjects: str = "all",
    on_bad_rows: str = "fail",
    flag: str = "--dataset",
    answers_from: str = "auto",
) -> InstructionDataset | Exam:
    """Instructions from a file, a folder or the hub; an Exam where the rows are questions.

    Raises:
        UserError: nothing there, rows that are none (all of them are named).
    """
    folder, files, origin = hub_dataset.find_files(source, revision or "main", flag)
    if not files:
        raise UserError(nothing_in(folder, f"{flag} {source}"))
    rows = (row for file in files for _, row in islice(file.rows(), LOOKED) if isinstance(row, dict))
    first = list(islice(rows, LOOKED))
    if any(map(asks, first)) and not any(map(is_talk, first)):
        return read_exam(source, revision or "main", subjects, on_bad_rows, flag, answers_from)
    if first and first[0].keys() & {"text", "paragraphs", "content"} and not any(map(_speaks, first)):
        raise UserError(f"{flag} {source}：看起來是文章（欄位 {listed(first[0])}）；請用 --task cpt")
    course = InstructionDataset([], origin)
    for file in without_test(files):
        course.rows += _rows(file, course)
    problems = course.skipped
    if problems and on_bad_rows == "fail":
        raise UserError(too_many(problems, len(course.rows)))
    if not course.rows:
        said = [f"{text}（{count} 列）" for text, count in course.remarks.items()]
        raise UserError([*abridged(problems), *said, f"{flag} {source}：一列也沒有"])
    return course


def asks(row: dict) -> bool:
    """True for a row that is, or is meant as, a question with options."""
    if looks_asked(row):
        return True
    try:
        return bool(draft({**row, "answer": None}))
    except ValueError:
        return False


def _speaks(row: dict) -> bool:
    """True for a row that is a conversation, or one message of it."""
    return is_told(row) or is_answered(row) or bool(row.keys() & {"role", *CHATS})


def _rows(file: DataFile, course: InstructionDataset) -> Iterator[Instruction]:
    for line, row in file.rows():
        place, remarks = where(file.path, line), set()
        if isinstance(row, Unreadable):
            course.skipped.append(f"{place}：{row}")
            continue
        try:
            yield parse_instruction(row, f"{stem_of(file.path)}/{line}", remarks=remarks)
            course.remarks.update(remarks)
        except UnusableRowError as reason:
            course.remarks[f"{reason}不教"] += 1
        except ValueError as error:
            course.skipped.append(f"{place}：{error}")


def parse_instruction(
    row: object, row_id: str = "", need_answer: bool = True, remarks: set[str] | None = None
) -> Instruction:
    """A row of any layout of data/turns.py.

    Args:
        need_answer: False takes a row whose answer is yet to be given: what stands there is dropped.
        remarks: how the row was read, where a person may not expect it, is added.

    Raises:
        ValueError: with the reason in Chinese. UnusableRowError: nothing in it is to be learnt, and nothing wrong.
    """
    remarks = set() if remarks is None else remarks
    if need_answer:
        check_taught(row)
    turns = turns_of(row, remarks)
    if reason := too_long(*(turn.content for turn in turns)):
        raise ValueError(f"有一句話{reason}")
    if need_answer:
        turns = _up_to_the_last_answer(turns, remarks)
    else:
        turns = turns[:-1] if turns and turns[-1].role == "assistant" else turns
        if not turns or turns[-1].role != "user":
            raise ValueError("最後一句要是使用者說的，才能回答")
        if not turns[-1].content.strip():
            raise ValueError("最後一句是空的")
    names = [row.get(key) for key in ("id", "ID")] if isinstance(row, dict) else []
    name = next((str(one) for one in names if one not in (None, "") and one == one), "")
    return Instruction(
        tuple((turn.role, turn.content) for turn in turns),
        name or row_id,
        tuple(at for at, turn in enumerate(turns) if not turn.taught),
        tuple((at, turn.thought) for at, turn in enumerate(turns) if turn.thought),
    )


def _up_to_the_last_answer(turns: list[Turn], remarks: set[str]) -> list[Turn]:
    """The turns without those after the last one that is taught: nothing is learnt with them."""
    taught = [at for at, turn in enumerate(turns) if turn.role == "assistant" and turn.taught]
    if not taught:
        if any(turn.role == "assistant" and turn.content.strip() and turn.marked for turn in turns):
            raise UnusableRowError("每一則回答都標了不教的列")
        raise ValueError("沒有回答（output，或最後一則 assistant 訊息）")
    if turns[-1].role != "assistant" or not (turns[-1].content.strip() or turns[-1].thought):
        remarks.add("最後的話沒有回答，不教")
    return turns[: taught[-1] + 1]
