"""Batch prediction: answer a whole file of questions, prompts or texts row by row into another file.

Records go, in order, to `{output}.part`, one JSON object a line; the last step turns that into the output. So
a killed run loses at most the rows it was answering, and the same command continues after the last whole
round. Memory does not grow with the file. Each rank answers one round at a time, and rank 0 writes. Rounds
are the same rows however many ranks there are and wherever a run was stopped, so that the scores are the same
to the last digit too.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.cli.inference_args import InferenceArgs, required
from finetune.data.bad_rows import Unreadable, where
from finetune.data.instructions import is_question
from finetune.data.question_columns import find_question_columns
from finetune.data.tables import read_table
from finetune.data.turns import is_answered, is_answered_chat, is_chat
from finetune.predict.abilities import ability
from finetune.predict.batch_rows import (
    PROMPT_FIELDS,
    FillMaskRows,
    GenerationRows,
    McqRows,
)
from finetune.predict.generative import GenerativePredictor
from finetune.predict.predictor import MaskedLMPredictor, Predictor
from finetune.predict.row_handler import Block, RowHandler
from finetune.runtime.console import as_json, log, print_optional
from finetune.runtime.errors import RunError, Stopped, UserError, listed, reason
from finetune.runtime.files import write_errors
from finetune.runtime.journal import Journal

if TYPE_CHECKING:
    from finetune.runtime.distributed import Distributed

SHOWN = 3  # problems logged at the end


def answer_file(flags: InferenceArgs, predictor: Predictor, world: Distributed) -> int:
    """Answer --input into --output. Returns the exit code: 2 when --strict and a row could not be answered.

    Raises:
        UserError: a file that cannot be read at all, or an unfinished one of another run.
    """
    source = Path(required(flags.input))
    return process_file(flags, source, lambda: _row_handler(source, flags, predictor), world)


def process_file(
    flags: InferenceArgs, source: Path, make_handler: Callable[[], RowHandler], world: Distributed
) -> int:
    """Process the rows of a file into --output. Returns the exit code, see `answer_file`.

    Args:
        make_handler: returns what turns rows into records, and those into the output.

    Raises:
        UserError: see `answer_file`.
    """
    output = Path(required(flags.output))
    part = output.with_name(output.name + ".part")
    if output.exists() and not part.exists() and not flags.overwrite:
        raise UserError(f"--output {output} 已經存在；換一個名字，或加 --overwrite 重新作答")
    state = _file_state(source)  # before its rows are read and hashed
    handler = make_handler()
    total = sum(1 for _ in handler.read(source))
    journal = Journal(part, handler.identity(source) if world.is_main else {}, "--output")
    size = flags.batch_size or handler.round_size
    run = BatchRun(source, output, handler, journal, state, size)
    done = world.on_main(run.open)
    if done:
        log(f"從 {output.name}.part 接著做：已{handler.did.removesuffix('了')} {done}/{total} 列")
    try:
        run.answer_rows(done, total, world)
    except (KeyboardInterrupt, Stopped) as stop:
        code = stop.exit_code - 128 if isinstance(stop, Stopped) else signal.SIGINT
        raise Stopped(code, f"已中斷；{run.resume_hint}") from None
    errors = world.on_main(lambda: run.finish(flags.json))
    return 2 if errors and flags.strict else 0


def _file_state(source: Path) -> tuple:
    """Return what changes when a file is written to, replaced or deleted."""
    try:
        stat = source.stat()
    except OSError:
        return ()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


@dataclass
class BatchRun:
    """One batch prediction: the file, how its rows are answered, and where the records go.

    Attributes:
        state: state of the source when it was first read, see `_file_state`.
        round_size: rows a rank answers between two writes.
    """

    source: Path
    output: Path
    handler: RowHandler
    journal: Journal
    state: tuple
    round_size: int

    @property
    def resume_hint(self) -> str:
        """Hint for messages: how to continue."""
        return f"{self.handler.kept}存於 {self.journal.path}，同一個指令會接著做"

    def open(self) -> int:
        """Open the journal, on rank 0. Returns how many rows were answered before."""
        try:
            return self.journal.open(self.round_size)
        except OSError as error:
            path = self.journal.path
            raise UserError(
                f"--output {self.output}：{path} 打不開（{reason(error)}）；請換一個 --output"
            ) from error

    def answer_rows(self, done: int, total: int, world: Distributed) -> None:
        """Answer the rows after the first `done`, one round per rank at a time."""
        from tqdm import tqdm

        rows = enumerate(self.handler.read(self.source), 1)
        next(islice(rows, done, done), None)  # those already answered
        bar = tqdm(
            desc=self.handler.doing, unit="列", total=total, initial=done, dynamic_ncols=True,
            disable=not (world.is_main and sys.stderr.isatty()),
        )  # fmt: skip
        size = self.round_size
        with bar:
            while block := list(islice(rows, size * world.size)):
                rank_block: Block = block[world.rank * size : (world.rank + 1) * size]
                records = world.all_gather(self.handler.answer(rank_block))  # by rank, and so in order
                world.on_main(partial(self._write, records))
                bar.update(len(block))

    def _write(self, records: list[dict[str, Any]]) -> None:
        """Add the records of a round to the journal, on rank 0."""
        path = self.journal.path
        if _file_state(self.source) != self.state:
            kept = f"{self.handler.kept}留在 {path}"
            changed = f"{self.handler.flag} {self.source} 在{self.handler.doing}途中變了"
            raise RunError(
                f"{changed}，不知道是哪一份的；{kept}："
                f"改回原來的內容就能接著做，要做新的內容請刪掉 {path.name}"
            )
        with write_errors(f"--output {self.output}：{path} 寫不進去", f"清出空間後，{self.resume_hint}"):
            self.journal.add(records)

    def finish(self, in_json: bool) -> int:
        """Turn the journal into the output, on rank 0. Returns how many rows could not be answered."""
        with write_errors(f"--output {self.output} 寫不進去", f"清出空間後，{self.resume_hint}"):
            return _finish(self.journal, self.output, self.handler, in_json)


def _finish(journal: Journal, output: Path, handler: RowHandler, in_json: bool) -> int:
    """Turn the journal into the output; log what could not be answered. Returns how many rows."""
    errors = count = 0
    shown: list[str] = []

    def counted() -> Iterator[dict[str, Any]]:
        nonlocal errors, count
        for record in journal.records():
            count += 1
            handler.count(record)
            if record["error"]:
                errors += 1
                if len(shown) < SHOWN:
                    shown.append(f"  第 {record['row']} 列：{record['error']}")
            yield record

    handler.write(output, counted())
    journal.remove()
    lines, metrics = handler.summary()
    if in_json:
        print_optional(as_json({"output": str(output), "rows": count, "errors": errors, **metrics}))
    else:
        for line in lines:
            print_optional(line)
    failed = f"，{errors} 列{handler.failed}：" if errors else ""
    log(f"{output}：{count} 列，{handler.did} {count - errors} 列{failed}")
    for line in shown:
        log(line)
    for remark, number in handler.remarks.items():
        log(f"  {remark}（{number} 列）")
    if errors > len(shown):
        log(f"  … 其餘見 {handler.where_errors(output)}")
    return errors


def _first_row(source: Path) -> dict[str, Any]:
    """Return the first row that can be read, which decides what kind of file it is.

    Raises:
        UserError: no row has the columns of any kind.
    """
    problems: list[str] = []
    for line, row in read_table(source):
        if isinstance(row, dict) and (_is_question(row) or row.keys() & PROMPT_FIELDS or _is_open(row)):
            return row
        if isinstance(row, list) and is_chat({"messages": row}):  # a conversation by itself
            return {"messages": row}
        if len(problems) < SHOWN:
            columns = listed(row if isinstance(row, dict) else ())
            problem = f"沒有 question、prompt 或 instruction 欄，有的是 {columns}"
            problems.append(f"{where(source, line)}：{row if isinstance(row, Unreadable) else problem}")
    raise UserError(problems or [f"--input {source}：空的檔案"])


def _is_question(row: dict[str, Any]) -> bool:
    """Return True for a row that is a question with options."""
    return bool(find_question_columns(tuple(map(str, row))).question)


def _is_open(row: dict[str, Any]) -> bool:
    """Return True for a row that is to be answered in free text."""
    return is_answered_chat(row) or ((is_chat(row) or is_answered(row)) and not is_question(row))


def _row_handler(source: Path, flags: InferenceArgs, predictor: Predictor) -> RowHandler:
    """Return the handler for the kind of model, and else of the first row."""
    if handler := ability(predictor.kind, "rows"):
        return handler(flags, predictor)
    first = _first_row(source)
    if _is_question(first) and not (predictor.is_causal and _is_open(first)):
        return McqRows(flags, predictor)
    if isinstance(predictor, GenerativePredictor):
        return GenerationRows(flags, predictor)
    if not isinstance(predictor, MaskedLMPredictor):
        raise UserError(f"--input {source}：--model_path 是選擇題模型，只答選擇題（question、A、B… 欄）")
    if "prompt" not in first:
        raise UserError(f"--input {flags.input}：指令與對話要由因果模型回答，--model_path 是填空的模型")
    return FillMaskRows(flags, predictor)
