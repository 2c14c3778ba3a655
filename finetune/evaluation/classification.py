"""Classification: label probabilities of texts or pairs of texts, and their metrics."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy
import torch
from torch import nn

from finetune.evaluation.metrics import calibration, share
from finetune.evaluation.queries import Forward, LogprobQuery, LogprobRunner
from finetune.models.forward import check_numbers, is_multi
from finetune.runtime.distributed import Distributed

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

THRESHOLD = 0.5  # a multi-label classifier predicts the classes that are at least so probable
FLAT = (  # metrics of a set that are worth a curve or a flat name
    "n", "accuracy", "interval_95", "macro_f1", "micro_f1", "macro_precision", "macro_recall", "mcc",
    "hamming_loss", "log_loss", "ece", "majority", "macro_f1_majority",
)  # fmt: skip
BASELINE = "TF-IDF＋邏輯迴歸"  # see evaluation/baseline.py


@dataclass(frozen=True)
class Encoded:
    """A row of a classifier as token ids.

    Args:
        ids: token ids, special tokens included.
        segments: for a pair, 0 or 1 for each token, where the model tells them apart.
        cut: its end was left out.
    """

    ids: Sequence[int]
    segments: Sequence[int] = ()
    cut: bool = False


def encode(tokenizer: PreTrainedTokenizerBase, text: str, pair: str, max_length: int) -> Encoded:
    """Tokenize a text, or a pair of them; special tokens that stand in a text are text.

    Args:
        tokenizer: the model's tokenizer.
        text: the first or only text.
        pair: the second text; "" for none.
        max_length: in tokens; the longest of the two loses its end first.
    """
    encoding = tokenizer(
        text, pair or None, truncation="longest_first", max_length=max_length, split_special_tokens=True,
        return_overflowing_tokens=False, return_token_type_ids=bool(pair),
    )  # fmt: skip
    ids = array("l", encoding["input_ids"])  # a fourth of what a tuple takes
    cut = len(ids) >= max_length and len(
        tokenizer(text, pair or None, split_special_tokens=True)["input_ids"]
    ) > len(ids)
    return Encoded(ids, array("b", encoding.get("token_type_ids", ())) if pair else (), cut)


def probabilities(
    forward: Forward | nn.Module,
    config: PreTrainedConfig,
    pad_id: int,
    rows: Sequence[Encoded],
    device: torch.device | str = "cpu",
    world: Distributed | None = None,
) -> list[list[float]]:
    """Return the probabilities of the classes of each row, (n, K); arguments as of `logits`.

    They are a softmax or, of a multi-label model, independent sigmoids.

    Raises:
        UserError: logits that are no numbers.
    """
    scores = logits(forward, config, pad_id, rows, device, world)
    if not len(scores):
        return []
    if is_multi(config):  # in fp64: torch's fp32 rounds by the place of a number in its tensor
        return scores.double().sigmoid().float().tolist()
    return scores.softmax(-1).tolist()


@torch.no_grad()  # not inference_mode: what ZeRO-3 gathers inside must stay usable for training
def logits(
    forward: Forward | nn.Module,
    config: PreTrainedConfig,
    pad_id: int,
    rows: Sequence[Encoded],
    device: torch.device | str = "cpu",
    world: Distributed | None = None,
) -> torch.Tensor:
    """Return the logits of the classes of each row, (n, K).

    Args:
        forward: see `models.heads.SequenceLogits`.
        config: the model's configuration.
        pad_id: id of the padding token.
        rows: tokenized.
        device: the model's device.
        world: shares the rows among the ranks; every rank gets all logits.

    Raises:
        UserError: logits that are no numbers.
    """
    multi = is_multi(config)
    assert config.num_labels is not None
    classes = tuple(range(config.num_labels))
    positions = classes if multi else (0,)
    wanted = ((0,),) * len(classes) if multi else (classes,)
    queries = [
        LogprobQuery(row.ids, positions, wanted, raw_logits=True, segments=row.segments) for row in rows
    ]
    LogprobRunner(forward, pad_id, device, world)(queries)
    results = torch.tensor([query.results if multi else query.results[0] for query in queries])
    check_numbers(results)
    return results[..., 0] if multi and queries else results


def compute_metrics(
    truth: Sequence[Sequence[int]],
    probabilities: Sequence[Sequence[float]] | numpy.ndarray,
    names: Sequence[str],
    multi: bool,
) -> dict[str, Any]:
    """Compute the metrics of n rows over K classes, as values of JSON; {} without rows.

    Macro averages are over all K classes, as scikit-learn takes them for labels=range(K): a class that is
    neither true nor predicted of any row counts 0. Of single labels micro precision, recall and F1 all are
    the accuracy.

    Args:
        truth: indices of the classes of each row: exactly one, or with `multi` any number.
        probabilities: (n, K): a softmax, of which the largest is predicted, or with `multi` independent
            sigmoids, of which those of at least THRESHOLD are.
        names: names of the K ≥ 2 classes, no two alike.
        multi: a row may have any number of labels.

    Returns:
        `accuracy` (with `multi` of whole rows: every class right) with `interval_95` (Wilson), `right`, `n`;
        `macro_` and `micro_` precision, recall, f1; `mcc` (0 where only one class occurs), `ece` and
        `confidence` (15 bins, see metrics.calibration), None with `multi`; `hamming_loss`, None without;
        `log_loss` in nats, a mean over rows, with `multi` over rows and classes; `per_class` name ->
        precision, recall, f1, support; `confusion` K×K counts, a row for each true class, with `multi`
        [[tn, fp], [fn, tp]] of each class; `majority` the accuracy of always giving the commonest labels of
        these very rows, `majority_is` its name ("" when it is no class at all), `macro_f1_majority` its
        macro F1.

    Raises:
        ValueError: a probability that is not a number (scikit-learn).
    """
    if not len(truth):
        return {}
    from sklearn import metrics

    p = numpy.asarray(probabilities, dtype=numpy.float64)
    gold, chosen = _as_indicators(truth, p, multi)
    figures: dict[str, Any] = {"multi": multi, **share(int((gold == chosen).all(axis=1).sum()), len(gold))}
    for average in ("macro", "micro"):
        parts = metrics.precision_recall_fscore_support(gold, chosen, average=average, zero_division=0.0)
        for metric, value in zip(("precision", "recall", "f1"), parts, strict=False):
            figures[f"{average}_{metric}"] = float(value)
    own_figures, confusion = (_multi_label if multi else _single_label)(gold, chosen, p)
    figures |= own_figures
    parts = metrics.precision_recall_fscore_support(gold, chosen, average=None, zero_division=0.0)
    of_classes = zip(names, *(part.tolist() for part in parts), strict=True)
    figures["per_class"] = {
        name: {"precision": precision, "recall": recall, "f1": f1, "support": support}
        for name, precision, recall, f1, support in of_classes
    }
    return {**figures, "confusion": confusion.tolist(), **_majority(gold, names)}


def _single_label(
    gold: numpy.ndarray, chosen: numpy.ndarray, p: numpy.ndarray
) -> tuple[dict[str, Any], numpy.ndarray]:
    """Return the metrics that only single-label rows have, and the confusion matrix.

    Args:
        gold, chosen: see `_as_indicators`.
        p: probabilities, (n, K).
    """
    from sklearn import metrics

    p = p / p.sum(axis=1, keepdims=True)  # what float32 rounded off, which scikit-learn warns of
    classes, true, predicted = range(p.shape[1]), gold.argmax(axis=1), chosen.argmax(axis=1)
    varied = len(numpy.union1d(true, predicted)) > 1  # else scikit-learn says 0 too, with a warning
    stated = calibration(numpy.log(p.clip(numpy.finfo(p.dtype).tiny)).tolist(), true.tolist())
    figures = {
        "log_loss": float(metrics.log_loss(true, p, labels=classes)),
        "mcc": float(metrics.matthews_corrcoef(true, predicted)) if varied else 0.0,
        "ece": stated["ece"], "confidence": stated["confidence"], "hamming_loss": None,
    }  # fmt: skip
    return figures, metrics.confusion_matrix(true, predicted, labels=classes)


def _multi_label(
    gold: numpy.ndarray, chosen: numpy.ndarray, p: numpy.ndarray
) -> tuple[dict[str, Any], numpy.ndarray]:
    """Return the metrics that only multi-label rows have, and the confusion matrix of each class.

    Args:
        gold, chosen: see `_as_indicators`.
        p: probabilities, (n, K).
    """
    from sklearn import metrics

    figures = {
        "mcc": None, "ece": None, "confidence": None,
        "hamming_loss": float(metrics.hamming_loss(gold, chosen)),
        "log_loss": float(metrics.log_loss(gold.ravel(), p.ravel(), labels=[0, 1])),
    }  # fmt: skip
    return figures, metrics.multilabel_confusion_matrix(gold, chosen)


def _as_indicators(
    truth: Sequence[Sequence[int]], p: numpy.ndarray, multi: bool
) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Return the true and the predicted labels of n rows, each (n, K) of 0 and 1."""
    gold = numpy.zeros(p.shape, dtype=int)
    for row, labels in zip(gold, truth, strict=True):
        row[list(labels)] = 1
    if multi:
        return gold, (p >= THRESHOLD).astype(int)
    return gold, numpy.eye(p.shape[1], dtype=int)[p.argmax(axis=1)]


