"""Row handler of batch prediction for taggers: texts, and their own gold spans where a file has them."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from finetune.cli.inference_args import InferenceArgs, required
from finetune.data.bad_rows import Rows, Unreadable, where
from finetune.data.conll import TAGS as LABELS
from finetune.data.conll import TOKENS as TEXT
from finetune.data.data_files import DataFile
from finetune.data.label_columns import TEXTS, find_texts
from finetune.data.tagged import TaggedDataset, TaggedOptions, TaggedRow, read_tagged
from finetune.data.tagged_columns import SPANS, TAGS, TOKENS, cell_value, is_tokens
from finetune.data.tagged_columns import as_object as row_object
from finetune.data.tagged_files import file_rows
from finetune.data.token_tags import TokenJoiner
from finetune.evaluation.bootstrap import f1, f1_interval
from finetune.evaluation.tag_records import as_object
from finetune.evaluation.tagging import predicted_spans
from finetune.predict.file_columns import columns_of, copied_columns, copy_of, text_of
from finetune.predict.row_handler import Record, Row, RowHandler, storable_text
from finetune.predict.tagger import TaggerPredictor
from finetune.runtime.console import log
from finetune.runtime.errors import UserError

Item = tuple[str, TaggedRow | None]  # the text, and the row with its gold spans


class TaggerRows(RowHandler[TaggerPredictor, Item]):
    """Texts for a tagger.

    `entities` is a list of objects; in csv it is written as JSON. Gold spans of the file are written beside
    it as `true_entities`, and the predictions are measured.
    """

    text = "text"

    def __init__(self, flags: InferenceArgs, predictor: TaggerPredictor):
        super().__init__(flags, predictor)
        source = Path(required(flags.input))
        rows, file_columns = columns_of(self.read(source))
        gold = self._read_gold(str(source), file_columns)
        self.gold = {row.number: row for part in gold.rows.values() for row in part} if gold else {}
        if gold:
            self.text_column, self.label_column = gold.text_column or TEXT, gold.label_column or LABELS
        else:
            self.text_column, self.label_column = self._text_column(source, file_columns, rows), ""
        cells = [cell_value(row.get(self.text_column)) for row in rows]
        self.joiner = TokenJoiner(cell for cell in cells if isinstance(cell, list) and is_tokens(cell))
        columns = {"row": "whole", "id": "text", "text": "text", "entities": "spans"}
        columns |= {"true_entities": "spans"} if gold else {}
        columns["error"] = "text"
        shown = [name for name in (self.text_column, self.label_column) if name]
        self.copied = copied_columns(file_columns, set(columns), shown)
        self.columns = columns | dict.fromkeys(self.copied, "text")
        self.counts: list[tuple[int, int, int]] = []  # of each row with gold spans: right, predicted, gold

    def _read_gold(self, source: str, file_columns: list[str]) -> TaggedDataset | None:
        """Return the rows of the file with their spans; None where it has none that can be read.

        Raises:
            UserError: --label_column names spans that cannot be read.
        """
        flags = self.flags
        if not flags.label_column and not {name.strip().lower() for name in file_columns} & {*SPANS, *TAGS}:
            return None
        options = TaggedOptions(flags.text_column, flags.label_column)
        try:
            gold = read_tagged(source, None, options, "skip", "--input", learn=False)
        except UserError:
            if flags.label_column:
                raise
            return None
        if not any(row.spans for part in gold.rows.values() for row in part):
            return None  # tags that are all O are to be filled in
        if gold.skipped:
            log(f"--input {source}：{len(gold.skipped)} 列的標記讀不懂，不計分（--inspect 可看原因）")
        return gold

    def _text_column(self, source: Path, file_columns: list[str], rows: list[dict[str, Any]]) -> str:
        """Return the column of the texts.

        Raises:
            UserError: there is none, or several.
        """
        if not rows:
            problems = [f"{where(source, line)}：{row}" for line, row in islice(self.read(source), 1)]
            raise UserError(problems or f"--input {source}：空的檔案，或一列也讀不到")
        card = self.predictor.card
        trained = str(card.flags.get("text_column") or "") if card else ""
        if not self.flags.text_column and trained in file_columns:
            return trained
        tokens = [name for name in file_columns if any(is_tokens(row.get(name)) for row in rows)]
        known = [name for name in tokens if name.strip().lower() in TOKENS]
        if not self.flags.text_column and len(known) == 1 and not {*file_columns} & {*TEXTS}:
            return known[0]
        found = find_texts(file_columns, self.flags.text_column, f"--input {source}")
        if len(found) > 1:
            raise UserError(
                f"--input {source}：標註只讀一欄文字，{'、'.join(found)} 是兩欄；用 --text_column 選一欄"
            )
        return found[0]

    def read(self, source: Path) -> Rows:
        """Yield (line, row) of the file: of a table, of columns, or of JSON that is one row."""
        flags = self.flags
        for line, row in file_rows(DataFile(source), flags.text_column or "", flags.label_column or ""):
            try:
                yield line, row if isinstance(row, Unreadable) else row_object(row)
            except ValueError:
                yield line, row  # its record says what it is

    def identity(self, source: Path) -> dict[str, Any]:
        """Return what must be the same for a run to continue, with the columns read."""
        columns = {"text_column": self.text_column, "label_column": self.label_column}
        return super().identity(source) | columns

    def new_record(self, number: int, row: Row) -> Record:
        """Return the record of a row, with its gold spans and the file's other columns."""
        record = super().new_record(number, row) | copy_of(row, self.copied)
        values = row if isinstance(row, dict) else {}
        gold = self.gold.get(number)
        record["text"] = gold.text if gold else storable_text(self._joined(values))
        if "true_entities" in self.columns:
            record["true_entities"] = (
                None if gold is None else [as_object(gold.text, span) for span in gold.spans]
            )
        return record

    def read_row(self, record: Record, row: Row) -> Item:
        """Read the text."""
        if gold := self.gold.get(record["row"]):
            return gold.text, gold
        if isinstance(row, dict) and self.text_column in row:
            row = {**row, self.text_column: self._joined(row)}
        return text_of(row, self.text_column), None

    def _joined(self, row: dict[str, Any]) -> Any:
        """Return the text of a row; tokens are joined, other values stay as they are."""
        cell = row.get(self.text_column)
        tokens = cell_value(cell) if is_tokens(cell) else None
        if isinstance(tokens, list):
            return self.joiner.join(tokens)[0]
        return "" if cell == [] else cell

    def predict(self, pending: list[tuple[Record, Item]]) -> None:
        """Tag the texts, and write the spans into the records."""
        for record, entities in self.each(pending, self._tag):
            record["entities"] = entities

    def _tag(self, items: list[Item]) -> list[list[Any]]:
        """Return the spans of each text; of one in tokens with plain tags, those of the tokens."""
        predictor = self.predictor
        encoded, taggings = predictor.taggings([text for text, _ in items])
        found: list[list[Any]] = []
        for (text, gold), parts, tagging in zip(items, encoded, taggings, strict=True):
            if gold and gold.tokens and predictor.tags.plain:
                spans = predicted_spans(gold, parts.units, tagging.tags, predictor.tags)
                found.append([as_object(text, span) for span in spans])
            else:
                found.append(predictor.entities(text, parts, tagging))
        return found

    def count(self, record: Record) -> None:
        """Count a record for F1."""
        if record["error"] or record.get("true_entities") is None:
            return
        predicted, gold = (
            {(entity["start"], entity["end"], entity["label"]) for entity in record[name]}
            for name in ("entities", "true_entities")
        )
        self.counts.append((len(predicted & gold), len(predicted), len(gold)))

    def summary(self) -> tuple[list[str], dict[str, Any]]:
        """Return F1 of the rows that have gold spans: lines for the screen, and metrics for --json."""
        if not self.counts:
            return [], {}
        right, predicted, gold = (sum(column) for column in zip(*self.counts, strict=True))
        low, high = f1_interval(self.counts)
        figure = f1(right, predicted, gold)
        line = (
            f"F1 {figure:.3f}：{len(self.counts)} 句有 {gold} 個標記，標了 {predicted} 個，對的 {right} 個"
            f"（95 % 區間 {low:.3f}–{high:.3f}；標記欄 {self.label_column}）"
        )
        return [line], {
            "n": len(self.counts), "f1": figure, "interval_95": [low, high], "right": right,
            "predicted": predicted, "gold": gold,
        }  # fmt: skip
