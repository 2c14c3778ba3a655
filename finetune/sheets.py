"""Whole files of questions or sentences, answered row by row into another file.

What is answered goes, in order, to `{output}.part`, one JSON object a line; the last act turns that into the
output. So a killed run loses at most the rows it was answering, and the same command goes on after the last
whole round. Memory does not grow with the file. Several processes answer one round each at a time, and the
first one writes. Rounds are the same rows however many processes there are and wherever a run was stopped, so
that the scores are the same to the last digit too.
"""

from __future__ import annotations

import hashlib
import json
import math
import signal
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

from . import reading
from .cli import say
from .decoding import Decoding
from .errors import Stopped, UserError
from .examinee import Examinee, asks_for_words
from .exams import LETTERS, Question, parse_question
from .inference_flags import tell_of_idle_writing
from .instructions import parse_instruction
from .journal import Journal
from .methods import GENERATE, parse
from .scoring import best
from .tables import Unreadable, read_table, write_table

ROUND = 64  # rows a process answers between two writes
PRIOR_ROWS = 2000  # rows from whose questions the prior of letters is estimated
SHOWN = 3  # problems told at the end
LEAST = 1e-45  # a probability that rounded to nothing
QUESTION_COLUMNS = {
    "row": "whole", "id": "text", "question": "text", "answer": "text", "answer_text": "text",
    "scores": "scores", "error": "text",
}  # fmt: skip
PROMPT_COLUMNS = {
    "row": "whole", "id": "text", "prompt": "text", "word": "text", "words": "list", "scores": "numbers",
    "error": "text",
}  # fmt: skip
REPLY_COLUMNS = {"row": "whole", "id": "text", "prompt": "text", "response": "text", "error": "text"}
SUBMISSION = {"ID": "text", "Answer": "text"}  # csv of what a causal model chose, as competitions take it
ASKS = {"question", "問題"}  # columns by which a row is a question
TELLS = {"prompt", "instruction", "messages", "conversations"}  # by which it is something to go on from


def answer_file(flags, examinee: Examinee, world) -> int:
    """Answers --input into --output. Returns the exit code: 2 when --strict and a row could not be answered.

    Raises:
        UserError: a file that cannot be read at all, or an unfinished one of another run.
    """
    source, output = Path(flags.input), Path(flags.output)
    path = output.with_name(output.name + ".part")
    if output.exists() and not path.exists() and not flags.overwrite:
        raise UserError(f"--output {output} 已經存在；換一個名字，或加 --overwrite 重新作答")
    sheet = _sheet_for(_first_row(source), flags, examinee)
    total = sum(1 for _ in read_table(source))
    journal = Journal(path, sheet.identity(source)) if world.is_main else None
    size = flags.batch_size or ROUND
    done = world.agree(journal.open(size) if journal else None)
    if isinstance(done, str):
        raise UserError(done)
    if done:
        say(f"從 {output.name}.part 接著做：已答 {done}/{total} 列")
    try:
        _answer_rows(source, sheet, journal, done, total, size, world)
    except KeyboardInterrupt:
        raise Stopped(signal.SIGINT, f"已中斷；答好的存於 {path}，同一個指令會接著做") from None
    errors = world.agree(_finish(journal, output, sheet, flags.json) if journal else None)
    return 2 if errors and flags.strict else 0


def _answer_rows(source: Path, sheet: Sheet, journal, done: int, total: int, size: int, world) -> None:
    from tqdm import tqdm

    rows = enumerate(read_table(source), 1)
    next(islice(rows, done, done), None)  # those already answered
    bar = tqdm(
        desc="作答", unit="列", total=total, initial=done, dynamic_ncols=True,
        disable=not (world.is_main and sys.stderr.isatty()),
    )  # fmt: skip
    with bar:
        while block := list(islice(rows, size * world.size)):
            mine = block[world.rank * size : (world.rank + 1) * size]
            records = world.gather(sheet.answer(mine))  # by rank, and so in order
            if journal:
                journal.add(records)
            bar.update(len(block))


def _finish(journal: Journal, output: Path, sheet: Sheet, as_json: bool) -> int:
    """Turns the journal into the output; tells what could not be answered. Returns how many."""
    errors, shown, count = 0, [], 0

    def counted() -> Iterator[dict]:
        nonlocal errors, count
        for record in journal.records():
            count += 1
            if record["error"]:
                errors += 1
                if len(shown) < SHOWN:
                    shown.append(f"  第 {record['row']} 列：{record['error']}")
            yield record

    half, suffix = output.with_name(f".{output.name}.half"), output.suffix.lower()
    columns = sheet.columns_in(suffix)
    write_table(half, map(sheet.written(suffix), counted()), columns, suffix, columns is not SUBMISSION)
    half.replace(output)
    journal.remove()
    if as_json:
        print(json.dumps({"output": str(output), "rows": count, "errors": errors}, ensure_ascii=False))
    say(f"{output}：{count} 列，答了 {count - errors} 列" + (f"，{errors} 列答不了：" if errors else ""))
    for line in shown:
        say(line)
    if errors > len(shown):
        seen = f"{output} 的 error 欄" if "error" in columns else "error 欄：--output 改用 .jsonl 就會寫出來"
        say(f"  … 其餘見 {seen}")
    return errors


