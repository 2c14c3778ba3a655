"""Row handler of batch prediction for classifiers: texts, or pairs of texts."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from finetune.cli.inference_args import InferenceArgs, required
from finetune.data.bad_rows import where
from finetune.data.label_columns import LOOKED, column_names, find_texts
from finetune.data.tables import read_table
from finetune.predict.classifier import ClassifierPredictor, TextOrPair
from finetune.predict.file_columns import columns_of, copied_columns, copy_of, text_of
from finetune.predict.label_truth import TrueLabels, log_numeric_labels
from finetune.predict.row_handler import Record, Row, RowHandler, storable_text
from finetune.runtime.errors import UserError


class ClassificationRows(RowHandler[ClassifierPredictor, TextOrPair]):
    """Texts, or pairs of texts, for a classifier.

    Every label has its probability or, where --top_k is given, so many of them.
    """

    text = "text"

    def __init__(self, flags: InferenceArgs, predictor: ClassifierPredictor):
        super().__init__(flags, predictor)
        source, named = Path(required(flags.input)), f"--input {flags.input}"
        self.top_k = flags.top_k if "top_k" in flags.given else None
        self.text_columns = _text_columns(source, flags.text_column, predictor.trained_columns)
        predictor.warn_of_count(len(self.text_columns))
        self.label_key, label_type = ("labels", "list") if predictor.multi else ("label", "text")
        first_rows, file_columns = columns_of(read_table(source))
        trained = str(predictor.card.flags.get("label_column") or "") if predictor.card else ""
        label_column = flags.label_column or (trained if {*column_names(trained)} <= {*file_columns} else "")
        self.truth = TrueLabels(
            file_columns, self.text_columns, label_column, predictor.names, predictor.multi, named
        )
        log_numeric_labels(self.truth, first_rows)
        columns = {
            "row": "whole",
            "id": "text",
            **dict.fromkeys(("text", "pair")[: len(self.text_columns)], "text"),
            self.label_key: label_type,
            "probabilities": "scores",
            "error": "text",
        }
        true = {f"true_{self.label_key}": label_type} if self.truth else {}
        shown = [name for name in self.text_columns if name in ("text", "pair")]  # in the record already
        self.copied = copied_columns(file_columns, {*columns, *true}, shown)
        if len(self.truth.columns.labels) == 1:
            self.copied.pop(f"input_{self.truth.columns.labels[0]}", None)
        self.columns = columns | true | dict.fromkeys(self.copied, "text")

    def identity(self, source: Path) -> dict[str, Any]:
        """Return what must be the same for a run to continue, with the columns read."""
        columns = {
            "text_column": ",".join(self.text_columns),
            "label_column": ",".join(self.truth.columns.labels),
        }
        return super().identity(source) | columns | {"top_k": self.top_k}

    def new_record(self, number: int, row: Row) -> Record:
        """Return the record of a row, with its texts, its true labels and the file's other columns."""
        values = row if isinstance(row, dict) else {}
        texts = zip(("text", "pair"), self.text_columns, strict=False)
        shown: Record = {name: storable_text(values.get(column)) for name, column in texts}
        copied = copy_of(row, self.copied)
        if self.truth:
            labels = self.truth.labels_of(row)
            copied[f"true_{self.label_key}"] = labels if self.predictor.multi else labels and labels[0]
        return super().new_record(number, row) | shown | copied

    def count(self, record: Record) -> None:
        """Count a record for the accuracy."""
        predicted = None if record["error"] else record[self.label_key]
        self.truth.count(record.get(f"true_{self.label_key}"), predicted)

    def summary(self) -> tuple[list[str], dict[str, Any]]:
        """Return the accuracy: lines for the screen, and metrics for --json."""
        return (self.truth.lines(), self.truth.metrics()) if self.truth else ([], {})

    def read_row(self, record: Record, row: Row) -> TextOrPair:
        """Read the text, or the pair of texts."""
        texts = tuple(text_of(row, column) for column in self.text_columns)
        return (texts[0], texts[1]) if len(texts) > 1 else texts[0]

    def predict(self, pending: list[tuple[Record, TextOrPair]]) -> None:
        """Classify the texts, and write labels and probabilities into the records."""
        for record, ranked in self.each(pending, self.predictor.classify):
            record |= self.predictor.to_record(ranked, self.top_k)


def _text_columns(source: Path, requested: str, trained: tuple[str, ...]) -> tuple[str, ...]:
    """Find the columns of the texts.

    They are those that --text_column names, else those the model was trained on where they are there too,
    else the obvious ones.

    Raises:
        UserError: no row that can be read, columns that are not there or cannot be found.
    """
    rows = list(islice((row for _, row in read_table(source) if isinstance(row, dict)), LOOKED))
    if not rows:
        problems = [f"{where(source, line)}：{row}" for line, row in islice(read_table(source), 1)]
        raise UserError(problems or f"--input {source}：空的檔案")
    columns = list(dict.fromkeys(str(name) for row in rows for name in row))
    if not requested and trained and {*trained} <= {*columns}:
        return trained
    return find_texts(columns, requested, f"--input {source}")
