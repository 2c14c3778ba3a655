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
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from .cli import say
from .errors import Stopped, UserError
from .examinee import Examinee, asks_for_words
from .exams import LETTERS, Question, parse_question
from .methods import parse
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


def answer_file(flags, examinee: Examinee, world) -> int:
    """Answers --input into --output. Returns the exit code: 2 when --strict and a row could not be answered.

    Raises:
        UserError: a file that cannot be read at all, or an unfinished one of another run.
    """
    source, output = Path(flags.input), Path(flags.output)
    path = output.with_name(output.name + ".part")
    if output.exists() and not path.exists() and not flags.overwrite:
        raise UserError(f"--output {output} 已經存在；換一個名字，或加 --overwrite 重新作答")
    sheet = Sheet(flags, examinee, "question" in _first_row(source))
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

    half = output.with_name(f".{output.name}.half")
    write_table(half, counted(), sheet.columns, output.suffix.lower())
    half.replace(output)
    journal.remove()
    if as_json:
        print(json.dumps({"output": str(output), "rows": count, "errors": errors}, ensure_ascii=False))
    say(f"{output}：{count} 列，答了 {count - errors} 列" + (f"，{errors} 列答不了：" if errors else ""))
    for line in shown:
        say(line)
    if errors > len(shown):
        say(f"  … 其餘見 {output} 的 error 欄")
    return errors


def _first_row(source: Path) -> dict:
    """The first row that can be read, which says what kind of file it is.

    Raises:
        UserError: none has the columns of either kind.
    """
    problems: list[str] = []
    for line, row in read_table(source):
        if isinstance(row, dict) and row.keys() & {"question", "prompt"}:
            return row
        if len(problems) < SHOWN:
            columns = "、".join(map(str, row)) if isinstance(row, dict) else ""
            found = f"沒有 question 或 prompt 欄，有的是 {columns or '（無）'}"
            problems.append(f"{source}:{line}：{row if isinstance(row, Unreadable) else found}")
    raise UserError(problems or [f"--input {source}：空的檔案"])


class Sheet:
    """Answers rows of one kind: questions, or prompts with blanks."""

    def __init__(self, flags, examinee: Examinee, of_questions: bool):
        self.flags, self.examinee, self.of_questions = flags, examinee, of_questions
        self.columns = QUESTION_COLUMNS if of_questions else PROMPT_COLUMNS
        self.method = examinee.method(flags.scoring)
        self.prior = self._prior() if of_questions and parse(self.method).correction == "prior" else None

    def _prior(self):
        questions = []
        for _, row in islice(read_table(Path(self.flags.input)), PRIOR_ROWS):
            try:
                questions.append(_as_question(row))
            except ValueError:
                pass  # told when its turn comes
        return self.examinee.prior(questions)

    def identity(self, source: Path) -> dict:
        """What must be the same for a run to go on: the rows, the model, and how it is asked."""
        rows = hashlib.sha256()
        with source.open("rb") as stream:
            while block := stream.read(1 << 20):
                rows.update(block)
        same = ("top_k", "word_length", "candidates", "orders", "precision", "answer_format")
        return {
            "input": rows.hexdigest()[:16], "model": self.examinee.digest(), "scoring": self.method,
            **{name: getattr(self.flags, name) for name in same},
        }  # fmt: skip

    def answer(self, block: list[tuple[int, tuple[int, dict | Unreadable]]]) -> list[dict]:
        """One record for each (number, (line, row))."""
        answer = self._answer_questions if self.of_questions else self._answer_prompts
        return answer([(number, row) for number, (_, row) in block])

    def _answer_questions(self, rows: list[tuple[int, dict | Unreadable]]) -> list[dict]:
        records, asked = [], []
        for number, row in rows:
            record = self._record(number, row, "question")
            try:
                asked.append((record, _as_question(row)))
            except ValueError as error:
                record["error"] = str(error)
            records.append(record)
        questions = [question for _, question in asked]
        scores = self.examinee.score(questions, self.method, self.flags.orders, prior=self.prior)
        for index, (record, question) in enumerate(asked):
            if index in scores.refused:
                record["error"] = scores.refused[index]
                continue
            chosen = best(scores[index])
            record |= {
                "answer": LETTERS[chosen] if self.flags.answer_format == "letter" else chosen,
                "answer_text": _plain(question.options[chosen]),
                "scores": dict(zip(LETTERS, (round(score, 6) for score in scores[index]), strict=False)),
            }
        return records

    def _answer_prompts(self, rows: list[tuple[int, dict | Unreadable]]) -> list[dict]:
        records, single = [], []
        for number, row in rows:
            record = self._record(number, row, "prompt")
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

    def _record(self, number: int, row: dict | Unreadable, text: str) -> dict:
        given = row if isinstance(row, dict) else {}
        record = dict.fromkeys(self.columns)
        name = given.get("id", given.get("ID"))
        record |= {"row": number, "id": None if name is None else _plain(name), text: _plain(given.get(text))}
        return record


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
    prompt = row.get("prompt") if isinstance(row, dict) else None
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError("prompt 是空的" if isinstance(prompt, (str, type(None))) else "prompt 應該是文字")
    return prompt


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


@dataclass
class Journal:
    """The answers so far: a line that says what they answer, then one record a line, in order."""

    path: Path
    identity: dict

    def open(self, size: int) -> int | str:
        """Opens it, and cuts off what a killed run left of a round of `size` records. Returns how many
        records it holds, or why it cannot be gone on with."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.stream = self.path.open("a+b")
        if taken := _lock(self.stream):
            return f"{self.path}：{taken}"
        self.stream.seek(0)
        first, whole, count = self.stream.readline(), 0, 0
        mine = json.dumps(self.identity, ensure_ascii=False).encode() + b"\n"
        if not first.endswith(b"\n") and not mine.startswith(first):
            return f"{self.path} 不是這支程式留下的；請移開它，或換一個 --output"
        if first.endswith(b"\n"):
            known = _object(first)
            if other := [name for name in self.identity if known.get(name) != self.identity[name]]:
                return (
                    f"{self.path} 是另一次作答留下的（{'、'.join(other)} 不同）；"
                    "要重新作答就刪掉它，或換一個 --output"
                )
            whole = at = self.stream.tell()
            for number, line in enumerate(self.stream, 1):
                at += len(line)
                if line.endswith(b"\n") and number % size == 0:
                    whole, count = at, number
        self.stream.truncate(whole)
        if not whole:
            self.stream.write(mine)
        return count

    def add(self, records: list[dict]) -> None:
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
        self.stream.write("".join(lines).encode())
        self.stream.flush()
        os.fsync(self.stream.fileno())

    def records(self) -> Iterator[dict]:
        self.stream.flush()
        self.stream.seek(0)
        self.stream.readline()
        for line in self.stream:
            yield json.loads(line)

    def remove(self) -> None:
        self.path.unlink()
        self.stream.close()


def _object(line: bytes) -> dict:
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _lock(stream) -> str:
    """Takes the file for this process. Returns why it cannot be had, "" when it is."""
    try:
        import fcntl
    except ImportError:  # not there on Windows
        return ""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return "另一個行程正在寫這個檔案；等它做完，或換一個 --output"
    return ""
