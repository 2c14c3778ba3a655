"""Base of the row handlers of batch prediction: how a row becomes an input, and a prediction a record."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from finetune.cli.inference_args import InferenceArgs
from finetune.data.bad_rows import Rows, Unreadable
from finetune.data.tables import read_table, write_table
from finetune.predict.predictor import SERVER, AnyPredictor
from finetune.runtime.errors import UserError
from finetune.runtime.strict_json import dumps

Row = dict[str, Any] | Unreadable
Record = dict[str, Any]
Block = list[tuple[int, tuple[int, Row]]]  # (number of the row, (line, row))
Item = TypeVar("Item")  # a row as the model takes it
Entry = TypeVar("Entry")
Result = TypeVar("Result")


class RowHandler(ABC, Generic[AnyPredictor, Item]):
    """Base of the row handlers.

    Attributes:
        columns: columns of the output: name -> type, as `tables.write_table` takes them.
        text: the column that the model reads.
        method: the scoring method of questions.
        flag: the flag that names the file, for messages.
        doing, did, failed, kept: words for what is done with a row, for messages.
        round_size: rows a rank answers between two writes.
        remarks: how rows were read, where a person may not expect it -> how many rows.
    """

    columns: dict[str, str]
    text = "prompt"
    method = ""
    flag = "--input"
    doing, did, failed, kept = "作答", "答了", "答不了", "答好的"
    round_size = 64
    remarks: Mapping[str, int] = {}

    def __init__(self, flags: InferenceArgs, predictor: AnyPredictor):
        self.flags, self.predictor = flags, predictor
        if predictor.device == SERVER:  # enough to keep its requests going
            self.round_size = max(self.round_size, 4 * flags.concurrency)

    def columns_in(self, suffix: str) -> dict[str, str]:
        """Return the columns of an output of this format, a suffix."""
        return self.columns

    def formatter(self, suffix: str) -> Callable[[Record], Record]:
        """Return how a record is written into an output of this format."""
        return lambda record: record

    def read(self, source: Path) -> Rows:
        """Yield (line, row) of the file."""
        return read_table(source)

    def write(self, output: Path, records: Iterable[Record]) -> None:
        """Write all records into the output, which appears once it is complete."""
        suffix = output.suffix.lower()
        formatted = map(self.formatter(suffix), records)
        write_table(output, formatted, self.columns_in(suffix), suffix, self.for_excel(suffix))

    def for_excel(self, suffix: str) -> bool:
        """Return whether an output of this format is opened by Excel, see `tables.write_table`."""
        return True

    def where_errors(self, output: Path) -> str:
        """Return where the errors of all rows are found, for a message."""
        has_column = "error" in self.columns_in(output.suffix.lower())
        return f"{output} 的 error 欄" if has_column else "error 欄：--output 改用 .jsonl 就會寫出來"

    def digest_of(self, source: Path) -> str:
        """Return a hash of the bytes of the file and of how they are read."""
        rows = hashlib.sha256()
        with source.open("rb") as stream:
            while block := stream.read(1 << 20):
                rows.update(block)
        if self.flags.encoding:
            rows.update(self.flags.encoding.encode())
        return rows.hexdigest()[:16]

    def identity(self, source: Path) -> dict[str, Any]:
        """Return what must be the same for a run to continue: the rows, the model, the settings."""
        same = ("top_k", "word_length", "candidates", "orders", "precision", "answer_format")
        return {
            "input": self.digest_of(source), "model": self.predictor.digest(), "scoring": self.method,
            "decoding": str(self.flags.decoding) if self.predictor.kind in ("causal", "seq2seq") else "",
            **{name: getattr(self.flags, name) for name in same},
            "system_prompt": self.flags.system_prompt,  # None as in the runs of earlier versions, which go on
        }  # fmt: skip

    def answer(self, block: Block) -> list[Record]:
        """Return one record for each row."""
        records: list[Record] = []
        pending: list[tuple[Record, Item]] = []
        for number, (_, row) in block:
            records.append(record := self.new_record(number, row))
            try:
                pending.append((record, self.read_row(record, row)))
            except (ValueError, UserError) as error:
                record["error"] = str(error)
        self.predict(pending)
        return records

    @abstractmethod
    def read_row(self, record: Record, row: Row) -> Item:
        """Read a row as the model takes it; may add to its record.

        Raises:
            ValueError, UserError: the reason why it cannot be answered.
        """

    @abstractmethod
    def predict(self, pending: list[tuple[Record, Item]]) -> None:
        """Write the predictions into the records, which come with what `read_row` returned."""

    def each(
        self,
        pending: Sequence[tuple[Record, Entry]],
        answer: Callable[[list[Entry]], Sequence[Result | UserError]],
    ) -> Iterator[tuple[Record, Result]]:
        """Yield (record, result) of rows that are answered together, or one by one where that fails.

        So a row whose answer is no number has its `error`, and the others keep their answers; an error may
        stand in the place of a result too.
        """
        try:
            results = answer([value for _, value in pending])
        except UserError as error:
            if len(pending) > 1:
                for entry in pending:
                    yield from self.each([entry], answer)
            elif pending:
                pending[0][0]["error"] = str(error)
            return
        for (record, _), result in zip(pending, results, strict=True):
            if isinstance(result, UserError):
                record["error"] = str(result)
            else:
                yield record, result

    def count(self, record: Record) -> None:  # noqa: B027  most handlers count nothing
        """Count a record that is about to be written."""

    def summary(self) -> tuple[list[str], dict[str, Any]]:
        """Return what was counted: lines for the screen, and metrics for --json."""
        return [], {}

    def new_record(self, number: int, row: Row) -> Record:
        """Return the record of a row that is not answered yet."""
        values = row if isinstance(row, dict) else {}
        record: Record = dict.fromkeys(self.columns)
        name = values.get("id", values.get("ID"))
        text = storable_text(values.get(self.text))
        record |= {"row": number, "id": None if name is None else storable_text(name), self.text: text}
        return record


def storable_text(value: object) -> str:
    """Return a value as text that any file can hold."""
    if not isinstance(value, str):  # a date, a number, bytes of parquet
        value = "" if value is None else dumps(value, default=str)
    return value.encode("utf-8", "replace").decode()


def is_text(value: str) -> bool:
    """Return False for half a surrogate pair, which JSON can hold and no tokenizer or file can."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
