"""Tagging: tags of texts by a model, the spans they write, and metrics of spans.

Precision, recall and F1 are over whole spans, as seqeval and conlleval count them: a span is right when its
start, its end and its label are. Tags that are no scheme of spans (parts of speech) are counted by token.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy
import torch
from torch import nn

from finetune.data.tag_schemes import OUTSIDE, TagSet
from finetune.data.tagged import TaggedRow
from finetune.data.text_units import Span
from finetune.evaluation.bootstrap import f1, f1_difference_interval, f1_interval
from finetune.evaluation.queries import Forward, LogprobQuery, LogprobRunner
from finetune.evaluation.tagging_samples import samples_of
from finetune.evaluation.viterbi import decode
from finetune.models.forward import check_numbers
from finetune.models.unit_tokens import EncodedText
from finetune.runtime.distributed import Distributed

TOGETHER = 1 << 22  # logits held at a time
BASELINE = "每個字最常見的標記"
FLAT = (  # metrics of a set that are one number
    "n", "f1", "interval_95", "precision", "recall", "macro_f1", "tag_accuracy", "log_loss", "gold",
    "predicted", "right",
)  # fmt: skip


@dataclass(frozen=True)
class Tagging:
    """The tags of one text.

    Args:
        tags: a number for each unit, a legal sequence.
        probabilities: of these tags.
        losses: −log probability of the gold tag of each unit that has one, in nats; none without gold.
    """

    tags: list[int]
    probabilities: numpy.ndarray
    losses: numpy.ndarray


# ---- prediction --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tagger:
    """A model that tags texts.

    Args:
        forward: see `models.heads.TaggingLogits`.
        tags: its tags.
        pad_id: id of the padding token.
        device: the model's device.
        world: shares the texts among the ranks; every rank gets all taggings.
    """

    forward: Forward | nn.Module
    tags: TagSet
    pad_id: int
    device: torch.device | str = "cpu"
    world: Distributed | None = None

    @torch.no_grad()  # not inference_mode: what ZeRO-3 gathers inside must stay usable for training
    def tag(self, texts: Sequence[EncodedText], gold: Sequence[Sequence[int]] | None = None) -> list[Tagging]:
        """Tag texts. Collective.

        Args:
            gold: the gold tag of each unit, -1 for none; None without any.

        Raises:
            UserError: logits that are no numbers.
        """
        found: list[Tagging] = []
        for start, end in self._blocks(texts):
            scores = self._log_probabilities(texts[start:end])
            wanted = gold[start:end] if gold is not None else [()] * (end - start)
            for score, path, tags in zip(scores, decode(scores, self.tags), wanted, strict=True):
                units = numpy.arange(len(path))
                right = numpy.asarray(tags, dtype=numpy.int64)
                losses = -score[units[: len(right)][right >= 0], right[right >= 0]]
                found.append(Tagging(path, numpy.exp(score[units, path]), losses))
        return found

    def _blocks(self, texts: Sequence[EncodedText]) -> Iterable[tuple[int, int]]:
        """Yield (start, end) of texts whose logits are held together."""
        start = held = 0
        for at, text in enumerate(texts):
            held += len(text.units) * len(self.tags.names)
            if held >= TOGETHER or at + 1 == len(texts):
                yield start, at + 1
                start, held = at + 1, 0

    def _log_probabilities(self, texts: Sequence[EncodedText]) -> list[numpy.ndarray]:
        """Return log-probabilities (units, tags) of each text, each unit's from its own window."""
        queries = [
            LogprobQuery(window.ids, tuple(window.positions), (), raw_logits=True)
            for text in texts
            for window in text.windows
        ]
        LogprobRunner(self.forward, self.pad_id, self.device, self.world)(queries)
        results = iter(queries)
        scores = []
        for text in texts:
            logits = torch.zeros(len(text.units), len(self.tags.names))
            for window in text.windows:
                logits[list(window.units)] = torch.tensor(next(results).results)
            check_numbers(logits)
            scores.append(logits.double().log_softmax(-1).numpy())
        return scores


# ---- spans and tags ----------------------------------------------------------------------------------------


