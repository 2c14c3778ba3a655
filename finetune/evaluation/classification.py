"""A text, or a pair of them, becomes the probabilities of its labels."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import torch
from torch import nn

from finetune.evaluation.metrics import calibration, share
from finetune.evaluation.queries import Forward, LogprobQuery, LogprobRunner
from finetune.models.forward import check_numbers, is_multi

THRESHOLD = 0.5  # of a multi-label classifier: a class at least so probable is answered
FLAT = (  # of the figures of a set: those worth a curve or a flat name
    "n", "accuracy", "interval_95", "macro_f1", "micro_f1", "macro_precision", "macro_recall", "mcc",
    "hamming_loss", "log_loss", "ece", "majority", "macro_f1_majority",
)  # fmt: skip
BASELINE = "TF-IDF＋邏輯迴歸"  # see evaluation/baseline.py


@dataclass(frozen=True)
class Encoded:
    """A row of a classifier. `segments`: of a pair, 0 or 1 for each token, where the model tells them apart.
    `cut`: its end was left out.
    """

    ids: Sequence[int]
    segments: Sequence[int] = ()
    cut: bool = False


def encode(tokenizer, text: str, pair: str, max_length: int) -> Encoded:
    """A text, or a pair of them, as the tokenizer writes it: special tokens that stand in a text are text.

    Args:
        pair: the second text; "" for none.
        max_length: in tokens; the longest of the two loses its end first.
    """
    found = tokenizer(
        text, pair or None, truncation="longest_first", max_length=max_length, split_special_tokens=True,
        return_overflowing_tokens=False, return_token_type_ids=bool(pair),
    )  # fmt: skip
    ids = array("l", found["input_ids"])  # a fourth of what a tuple takes
    full = len(ids) >= max_length and len(
        tokenizer(text, pair or None, split_special_tokens=True)["input_ids"]
    ) > len(ids)
    return Encoded(ids, array("b", found.get("token_type_ids", ())) if pair else (), full)


@torch.no_grad()  # not inference_mode: what ZeRO-3 gathers inside must stay usable for training
def probabilities(
    forward: Forward | nn.Module, config, pad_id: int, rows: Sequence[Encoded], device="cpu", world=None
) -> list[list[float]]:
    """Of each row the probabilities of the classes, (n, C): a softmax or, of a multi-label model, each its
    own.

    Args:
        forward: see `logits.RowLogits`.
        world: shares the rows among the processes; every process gets all of them.

    Raises:
        UserError: logits that are no numbers.
    """
    multi = is_multi(config)
    classes = tuple(range(config.num_labels))
    places, wanted = (classes, ((0,),) * len(classes)) if multi else ((0,), (classes,))
    probes = [LogprobQuery(row.ids, places, wanted, as_they_are=True, segments=row.segments) for row in rows]
    LogprobRunner(forward, pad_id, device, world)(probes)
    if not probes:
        return []
    logits = torch.tensor([probe.results if multi else probe.results[0] for probe in probes])
    check_numbers(logits)
    return logits[..., 0].sigmoid().tolist() if multi else logits.softmax(-1).tolist()


def compute_metrics(
    truth: Sequence[Sequence[int]],
    probabilities: Sequence[Sequence[float]],
    names: Sequence[str],
    multi: bool,
) -> dict:
    """Figures of n rows over K classes; {} without rows. All of them can be written as JSON.

    Macro averages are over all K classes, as scikit-learn takes them for labels=range(K): a class that is
    neither there nor answered counts 0. Of single labels micro precision, recall and F1 all are the accuracy.

    Args:
        truth: indices of the classes of each row: exactly one, or with `multi` any number.
        probabilities: (n, K): a softmax, of which the largest is answered, or with `multi` independent
            sigmoids, of which those of at least THRESHOLD are.
        names: of the K ≥ 2 classes, no two alike.

    Returns:
        `accuracy` (with `multi` of whole rows: every class right) with `interval_95` (Wilson), `right`, `n`;
        `macro_` and `micro_` precision, recall, f1; `mcc` (0 where only one class occurs), `ece` and
        `confidence` (15 bins, see metrics.calibration), None with `multi`; `hamming_loss`, None without;
        `log_loss` in nats, a mean over rows, with `multi` over rows and classes; `per_class` name ->
        precision, recall, f1, support; `confusion` K×K counts, a row for each true class, with `multi`
        [[tn, fp], [fn, tp]] of each class; `majority` the accuracy of always giving the commonest answer of
        these very rows, `majority_is` its name ("" when it is no class at all), `macro_f1_majority` its
        macro F1.

    Raises:
        ValueError: a probability that is not a number (scikit-learn).
    """
    if not len(truth):
        return {}
    from sklearn import metrics

    p, classes = numpy.asarray(probabilities, dtype=numpy.float64), range(len(names))
    gold, chosen = _as_switches(truth, p, multi)
    found = {"multi": multi, **share(int((gold == chosen).all(axis=1).sum()), len(gold))}
    for average in ("macro", "micro"):
        parts = metrics.precision_recall_fscore_support(gold, chosen, average=average, zero_division=0.0)
        for what, value in zip(("precision", "recall", "f1"), parts, strict=False):
            found[f"{average}_{what}"] = float(value)
    if multi:
        found |= {"mcc": None, "ece": None, "confidence": None}
        found["hamming_loss"] = float(metrics.hamming_loss(gold, chosen))
        found["log_loss"] = float(metrics.log_loss(gold.ravel(), p.ravel(), labels=[0, 1]))
        counts = metrics.multilabel_confusion_matrix(gold, chosen)
    else:
        p /= p.sum(axis=1, keepdims=True)  # what float32 rounded off, which scikit-learn warns of
        true, given = gold.argmax(axis=1), chosen.argmax(axis=1)
        found["log_loss"] = float(metrics.log_loss(true, p, labels=classes))
        varied = len(numpy.union1d(true, given)) > 1  # else scikit-learn says 0 too, with a warning
        found["mcc"] = float(metrics.matthews_corrcoef(true, given)) if varied else 0.0
        stated = calibration(numpy.log(p.clip(numpy.finfo(p.dtype).tiny)).tolist(), true.tolist())
        found |= {"ece": stated["ece"], "confidence": stated["confidence"], "hamming_loss": None}
        counts = metrics.confusion_matrix(true, given, labels=classes)
    parts = metrics.precision_recall_fscore_support(gold, chosen, average=None, zero_division=0.0)
    of_each = zip(names, *(part.tolist() for part in parts), strict=True)
    found["per_class"] = {
        name: {"precision": precision, "recall": recall, "f1": f1, "support": support}
        for name, precision, recall, f1, support in of_each
    }
    return {**found, "confusion": counts.tolist(), **_majority(gold, names)}


def _as_switches(truth: Sequence[Sequence[int]], p: numpy.ndarray, multi: bool) -> tuple:
    """What is true and what is answered of n rows, each (n, K) of 0 and 1."""
    gold = numpy.zeros(p.shape, dtype=int)
    for row, there in zip(gold, truth, strict=True):
        row[list(there)] = 1
    answered = (p >= THRESHOLD).astype(int) if multi else numpy.eye(p.shape[1], dtype=int)[p.argmax(axis=1)]
    return gold, answered


def hits(truth: Sequence[Sequence[int]], probabilities: numpy.ndarray, multi: bool) -> numpy.ndarray:
    """Of each row 1 where all its labels are right, else 0; as `figures` counts them."""
    gold, chosen = _as_switches(truth, numpy.asarray(probabilities), multi)
    return (gold == chosen).all(axis=1).astype(float)


def _majority(gold: numpy.ndarray, names: Sequence[str]) -> dict:
    """What must be beaten: the commonest answer of these rows, given always; the first one of equals."""
    from sklearn.metrics import f1_score

    counts = Counter(tuple(numpy.flatnonzero(row).tolist()) for row in gold)
    common = min(counts, key=lambda answer: (-counts[answer], answer))
    always = numpy.zeros_like(gold)
    always[:, list(common)] = 1
    return {
        "majority": counts[common] / len(gold),
        "majority_is": "、".join(names[place] for place in common),
        "macro_f1_majority": float(f1_score(gold, always, average="macro", zero_division=0.0)),
    }


def headlines(found: dict) -> dict[str, float]:
    """Of the figures of a set those that are one number for the whole."""
    flat = {name: found[name] for name in FLAT if found[name] is not None}
    if trivial := found.get("baseline"):
        flat |= {f"baseline_{name}": trivial[name] for name in ("accuracy", "macro_f1", "p_value")}
    return flat


def answered(found: dict) -> list[int]:
    """How often each class is answered."""
    if found["multi"]:
        return [fp + tp for fp, tp in zip(_cells(found, 0, 1), _cells(found, 1, 1), strict=True)]
    return [sum(column) for column in zip(*found["confusion"], strict=True)]


def _cells(found: dict, row: int, column: int) -> list[int]:
    """One cell of each class's 2×2 confusion."""
    return [cells[row][column] for cells in found["confusion"]]
