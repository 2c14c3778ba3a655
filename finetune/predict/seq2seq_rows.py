"""Row handler of batch prediction for encoder-decoders: texts, scored where the file has the wanted ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune.cli.inference_args import InferenceArgs, required
from finetune.data.bad_rows import Unreadable
from finetune.data.data_files import DataFile
from finetune.data.label_columns import first_rows
from finetune.data.tables import read_table
from finetune.data.text_pairs import PairColumns, find_pair_columns, source_of, target_of
from finetune.evaluation.text_overlap import summary_figures
from finetune.predict.file_columns import columns_of, copied_columns, copy_of
from finetune.predict.row_handler import Record, Row, RowHandler, storable_text
from finetune.predict.seq2seq import Seq2SeqPredictor

COLUMNS = {
    "row": "whole", "id": "text", "input": "text", "response": "text", "truncated": "flag", "error": "text",
}  # fmt: skip


class Seq2SeqRows(RowHandler[Seq2SeqPredictor, list[int]]):
    """Texts for an encoder-decoder; a column of wanted texts is kept as `target` and scored."""

    text = "input"

    def __init__(self, flags: InferenceArgs, predictor: Seq2SeqPredictor):
        super().__init__(flags, predictor)
        source = Path(required(flags.input))
        self.decoding = predictor.decoding_of(flags)
        rows, names = columns_of(read_table(source))
        if not rows:
            first_rows([DataFile(source, "")], f"--input {flags.input}")  # says why
        self.pair = _columns(rows, flags, predictor)
        target = {"target": "text"} if self.pair.target else {}
        self.copied = copied_columns(names, {*COLUMNS, *target}, ())
        used = {*self.pair.source, self.pair.target, "id", "ID", self.pair.inside}
        self.copied = {shown: name for shown, name in self.copied.items() if name not in used}
        self.columns = COLUMNS | target | dict.fromkeys(self.copied, "text")
        self.scored: list[tuple[str, str]] = []  # (target, output)
        self.truncated = 0

    def identity(self, source: Path) -> dict[str, Any]:
        """Return what must be the same for a run to continue, with the columns read."""
        return super().identity(source) | {"columns": str(self.pair), "decoding": str(self.decoding)}

    def new_record(self, number: int, row: Row) -> Record:
        """Return the record of a row, with the wanted text and the file's other columns."""
        record = super().new_record(number, row) | copy_of(row, self.copied)
        if self.pair.target:
            record["target"] = storable_text(target_of(row, self.pair)) or None
        return record

    def read_row(self, record: Record, row: Row) -> list[int]:
        """Return the input of a row as the model takes it."""
        if isinstance(row, Unreadable):
            raise ValueError(row)
        text = source_of(row, self.pair)
        record["input"] = storable_text(text)
        return self.predictor.encode(text)

    def predict(self, pending: list[tuple[Record, list[int]]]) -> None:
        """Write the outputs."""
        decoding = self.decoding
        if decoding.samples and decoding.seed is not None and pending:  # other draws for other rounds
            decoding = replace(decoding, seed=decoding.seed * 1_000_003 + pending[0][0]["row"])
        for record, reply in self.each(pending, lambda ids: self.predictor.generate_rows(ids, decoding)):
            record["response"], record["truncated"] = storable_text(reply), reply.truncated

    def count(self, record: Record) -> None:
        """Count a record for the figures."""
        self.truncated += record["truncated"] is True
        if record.get("target") and not record["error"]:
            self.scored.append((record["target"], record["response"]))

    def summary(self) -> tuple[list[str], dict[str, Any]]:
        """Return the figures against the wanted texts, and how many outputs were cut short."""
        lines, metrics = [], {"truncated": self.truncated}
        if self.truncated:
            length = self.decoding.max_new_tokens
            lines.append(
                f"{self.truncated} 列沒寫完（truncated）：到了 --max_new_tokens {length} 或模型的上限"
            )
        if self.scored:
            targets, outputs = zip(*self.scored, strict=True)
            figures = summary_figures(targets, outputs)
            low, high = figures["rougeL_interval_95"]
            lines.append(
                f"與檔案裡的正解比（{len(targets)} 列）：ROUGE-1 {figures['rouge1']:.3f}、"
                f"ROUGE-2 {figures['rouge2']:.3f}、ROUGE-L {figures['rougeL']:.3f}"
                f"（95 % 區間 {low:.3f}–{high:.3f}）、chrF {figures['chrf']:.3f}、"
                f"完全相同 {figures['exact']['accuracy']:.3f}"
            )
            metrics |= {name: value for name, value in figures.items() if name != "by_row"}
        return lines, metrics


def _columns(rows: list[dict[str, Any]], flags: InferenceArgs, predictor: Seq2SeqPredictor) -> PairColumns:
    """Find the columns: those of the flags, else those the model was trained on, else the obvious ones.

    Raises:
        UserError: there are none, or several.
    """
    present = {name for row in rows for name in row}
    text, label = flags.text_column, flags.label_column
    trained = predictor.trained_columns
    if not text and trained[0] in present:
        text = trained[0]
    if not label and trained[1] in present:
        label = trained[1]
    if not text and present & {"prompt", "text"} and len(present & {"prompt", "text"}) == 1 and not label:
        return PairColumns((next(iter(present & {"prompt", "text"})),), "")
    return find_pair_columns(rows, text, label, f"--input {flags.input}", need_target=False)
