"""Whole files of questions, sentences or texts, answered row by row into another file.

What is answered goes, in order, to `{output}.part`, one JSON object a line; the last act turns that into the
output. So a killed run loses at most the rows it was answering, and the same command goes on after the last
whole round. Memory does not grow with the file. Several processes answer one round each at a time, and the
first one writes. Rounds are the same rows however many processes there are and wherever a run was stopped, so
that the scores are the same to the last digit too.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from finetune.data.bad_rows import Unreadable
from finetune.data.instructions import asks
from finetune.data.question_columns import find_columns
from finetune.data.tables import read_table, write_table
from finetune.data.turns import is_answered, is_talk, is_told
from finetune.predict.batch_rows import (
    SUBMISSION,
    TELLS,
    ClassificationRows,
    FillMaskRows,
    GenerationRows,
    McqRows,
    RowHandler,
)
from finetune.predict.predictor import Predictor
from finetune.runtime.console import as_json, log, print_optional
from finetune.runtime.errors import RunError, Stopped, UserError, listed, reason
from finetune.runtime.files import own_file, write_errors
from finetune.runtime.strict_json import dumps

ROUND = 64  # rows a process answers between two writes
SHOWN = 3  # problems told at the end


def answer_file(flags, examinee: Predictor, world) -> int:
    """Answers --input into --output. Returns the exit code: 2 when --strict and a row could not be answered.

    Raises:
        UserError: a file that cannot be read at all, or an unfinished one of another run.
    """
    source, output = Path(flags.input), Path(flags.output)
    path = output.with_name(output.name + ".part")
    if output.exists() and not path.exists() and not flags.overwrite:
        raise UserError(f"--output {output} 已經存在；換一個名字，或加 --overwrite 重新作答")
    now = _state(source)  # before its rows are read and hashed
    sheet = _row_handler(source, flags, examinee)
    total = sum(1 for _ in read_table(source))
    journal = Journal(path, sheet.identity(source)) if world.is_main else None
    size = flags.batch_size or ROUND
    way_on = f"答好的存於 {path}，同一個指令會接著做"

    def begin() -> int:
        try:
            return journal.open(size)
        except OSError as error:
            raise UserError(
                f"--output {output}：{path} 打不開（{reason(error)}）；請換一個 --output"
            ) from error

    def keep(records: list[dict]) -> None:
        if _state(source) != now:
            raise RunError(
                f"--input {source} 在作答途中變了，答案不知道是哪一份的；答好的留在 {path}："
                f"改回原來的內容就能接著做，要答新的內容請刪掉 {path.name}"
            )
        with write_errors(f"--output {output}：{path} 寫不進去", f"清出空間後，{way_on}"):
            journal.add(records)

    def finish() -> int:
        with write_errors(f"--output {output} 寫不進去", f"清出空間後，{way_on}"):
            return _finish(journal, output, sheet, flags.json)

    done = world.on_main(begin)
    if done:
        log(f"從 {output.name}.part 接著做：已答 {done}/{total} 列")
    try:
        _answer_rows(source, sheet, keep, done, total, size, world)
    except (KeyboardInterrupt, Stopped) as stop:
        code = stop.exit_code - 128 if isinstance(stop, Stopped) else signal.SIGINT
        raise Stopped(code, f"已中斷；{way_on}") from None
    errors = world.on_main(finish)
    return 2 if errors and flags.strict else 0


def _state(source: Path) -> tuple:
    """What of a file changes when it is written to, replaced or deleted."""
    try:
        found = source.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _answer_rows(source: Path, sheet: RowHandler, keep, done: int, total: int, size: int, world) -> None:
    """Args: `keep` takes the records of a round, on rank 0."""
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
            records = world.all_gather(sheet.answer(mine))  # by rank, and so in order
            world.on_main(lambda records=records: keep(records))
            bar.update(len(block))


def _finish(journal: Journal, output: Path, sheet: RowHandler, in_json: bool) -> int:
    """Turns the journal into the output; tells what could not be answered. Returns how many."""
    errors, shown, count = 0, [], 0

    def counted() -> Iterator[dict]:
        nonlocal errors, count
        for record in journal.records():
            count += 1
            sheet.tally(record)
            if record["error"]:
                errors += 1
                if len(shown) < SHOWN:
                    shown.append(f"  第 {record['row']} 列：{record['error']}")
            yield record

    suffix = output.suffix.lower()
    columns = sheet.columns_in(suffix)
    write_table(output, map(sheet.written(suffix), counted()), columns, suffix, columns is not SUBMISSION)
    journal.remove()
    lines, figures = sheet.summary()
    if in_json:
        print_optional(as_json({"output": str(output), "rows": count, "errors": errors, **figures}))
    else:
        for line in lines:
            print_optional(line)
    log(f"{output}：{count} 列，答了 {count - errors} 列" + (f"，{errors} 列答不了：" if errors else ""))
    for line in shown:
        log(line)
    for remark, number in sheet.remarks.items():
        log(f"  {remark}（{number} 列）")
    if errors > len(shown):
        seen = f"{output} 的 error 欄" if "error" in columns else "error 欄：--output 改用 .jsonl 就會寫出來"
        log(f"  … 其餘見 {seen}")
    return errors


def _first_row(source: Path) -> dict:
    """The first row that can be read, which says what kind of file it is.

    Raises:
        UserError: none has the columns of either kind.
    """
    problems: list[str] = []
    for line, row in read_table(source):
        if isinstance(row, dict) and (_asks(row) or row.keys() & TELLS or _is_open(row)):
            return row
        if isinstance(row, list) and is_told({"messages": row}):  # a conversation by itself
            return {"messages": row}
        if len(problems) < SHOWN:
            columns = listed(row if isinstance(row, dict) else ())
            found = f"沒有 question、prompt 或 instruction 欄，有的是 {columns}"
            problems.append(f"{source}:{line}：{row if isinstance(row, Unreadable) else found}")
    raise UserError(problems or [f"--input {source}：空的檔案"])


def _asks(row: dict) -> bool:
    """True for a row that is a question with options."""
    return bool(find_columns(tuple(map(str, row))).asked)


def _is_open(row: dict) -> bool:
    """True for a row that is to be answered in words."""
    return is_talk(row) or ((is_told(row) or is_answered(row)) and not asks(row))


def _row_handler(source: Path, flags, examinee: Predictor) -> RowHandler:
    """The kind of sheet that the model, or else the first row, asks for."""
    if examinee.kind == "classifier":
        return ClassificationRows(flags, examinee)
    first = _first_row(source)
    if _asks(first) and not (examinee.is_causal and _is_open(first)):
        return McqRows(flags, examinee)
    if examinee.is_causal:
        return GenerationRows(flags, examinee)
    if examinee.kind == "choice":
        raise UserError(f"--input {source}：--model_path 是選擇題模型，只答選擇題（question、A、B… 欄）")
    if "prompt" not in first:
        raise UserError(f"--input {flags.input}：指令與對話要由因果模型回答，--model_path 是填空的模型")
    return FillMaskRows(flags, examinee)


@dataclass
class Journal:
    """The answers so far: a line that says what they answer, then one record a line, in order."""

    path: Path
    identity: dict

    def open(self, size: int) -> int:
        """Opens it, and cuts off what a killed run left of a round of `size` records. Returns how many
        records it holds.

        Raises:
            UserError: it cannot be gone on with.
            OSError: it cannot be written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.stream = own_file(self.path, "a+b")
        self.stream.seek(0)
        first, whole, count = self.stream.readline(), 0, 0
        mine = dumps(self.identity).encode() + b"\n"
        if not first.endswith(b"\n") and not mine.startswith(first):
            raise UserError(f"{self.path} 不是這支程式留下的；請移開它，或換一個 --output")
        if first.endswith(b"\n"):
            known = _object(first)
            if other := [name for name in self.identity if known.get(name) != self.identity[name]]:
                raise UserError(
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
        lines = [dumps(record) + "\n" for record in records]
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