def _first_row(source: Path) -> dict:
    """The first row that can be read, which says what kind of file it is.

    Raises:
        UserError: none has the columns of either kind.
    """
    problems: list[str] = []
    for line, row in read_table(source):
        if isinstance(row, dict) and (_asks(row) or row.keys() & TELLS):
            return row
        if len(problems) < SHOWN:
            columns = "、".join(map(str, row)) if isinstance(row, dict) else ""
            found = f"沒有 question、prompt 或 instruction 欄，有的是 {columns or '（無）'}"
            problems.append(f"{source}:{line}：{row if isinstance(row, Unreadable) else found}")
    raise UserError(problems or [f"--input {source}：空的檔案"])


def _asks(row: dict) -> bool:
    """True for a row that is a question with options."""
    return bool(row.keys() & ASKS) or reading.is_reading(row)


def _sheet_for(first: dict, flags, examinee: Examinee) -> Sheet:
    """The kind of sheet that the first row asks for."""
    if _asks(first):
        return QuestionSheet(flags, examinee)
    if examinee.writes:
        return ReplySheet(flags, examinee)
    if "prompt" not in first:
        raise UserError(f"--input {flags.input}：指令與對話要由因果模型回答，--model_path 是填空的模型")
    return PromptSheet(flags, examinee)


class Sheet(ABC):
    """Answers rows of one kind."""

    columns: dict[str, str]
    text = "prompt"  # the column that is asked
    method = ""

    def __init__(self, flags, examinee: Examinee):
        self.flags, self.examinee = flags, examinee

    def columns_in(self, suffix: str) -> dict[str, str]:
        """Of an output of this format."""
        return self.columns

    def written(self, suffix: str):
        """How a record goes into an output of this format."""
        return lambda record: record

    def identity(self, source: Path) -> dict:
        """What must be the same for a run to go on: the rows, the model, and how it is asked."""
        rows = hashlib.sha256()
        with source.open("rb") as stream:
            while block := stream.read(1 << 20):
                rows.update(block)
        same = ("top_k", "word_length", "candidates", "orders", "precision", "answer_format")
        return {
            "input": rows.hexdigest()[:16], "model": self.examinee.digest(), "scoring": self.method,
            "decoding": str(self.flags.decoding) if self.examinee.writes else "",
            **{name: getattr(self.flags, name) for name in same},
        }  # fmt: skip

    def answer(self, block: list[tuple[int, tuple[int, dict | Unreadable]]]) -> list[dict]:
        """One record for each (number, (line, row))."""
        return self.records([(number, row) for number, (_, row) in block])

    @abstractmethod
    def records(self, rows: list[tuple[int, dict | Unreadable]]) -> list[dict]:
        """Likewise, for each (number, row)."""

    def blank(self, number: int, row: dict | Unreadable) -> dict:
        """The record of a row that is not answered yet."""
        given = row if isinstance(row, dict) else {}
        record = dict.fromkeys(self.columns)
        name = given.get("id", given.get("ID"))
        asked = _plain(given.get(self.text))
        record |= {"row": number, "id": None if name is None else _plain(name), self.text: asked}
        return record


class QuestionSheet(Sheet):
    """Questions with options."""

    text = "question"

    def __init__(self, flags, examinee: Examinee):
        super().__init__(flags, examinee)
        self.method = examinee.method(flags.scoring)
        if examinee.writes:
            tell_of_idle_writing(flags)
        self.columns = dict(QUESTION_COLUMNS)
        if self.method == GENERATE:
            self.columns["response"] = "text"
        self.prior = self._prior() if parse(self.method).correction == "prior" else None

    def columns_in(self, suffix: str) -> dict[str, str]:
        return SUBMISSION if self._submits(suffix) else self.columns

    def written(self, suffix: str):
        if not self._submits(suffix):
            return super().written(suffix)
        return lambda record: {"ID": record["id"] or record["row"], "Answer": record["answer"]}

    def _submits(self, suffix: str) -> bool:
        return self.examinee.writes and suffix == ".csv"

    def _prior(self):
        questions = []
        for _, row in islice(read_table(Path(self.flags.input)), PRIOR_ROWS):
            try:
                questions.append(_as_question(row))
            except ValueError:
                pass  # told when its turn comes
        return self.examinee.prior(questions)

    def records(self, rows: list[tuple[int, dict | Unreadable]]) -> list[dict]:
        records, asked = [], []
        for number, row in rows:
            record = self.blank(number, row)
            try:
                question = _as_question(row)
                record["question"] = _plain(question.stem)
                # 選項1 counts from 1; letters and lists do from 0
                asked.append((record, question, int(reading.is_reading(row))))
            except ValueError as error:
                record["error"] = str(error)
            records.append(record)
        questions = [question for _, question, _ in asked]
        scores = self.examinee.score(questions, self.method, self.flags.orders, prior=self.prior)
        for index, (record, question, first) in enumerate(asked):
            if self.method == GENERATE:
                record["response"] = scores.replies.get(index)
            if index in scores.refused or index in scores.unreadable:
                record["error"] = scores.refused.get(index) or f"回答看不出選了哪一個：{record['response']!r}"
                continue
            chosen = best(scores[index])
            record |= {
                "answer": LETTERS[chosen] if self.flags.answer_format == "letter" else chosen + first,
                "answer_text": _plain(question.options[chosen]),
            }
            if self.method != GENERATE:
                rounded = (round(score, 6) for score in scores[index])
                record["scores"] = dict(zip(LETTERS, rounded, strict=False))
        return records


