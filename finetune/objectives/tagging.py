"""Objective of a tagger: texts and their spans, written as a tag for each unit."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from finetune.data.tag_schemes import TagSet
from finetune.data.tagged import TaggedRow
from finetune.evaluation.queries import Forward
from finetune.evaluation.tag_records import tag_records
from finetune.evaluation.tagging import MostFrequentTag, Tagger, Tagging, compute_metrics, gold_tags
from finetune.models.unit_tokens import EncodedText, UnitTokenizer, Window
from finetune.objectives.batching import Example
from finetune.objectives.objective import BaselineLoss

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from finetune.runtime.distributed import Distributed

INSIDE = (
    "有標記的邊界落在字的中間（英文單字、數字或同一個 token 裡）：訓練時算到整個字，評測仍以原來的邊界為準"
)
WINDOWED = "文字太長，分成幾段來讀；每個字只算一次，在前後文最多的那一段"


class TaggingObjective:
    """Tagging of texts. Every tag counts once, in the window where its unit has the most context.

    Args:
        tokenizer: the model's tokenizer.
        rows: rows to train or validate on.
        max_length: longest window, in tokens.
        stride: tokens that two windows of a text share.
        names: the model's tags, by number.
    """

    name = "tag"
    packed = False
    rejected_by_template: Sequence[str] = ()
    truncated = 0
    compares = False

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        rows: Sequence[TaggedRow],
        max_length: int,
        stride: int,
        names: Sequence[str],
    ):
        self.rows, self.tags = list(rows), TagSet(tuple(names))
        self.too_long: list[str] = []
        self.pad_id = tokenizer.pad_token_id
        self.encoded: list[EncodedText] = UnitTokenizer(tokenizer, max_length, stride).encode(
            [row.text for row in rows]
        )
        self.gold: list[list[int]] = []
        remarks: Counter[str] = Counter()
        for row, text in zip(self.rows, self.encoded, strict=True):
            gold, exact = gold_tags(row, text.units, self.tags)
            self.gold.append(gold)
            remarks[INSIDE] += not exact
            remarks[WINDOWED] += len(text.windows) > 1
        self.remarks: Mapping[str, int] = +remarks
        # (row, window) of every part of a text that has a tag to learn
        self._parts: list[tuple[int, Window]] = [
            (at, window)
            for at, text in enumerate(self.encoded)
            for window in text.windows
            if any(self.gold[at][unit] >= 0 for unit in window.units)
        ]
        self.lengths = [len(window.ids) for _, window in self._parts]

    @property
    def baseline_loss(self) -> BaselineLoss:
        """Losses of guesses that read no text."""
        counts = Counter(tag for gold in self.gold for tag in gold if tag >= 0)
        total = counts.total()
        entropy = -sum(count * math.log(count / total) for count in counts.values()) / max(1, total)
        return BaselineLoss(entropy, math.log(max(1, len(self.tags.names))))

    def epoch(self, epoch: int) -> list[tuple[str, int]]:
        """Return every window once."""
        return [("tag", index) for index in range(len(self._parts))]

    def example(self, kind: str, index: int, epoch: int) -> Example:
        """Return one window. There is nothing to draw."""
        row, window = self._parts[index]
        gold = self.gold[row]
        targets = [
            (position, gold[unit])
            for position, unit in zip(window.positions, window.units, strict=True)
            if gold[unit] >= 0
        ]
        positions, tags = zip(*targets, strict=True)
        return Example(window.ids, positions, tags, row=self.rows[row].id, by_token=True)

    def predict(self, forward: Forward, config: PreTrainedConfig, world: Distributed) -> list[Tagging]:
        """Return the tags of each row. Collective."""
        tagger = Tagger(forward, self.tags, self.pad_id, world.device, world)
        return tagger.tag(self.encoded, self.gold)

    def metrics(
        self, outputs: Sequence[Tagging], config: PreTrainedConfig, before: Any = None
    ) -> dict[str, Any]:
        """Compute the metrics of tags, see `evaluation.tagging`."""
        return compute_metrics(self.rows, self.encoded, outputs, self.tags)

    def records(self, outputs: Sequence[Tagging], config: PreTrainedConfig) -> Iterable[dict[str, Any]]:
        """Yield the rows of predictions.jsonl."""
        return tag_records(self.rows, self.encoded, outputs, self.tags)

    def show(self, index: int) -> str:
        """Return a window with its tags in words, for --show_examples."""
        row, window = self._parts[index]
        text, units = self.rows[row].text, self.encoded[row].units
        written = (
            f"{text[slice(*units[unit])]}／{self.tags.names[self.gold[row][unit]]}"
            for unit in window.units
            if self.gold[row][unit] >= 0
        )
        return "　".join(written)

    def validation_metrics(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Return those that the log of an epoch shows."""
        return {
            "validation_loss": metrics["log_loss"], "validation_f1": metrics["f1"],
            "validation_rows": metrics["n"],
        }  # fmt: skip

    @classmethod
    def add_baselines(
        cls,
        metrics: dict[str, dict[str, Any]],
        evaluated: Mapping[str, tuple[TaggingObjective, list[Tagging]]],
        train: TaggingObjective,
        config: PreTrainedConfig,
    ) -> None:
        """Add the metrics of the most frequent tag of each unit on the same rows."""
        rule = MostFrequentTag(train.rows, train.encoded, train.tags)
        for name, (objective, outputs) in evaluated.items():
            if metrics[name]:
                rule.add_to(metrics[name], objective.rows, objective.encoded, outputs)