def gold_tags(row: TaggedRow, units: Sequence[tuple[int, int]], tags: TagSet) -> tuple[list[int], bool]:
    """Return the gold tag of each unit, -1 where these tags cannot write it, and whether spans end at units.

    A span that ends inside a unit takes all of it, unless the span before does.
    """
    outside = -1 if tags.outside is None else tags.outside
    found, done, exact = [outside] * len(units), 0, True
    starts, ends = [start for start, _ in units], [end for _, end in units]
    for span in row.spans:
        first, last = bisect_right(ends, span.start), bisect_left(starts, span.end)
        exact &= first < last and first >= done
        first = max(first, done)
        if first >= last:
            continue
        exact &= starts[first] == span.start and ends[last - 1] == span.end
        try:
            found[first:last] = tags.encode([(0, last - first, span.label)], last - first)
        except KeyError:
            found[first:last] = [-1] * (last - first)
        done = last
    return found, exact


def text_spans(
    text: str, units: Sequence[tuple[int, int]], tagged: Sequence[int], tags: TagSet
) -> list[tuple[Span, range]]:
    """Return the spans of a text that tags write, each with its units.

    Words that stand apart are spans of their own where tags are plain and every unit has one: two nouns.
    """
    found = []
    for start, end, label in tags.decode(tagged):
        parts = [start]
        if tags.plain and tags.outside is None:
            parts += [at for at in range(start + 1, end) if units[at - 1][1] < units[at][0]]
        for first, last in zip(parts, [*parts[1:], end], strict=True):
            found.append((Span(units[first][0], units[last - 1][1], label), range(first, last)))
    return found


def _by_token(
    row: TaggedRow, units: Sequence[tuple[int, int]], tagged: Sequence[int], tags: TagSet
) -> list[Span]:
    """Return the tag of each token of a row, that of its first unit, as spans; O is none."""
    ends = [end for _, end in units]
    found = []
    for start, end in row.tokens:
        unit = bisect_right(ends, start)
        label = tags.tags[tagged[unit]].label if unit < len(units) else OUTSIDE
        if label and label != OUTSIDE:
            found.append(Span(start, end, label))
    return found


# ---- metrics -----------------------------------------------------------------------------------------------


def predicted_spans(
    row: TaggedRow, units: Sequence[tuple[int, int]], tagged: Sequence[int], tags: TagSet
) -> list[Span]:
    """Return the spans that are measured: of plain tags those of the tokens that a row has."""
    if tags.plain and row.tokens:
        return _by_token(row, units, tagged, tags)
    return [span for span, _ in text_spans(row.text, units, tagged, tags)]


def compute_metrics(
    rows: Sequence[TaggedRow], encoded: Sequence[EncodedText], taggings: Sequence[Tagging], tags: TagSet
) -> dict[str, Any]:
    """Compute the metrics of n tagged texts, as values of JSON; {} without rows.

    Returns:
        `precision`, `recall`, `f1` of all spans together (micro) with `interval_95` of F1 (bootstrap over the
        texts); `macro_` precision, recall, f1: means over the labels that occur, in the gold or the answer;
        `per_label` label -> precision, recall, f1, gold, predicted, right; `right`, `predicted`, `gold`
        numbers of spans; `n` texts, `units`; `tag_accuracy` share of the units, of plain tags of the tokens,
        whose tag is right; `log_loss` in nats a unit; `plain` tags are no scheme of spans;
        `inexpressible` texts with a span that ends inside a unit; `samples`, see reports/row_report.py.
    """
    if not rows:
        return {}
    golds = [gold_tags(row, text.units, tags) for row, text in zip(rows, encoded, strict=True)]
    found = [
        predicted_spans(row, text.units, tagging.tags, tags)
        for row, text, tagging in zip(rows, encoded, taggings, strict=True)
    ]
    figures = span_metrics(rows, found)
    right = total = 0
    for (gold, _), text, tagging, row in zip(golds, encoded, taggings, rows, strict=True):
        places: Iterable[int] = range(len(gold))
        if tags.plain and row.tokens:
            ends = [end for _, end in text.units]
            places = [at for start, _ in row.tokens if (at := bisect_right(ends, start)) < len(gold)]
        for at in places:
            right += gold[at] == tagging.tags[at]
            total += 1
    losses = numpy.concatenate([tagging.losses for tagging in taggings])
    return {
        **figures,
        "units": sum(len(text.units) for text in encoded),
        "tag_accuracy": right / total if total else 0.0,
        "log_loss": float(losses.mean()) if len(losses) else 0.0,
        "plain": tags.plain,
        "inexpressible": sum(not exact for _, exact in golds),
        "samples": samples_of(rows, found),
    }