class PromptSheet(Sheet):
    """Sentences with blanks."""

    columns = PROMPT_COLUMNS

    def records(self, rows: list[tuple[int, dict | Unreadable]]) -> list[dict]:
        records, single = [], []
        for number, row in rows:
            record = self.blank(number, row)
            records.append(record)
            try:
                prompt = _as_prompt(row)
                blanks = self.examinee.read(prompt)
                how = self.flags.word_length, self.flags.candidates
                if asks_for_words(blanks, *how):
                    found = self.examinee.words(prompt, self.flags.top_k, *how)
                    _fill_in(record, [(filling.word, filling.score) for filling in found])
                else:
                    single.append((record, blanks))
            except (ValueError, UserError) as error:
                record["error"] = str(error)
        filled = self.examinee.fill([blanks for _, blanks in single], self.flags.top_k)
        for (record, _), found in zip(single, filled, strict=True):
            _fill_in(record, [(word, math.log(max(share, LEAST))) for word, share in found])
        return records


class ReplySheet(Sheet):
    """Prompts, instructions and conversations, for a model that writes."""

    columns = REPLY_COLUMNS

    def records(self, rows: list[tuple[int, dict | Unreadable]]) -> list[dict]:
        records, asked = [], []
        for number, row in rows:
            record = self.blank(number, row)
            records.append(record)
            try:
                said = _as_message(row)
                record["prompt"] = _plain(said if isinstance(said, str) else said[-1]["content"])
                asked.append((record, self.examinee.ask(said)))
            except (ValueError, UserError) as error:
                record["error"] = str(error)
        asked = [(record, ids) for record, ids in asked if self._fits(record, ids)]
        decoding: Decoding = self.flags.decoding
        if decoding.samples and decoding.seed is not None and records:  # other draws for other rounds
            decoding = replace(decoding, seed=decoding.seed * 1_000_003 + records[0]["row"])
        replies = self.examinee.reply([ids for _, ids in asked], decoding)
        for (record, _), reply in zip(asked, replies, strict=True):
            record["response"] = _plain(reply)
        return records

    def _fits(self, record: dict, ids: list[int]) -> bool:
        if len(ids) >= self.examinee.longest:
            record["error"] = f"提示有 {len(ids)} 個 token，這個模型連同回答最多 {self.examinee.longest} 個"
        return not record["error"]


def _as_question(row: dict | Unreadable) -> Question:
    """Raises ValueError with the reason why it is none. The key, if any, is not looked at."""
    if isinstance(row, Unreadable):
        raise ValueError(row)
    question = parse_question({**row, "answer": None} if isinstance(row, dict) else row, need_answer=False)
    if not all(map(_is_text, (question.stem, *question.options, question.subject))):
        raise ValueError("有不成字的字元（半個 surrogate），不是合法的 UTF-8")
    return question


def _as_prompt(row: dict | Unreadable) -> str:
    if isinstance(row, Unreadable):
        raise ValueError(row)
    if not isinstance(row, dict) or "prompt" not in row:
        raise ValueError("沒有 prompt 欄")
    prompt = row["prompt"]
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError("prompt 是空的" if isinstance(prompt, (str, type(None))) else "prompt 應該是文字")
    return prompt


def _as_message(row: dict | Unreadable) -> str | list[dict[str, str]]:
    """A prompt, or a conversation that the user spoke last in. Raises ValueError with the reason why it is
    none."""
    if isinstance(row, dict) and row.keys() & (TELLS - {"prompt"}):
        return parse_instruction(row, need_answer=False).messages
    return _as_prompt(row)


def _fill_in(record: dict, found: list[tuple[str, float]]) -> None:
    """Words and their scores, nats per token."""
    record["words"] = [word for word, _ in found]
    record["scores"] = [round(score, 6) for _, score in found]
    record["word"] = found[0][0] if found else None


def _plain(value: object) -> str:
    """A value as text that any file can hold."""
    if not isinstance(value, str):  # a date, a number, bytes of parquet
        value = "" if value is None else json.dumps(value, ensure_ascii=False, default=str)
    return value.encode("utf-8", "replace").decode()


def _is_text(value: str) -> bool:
    """False for half a surrogate pair, which JSON can hold and no tokenizer or file can."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