def exact_match(truth: Sequence[Sequence[int]], probabilities: numpy.ndarray, multi: bool) -> numpy.ndarray:
    """Return for each row 1 where all its labels are right, else 0; as `compute_metrics` counts them."""
    gold, chosen = _as_indicators(truth, numpy.asarray(probabilities), multi)
    return (gold == chosen).all(axis=1).astype(float)


def _majority(gold: numpy.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Return the metrics of always predicting the commonest labels of these rows, the first of equals."""
    from sklearn.metrics import f1_score

    counts = Counter(tuple(numpy.flatnonzero(row).tolist()) for row in gold)
    common = min(counts, key=lambda labels: (-counts[labels], labels))
    always = numpy.zeros_like(gold)
    always[:, list(common)] = 1
    return {
        "majority": counts[common] / len(gold),
        "majority_is": "、".join(names[label] for label in common),
        "macro_f1_majority": float(f1_score(gold, always, average="macro", zero_division=0.0)),
    }


def summary_metrics(figures: dict[str, Any]) -> dict[str, float]:
    """Return those metrics of a set that are one number for the whole."""
    flat = {name: figures[name] for name in FLAT if figures[name] is not None}
    if baseline := figures.get("baseline"):
        flat |= {f"baseline_{name}": baseline[name] for name in ("accuracy", "macro_f1", "p_value")}
    return flat


def prediction_counts(figures: dict[str, Any]) -> list[int]:
    """Return how often each class is predicted."""
    if figures["multi"]:
        false_positives, true_positives = confusion_cells(figures, 0, 1), confusion_cells(figures, 1, 1)
        return [fp + tp for fp, tp in zip(false_positives, true_positives, strict=True)]
    return [sum(column) for column in zip(*figures["confusion"], strict=True)]


def confusion_cells(figures: dict[str, Any], row: int, column: int) -> list[int]:
    """Return one cell of each class's 2×2 confusion matrix, of a multi-label classifier."""
    return [cells[row][column] for cells in figures["confusion"]]
