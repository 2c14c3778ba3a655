"""Evaluate a saved classifier on labelled texts: `--exam labelled.csv --report DIR`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.cli.inference_args import InferenceArgs, required
from finetune.data.label_columns import column_names
from finetune.data.labelled import SHOWN, Labelled, LabelledDataset, LabelledOptions, read_labelled
from finetune.evaluation.classification import compute_metrics
from finetune.predict.classifier import ClassifierPredictor
from finetune.predict.row_exam import Measured, run_row_exam
from finetune.runtime import hub
from finetune.runtime.errors import UserError, listed

if TYPE_CHECKING:
    from finetune.runtime.distributed import Distributed


def run_label_exam(flags: InferenceArgs, predictor: ClassifierPredictor, world: Distributed) -> None:
    """Classify the texts; write metrics, predictions and a report page.

    Raises:
        UserError: no labelled texts, no such split, no label that the model knows.
    """
    dataset = _read_texts(flags, predictor)
    predictor.warn_of_count(2 if dataset.pair_column else 1)

    def measure(rows: Sequence[Labelled]) -> Measured:
        return _measure(rows, dataset, predictor, world, required(flags.exam))

    run_row_exam(flags, predictor, world, "classify", measure, dataset)


def _measure(
    rows: Sequence[Labelled],
    dataset: LabelledDataset,
    predictor: ClassifierPredictor,
    world: Distributed,
    source: str,
) -> Measured:
    """Classify rows and compute the metrics of those whose labels the model knows. Collective.

    Raises:
        UserError: it knows none.
    """
    classes, note = _map_labels(dataset.names, predictor.names)
    known = [row for row in rows if all(label in classes for label in row.labels)]
    unknown = Counter(dataset.names[label] for row in rows for label in row.labels if label not in classes)
    if not known:
        raise UserError(
            f"--exam {source}：標籤 {listed(unknown)} 模型一個也沒有，它的是 {listed(predictor.names)}"
        )
    probabilities = predictor.probabilities([(row.text, row.pair) for row in rows], world)
    index_of = {id(row): index for index, row in enumerate(rows)}
    truth = [tuple(sorted(classes[label] for label in row.labels)) for row in known]
    scored = [probabilities[index_of[id(row)]] for row in known]
    metrics = compute_metrics(truth, scored, predictor.names, predictor.multi)
    notes = [note] if note else []
    if unknown:
        notes.append(_unknown_note(unknown, len(rows), metrics))
    return Measured(metrics, _records(rows, dataset, predictor, probabilities), notes)


def _read_texts(flags: InferenceArgs, predictor: ClassifierPredictor) -> LabelledDataset:
    """Read the labelled texts of --exam, from the columns that the flags or the run card name."""
    source, card = required(flags.exam), predictor.card
    hub.prepare_for(source)
    trained_column = card.flags.get("text_column") if card else None
    text_column = flags.text_column or trained_columns(source, trained_column)
    options = LabelledOptions(text_column, flags.label_column, predictor.multi)
    revision = flags.revision if "revision" in flags.given else None
    try:
        return read_labelled(source, revision, options, flags.on_bad_rows, "--exam", learn=False)
    except UserError as error:
        needed = f"{predictor.name} 是分類模型，只會分類：--exam 要有標籤的文字，不是選擇題"
        raise UserError([*error.problems, needed]) from error


def _unknown_note(unknown: Counter[str], total: int, metrics: dict[str, Any]) -> str:
    """Word how many of `total` rows have a label that the model lacks, and the accuracy if they are wrong.

    Args:
        unknown: how often each label occurs that the model lacks.
        metrics: of the other rows.
    """
    names = "、".join(f"{name} {count}" for name, count in unknown.most_common(SHOWN))
    left, worst = total - metrics["n"], metrics["right"] / total
    return f"{left} 列的標籤是模型沒有的（{names}），沒有列入；算它們答錯的話是 {worst:.3f}"


def trained_columns(source: str, columns: object) -> str:
    """Return the text columns of the training data, where a file's first row has them; else ""."""
    from finetune.data.tables import read_table

    names = column_names(str(columns or ""))
    if not names or not Path(source).is_file():
        return ""
    first = next((row for _, row in read_table(Path(source)) if isinstance(row, dict)), {})
    return ",".join(names) if {*names} <= {*first} else ""


def _map_labels(data_names: list[str], model_names: list[str]) -> tuple[dict[int, int], str]:
    """Map the labels of the data to the classes of the model, as far as it knows them.

    Labels that are all numbers of classes, where no name fits, are such numbers.

    Returns:
        index in `data_names` -> index in `model_names`; and a note for the report, "" for none.
    """
    by_name = {index: model_names.index(name) for index, name in enumerate(data_names) if name in model_names}
    numbers = {str(number): number for number in range(len(model_names))}
    if by_name or not {*data_names} <= numbers.keys():
        return by_name, ""
    shown = "、".join(f"{text} = {model_names[number]}" for text, number in list(numbers.items())[:SHOWN])
    by_number = {index: numbers[name] for index, name in enumerate(data_names)}
    return by_number, f"資料的標籤是編號，照模型的順序：{shown}"


def _records(
    rows: Sequence[Labelled],
    dataset: LabelledDataset,
    predictor: ClassifierPredictor,
    probabilities: list[list[float]],
) -> Iterator[dict[str, Any]]:
    """Yield the rows of predictions.jsonl: texts, the true label, the model's and its probabilities."""
    key = "labels" if predictor.multi else "label"
    for row, shares in zip(rows, probabilities, strict=True):
        names = [dataset.names[label] for label in row.labels]
        record: dict[str, Any] = {"id": row.id, "text": row.text} | ({"pair": row.pair} if row.pair else {})
        record[f"true_{key}"] = names if predictor.multi else names[0]
        yield record | predictor.to_record(predictor.ranked(shares))
