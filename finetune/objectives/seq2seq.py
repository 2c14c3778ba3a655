"""Objective of an encoder-decoder: texts, and those that are to be written from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune.data.question import seeded_hash
from finetune.data.text_pairs import TextPair
from finetune.evaluation.classification import encode
from finetune.evaluation.queries import Forward
from finetune.evaluation.text_overlap import compute_metrics, flat, overlap_records
from finetune.models.decoding import Decoding
from finetune.models.encoder_decoder import complete_config, shifted_right, target_ids
from finetune.models.generation import Generator
from finetune.models.streaming import Reply
from finetune.models.tokenizer import prompt_length
from finetune.objectives.batching import Example
from finetune.runtime.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from finetune.objectives.objective import BaselineLoss
    from finetune.runtime.distributed import Distributed

SHOWN = 400  # characters of an example


@dataclass(frozen=True)
class Lengths:
    """Longest source and target, in tokens, and how many rows are written for the metrics (0: all)."""

    source: int
    target: int
    rows: int = 0


class Seq2SeqObjective:
    """Writing of targets from sources, by teacher forcing: every token of a target is predicted once.

    Args:
        tokenizer: writes sources, and targets as `text_target`.
        rows: rows to train or validate on.
        config: the model's; what it lacks to begin and end a text is written into it.
        lengths: a longer source or target loses its end.
        prefix: text before every source, as T5 was trained with.

    Raises:
        UserError: a prefix that leaves no room for a source.
    """

    name = "seq2seq"
    packed = False
    too_long: Sequence[str] = ()
    rejected_by_template: Sequence[str] = ()
    baseline_loss: BaselineLoss | None = None
    compares = True

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        rows: Sequence[TextPair],
        config: PreTrainedConfig,
        lengths: Lengths,
        prefix: str = "",
    ):
        self.rows, self.tokenizer, self.config = list(rows), tokenizer, config
        complete_config(config, tokenizer)
        if prefix and (used := len(tokenizer(prefix)["input_ids"])) >= lengths.source:
            raise UserError(
                f"--prefix 有 {used} 個 token，一列最多讀 {lengths.source} 個（--max_length），放不下輸入"
            )
        self.longest_target = prompt_length(config, tokenizer, lengths.target)
        self.sources = [encode(tokenizer, prefix + row.source, "", lengths.source) for row in rows]
        targets = [target_ids(tokenizer, row.target, self.longest_target) for row in rows]
        self.targets = [tuple(ids) for ids, _ in targets]
        self.lengths = [len(a.ids) + len(b) for a, b in zip(self.sources, self.targets, strict=True)]
        self.truncated = sum(source.cut for source in self.sources)
        cut = sum(was_cut for _, was_cut in targets)
        way = (
            "可加大 --max_target_length" if self.longest_target >= lengths.target else "這個模型最多寫這麼長"
        )
        note = f"輸出超過 {self.longest_target} 個 token，縮短了尾端（{way}）"
        self.remarks: Mapping[str, int] = {note: cut} if cut else {}
        order = sorted(range(len(self.rows)), key=lambda at: seeded_hash(0, self.rows[at].fingerprint))
        self.written = order[: lengths.rows or None]  # indices of the rows that `predict` writes

    def epoch(self, epoch: int) -> list[tuple[str, int]]:
        """Return every row once."""
        return [("pair", index) for index in range(len(self.rows))]

    def example(self, kind: str, index: int, epoch: int) -> Example:
        """Return one row. There is nothing to draw."""
        target = self.targets[index]
        return Example(
            self.sources[index].ids, tuple(range(len(target))), target, row=self.rows[index].id,
            by_token=True, decoder_ids=shifted_right(target, self.config),
        )  # fmt: skip

    def predict(self, forward: Forward, config: PreTrainedConfig, world: Distributed) -> list[Reply]:
        """Return the outputs (greedy) for the rows of `written`, in that order. Collective.

        Args:
            forward: as `heads.forward_of` returns it; its `model` writes.
        """
        model: Any = forward
        generator = Generator(model.model, self.tokenizer, Decoding(max_new_tokens=self.longest_target), ())
        mine = range(world.rank, len(self.written), world.size)
        replies = generator.generate([self.sources[self.written[at]].ids for at in mine])
        gathered = dict(world.all_gather(list(zip(mine, replies, strict=True))))
        return [gathered[at] for at in range(len(self.written))]

    def metrics(
        self, outputs: Sequence[Reply], config: PreTrainedConfig, before: Sequence[Reply] | None = None
    ) -> dict[str, Any]:
        """Compute the metrics of what `predict` returned, see `evaluation.text_overlap`."""
        rows = [self.rows[at] for at in self.written]
        sources, targets = [row.source for row in rows], [row.target for row in rows]
        metrics = compute_metrics(sources, targets, outputs, before)
        return metrics | {
            "rows": len(self.rows), "truncated": sum(reply.truncated for reply in outputs),
            "sources_cut": sum(self.sources[at].cut for at in self.written),
        }  # fmt: skip

    def records(self, outputs: Sequence[Reply], config: PreTrainedConfig) -> Iterable[dict[str, Any]]:
        """Yield the rows of predictions.jsonl."""
        return overlap_records([self.rows[at] for at in self.written], outputs)

    def show(self, index: int) -> str:
        """Return a row as the model reads and writes it, for --show_examples."""
        source, target = self.sources[index].ids, self.targets[index]
        read, wanted = (str(self.tokenizer.decode(list(ids)))[:SHOWN] for ids in (source, target))
        return f"{read}\n    → {wanted}"

    def validation_metrics(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Return those that the log of an epoch may show; the loss, by token, is measured without them."""
        return {f"validation_{name}": value for name, value in flat(metrics).items()}

    @classmethod
    def add_baselines(
        cls,
        metrics: dict[str, dict[str, Any]],
        evaluated: Mapping[str, tuple[Any, Any]],
        train: Any,
        config: PreTrainedConfig,
    ) -> None:
        """Add nothing: the rules copy the source alone, and `metrics` has them already."""