def span_metrics(rows: Sequence[TaggedRow], found: Sequence[Sequence[Span]]) -> dict[str, Any]:
    """Compute precision, recall and F1 of predicted spans, see `compute_metrics`."""
    counts = span_counts(rows, found)
    labels: dict[str, Counter[str]] = defaultdict(Counter)
    for row, spans in zip(rows, found, strict=True):
        gold, predicted = {*row.spans}, {*spans}
        for name, group in (("gold", gold), ("predicted", predicted), ("right", gold & predicted)):
            for span in group:
                labels[span.label][name] += 1
    per_label = {
        label: _rates(of["right"], of["predicted"], of["gold"]) for label, of in sorted(labels.items())
    }
    figures = {"n": len(rows), **_rates(*(sum(column) for column in zip(*counts, strict=True)))}
    for name in ("precision", "recall", "f1"):
        figures[f"macro_{name}"] = fmean(of[name] for of in per_label.values()) if per_label else 0.0
    return {**figures, "interval_95": f1_interval(counts), "per_label": per_label}


def span_counts(rows: Sequence[TaggedRow], found: Sequence[Sequence[Span]]) -> list[tuple[int, int, int]]:
    """Return of each text how many spans are right, predicted and gold."""
    return [
        (len({*row.spans} & {*spans}), len(spans), len(row.spans))
        for row, spans in zip(rows, found, strict=True)
    ]


def _rates(right: int, predicted: int, gold: int) -> dict[str, Any]:
    return {
        "precision": right / predicted if predicted else 0.0,
        "recall": right / gold if gold else 0.0,
        "f1": f1(right, predicted, gold),
        "right": right, "predicted": predicted, "gold": gold,
    }  # fmt: skip


# ---- baseline ----------------------------------------------------------------------------------------------


class MostFrequentTag:
    """Rule that gives each unit the tag it most often had in training, unknown ones the commonest of all.

    Its tags are decoded as a model's are: the legal sequence that agrees with it at the most units.
    """

    def __init__(self, rows: Sequence[TaggedRow], encoded: Sequence[EncodedText], tags: TagSet):
        self.tags = tags
        counts: dict[str, Counter[int]] = defaultdict(Counter)
        total: Counter[int] = Counter()
        for row, text in zip(rows, encoded, strict=True):
            gold, _ = gold_tags(row, text.units, tags)
            for (start, end), tag in zip(text.units, gold, strict=True):
                if tag >= 0:
                    counts[row.text[start:end]][tag] += 1
                    total[tag] += 1
        self._known = {unit: _commonest(of) for unit, of in counts.items()}
        self._else = _commonest(total) if total else 0

    def add_to(
        self,
        metrics: dict[str, Any],
        rows: Sequence[TaggedRow],
        encoded: Sequence[EncodedText],
        taggings: Sequence[Tagging],
    ) -> None:
        """Add the metrics of the rule on the same rows, and the model's F1 minus its own."""
        paths = decode(
            [self._scores(row.text, text) for row, text in zip(rows, encoded, strict=True)], self.tags
        )
        spans, of_model = (
            [
                predicted_spans(row, text.units, path, self.tags)
                for row, text, path in zip(rows, encoded, tagged, strict=True)
            ]
            for tagged in (paths, [tagging.tags for tagging in taggings])
        )
        figures = span_metrics(rows, spans)
        kept = ("precision", "recall", "f1", "interval_95", "macro_f1", "predicted", "right")
        gap = f1_difference_interval(span_counts(rows, of_model), span_counts(rows, spans))
        metrics["baseline"] = {name: figures[name] for name in kept} | {
            "difference": metrics["f1"] - figures["f1"], "difference_interval_95": gap,
        }  # fmt: skip

    def _scores(self, text: str, encoded: EncodedText) -> numpy.ndarray:
        scores = numpy.full((len(encoded.units), len(self.tags.names)), -1.0)
        for at, (start, end) in enumerate(encoded.units):
            scores[at, self._known.get(text[start:end], self._else)] = 0.0
        return scores


def _commonest(counts: Counter[int]) -> int:
    """Return the commonest tag, the first of equals."""
    return min(counts, key=lambda tag: (-counts[tag], tag))


def summary_metrics(metrics: dict[str, Any]) -> dict[str, float]:
    """Return those metrics of a set that are one number for the whole."""
    flat = {name: metrics[name] for name in FLAT if name in metrics}
    if baseline := metrics.get("baseline"):
        flat |= {f"baseline_{name}": baseline[name] for name in ("f1", "macro_f1")}
    return flat
