"""Row handler of batch prediction for extractors: questions about passages."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from finetune.cli.inference_args import InferenceArgs, required
from finetune.data.answer_spans import columns_of
from finetune.data.bad_rows import Rows, Unreadable
from finetune.data.cells import cell_text, is_blank
from finetune.data.data_files import DataFile
from finetune.data.headers import LOOKED
from finetune.data.span_rows import NESTED, SpanParser, SpanRow, is_nested, nested_questions
from finetune.data.tables import read_table
from finetune.evaluation.span_rules import rule_for
from finetune.predict.extractor import ExtractorPredictor, checked_pair, columns_for
from finetune.predict.file_columns import copied_columns, copy_of
from finetune.predict.row_handler import Record, Row, RowHandler, storable_text
from finetune.runtime.errors import UserError


class ExtractorRows(RowHandler[ExtractorPredictor, SpanRow]):
    """Questions about passages, a record each; those of SQuAD's nested files one after the other.

    Where the file has the right answers, each record has them and is measured by the rule of its language.
    With --top_k also the probabilities of so many answers.

    Raises:
        UserError: a file without a column of questions or passages.
    """

    text = "question"

    def __init__(self, flags: InferenceArgs, predictor: ExtractorPredictor):
        super().__init__(flags, predictor)
        source, named = Path(required(flags.input)), f"--input {flags.input}"
        self.top_k = flags.top_k if "top_k" in flags.given else 0
        options = columns_for(flags, predictor.card, str(source))
        found = columns_of([DataFile(source)], named, options, need_answer=False)
        self.nested, self.span_columns = found is None, found or NESTED
        self.parser = SpanParser(self.span_columns, need_answers=False)
        first = [row for _, row in islice(self.read(source), LOOKED) if isinstance(row, dict)]
        self.rule = rule_for(str(row.get(self.span_columns.question) or "") for row in first)
        names = list(dict.fromkeys(str(name) for row in first for name in row))
        answer = self.span_columns.answer  # a column that is empty throughout is to be filled in
        self.has_answers = any(not is_blank(row.get(answer)) for row in first) if answer else False
        columns = {
            "row": "whole", "id": "text", "question": "text", "answer": "text", "start": "whole",
            "end": "whole", "score": "number", "error": "text",
        }  # fmt: skip
        if self.top_k:
            columns["candidates"] = "scores"
        if self.has_answers:
            columns |= {"true_answers": "list", "exact_match": "number", "f1": "number"}
        read = {
            value for value in vars(self.span_columns).values() if value and value != self.span_columns.title
        }
        self.copied = copied_columns((name for name in names if name not in read), {*columns}, ())
        self.columns = columns | dict.fromkeys(self.copied, "text")
        self.scored = self.unscored = 0
        self.sums = [0.0, 0.0]  # EM, F1

    def read(self, source: Path) -> Rows:
        """Yield the rows of a file; of a nested one a row for each question."""
        for line, row in read_table(source, nested=True):
            if isinstance(row, dict) and is_nested(row):
                yield from ((line, flat) for _, flat in nested_questions(row))
            elif not (isinstance(row, dict) and {*row} == {"header"}):
                yield line, row

    def identity(self, source: Path) -> dict[str, Any]:
        """Return what must be the same for a run to continue, with the columns read."""
        same = super().identity(source) | {"top_k": self.top_k}
        return same | {"span_columns": str(self.span_columns)}

    def new_record(self, number: int, row: Row) -> Record:
        """Return the record of a row, with the right answers and the file's other columns."""
        values = row if isinstance(row, dict) else {}
        record: Record = dict.fromkeys(self.columns)
        name = values.get(self.span_columns.id) if self.span_columns.id else None
        record |= {
            "row": number, "id": None if name is None else storable_text(name),
            "question": storable_text(values.get(self.span_columns.question)),
        }  # fmt: skip
        return record | copy_of(row, self.copied)

    def read_row(self, record: Record, row: Row) -> SpanRow:
        """Read a question and its passage; a right answer that is not in it leaves the record unmeasured."""
        if isinstance(row, Unreadable):
            raise ValueError(row)
        try:
            parsed = next(self.parser(row, ""))
            if isinstance(parsed, Unreadable):
                raise ValueError(parsed)
        except ValueError:
            columns = self.span_columns
            texts = (cell_text(row.get(columns.question)), cell_text(row.get(columns.context)))
            return SpanRow(*checked_pair(*texts))
        if self.has_answers and self.span_columns.answer in row:
            record["true_answers"] = parsed.texts
        checked_pair(parsed.question, parsed.context)
        return parsed

    def predict(self, pending: list[tuple[Record, SpanRow]]) -> None:
        """Answer the questions, and write answers, places and scores into the records."""
        for record, ranked in self.each(pending, self._answer):
            best = ranked[0]
            record |= {"answer": best["text"], "start": best["start"], "end": best["end"]}
            record["score"] = round(best["score"], 6)
            if self.top_k:
                record["candidates"] = {one["text"]: round(one["score"], 6) for one in reversed(ranked)}
            if record.get("true_answers") is not None:
                golds = record["true_answers"]
                record["exact_match"] = self.rule.exact_match(best["text"], golds)
                record["f1"] = self.rule.overlap(best["text"], golds)

    def _answer(self, rows: list[SpanRow]) -> list[list[dict[str, Any]] | UserError]:
        """Return the answers to each question, or the reason why it cannot be answered."""
        encoded = self.predictor.encode(rows)
        found: dict[int, list[dict[str, Any]] | UserError] = {
            id(row): UserError(reason) for row, reason in encoded.too_long
        }
        for row, answers in zip(encoded.rows, self.predictor.search(encoded), strict=True):
            found[id(row)] = self.predictor.ranked(row.context, answers)[: max(1, self.top_k)]
        return [found[id(row)] for row in rows]

    def count(self, record: Record) -> None:
        """Count a record for EM and F1."""
        if record.get("exact_match") is None:
            self.unscored += not record["error"]
            return
        self.scored += 1
        self.sums[0] += record["exact_match"]
        self.sums[1] += record["f1"]

    def summary(self) -> tuple[list[str], dict[str, Any]]:
        """Return EM and F1: lines for the screen, and metrics for --json."""
        if not self.scored:
            return [], {}
        exact, f1 = (total / self.scored for total in self.sums)
        lines = [f"F1 {f1:.3f}，完全相同 {exact:.3f}（{self.scored} 題有正解；規則：{self.rule.title}）"]
        if self.unscored:
            lines.append(f"{self.unscored} 題沒有可用的正解，沒有列入")
        return lines, {"f1": f1, "exact_match": exact, "n": self.scored, "rule": self.rule.name}
