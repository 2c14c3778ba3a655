"""Objective of an extractor: questions, and where their answers stand in the passage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from finetune.data.span_rows import SpanRow
from finetune.evaluation.extraction import EncodedQuestions, SpanSettings
from finetune.evaluation.queries import Forward
from finetune.evaluation.span_metrics import add_span_baselines
from finetune.evaluation.span_search import SpanAnswers, SpanSearch
from finetune.models.heads import END, START
from finetune.models.kinds import finds_no_answer
from finetune.models.span_windows import SpanWindow
from finetune.objectives.batching import Example

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from finetune.runtime.distributed import Distributed

WITHIN_A_TOKEN = "答案的邊界落在一個 token 之中，訓練時取整個 token"


class SpanObjective:
    """Extractive question answering: each window of a question is an example.

    Its targets are the tokens where the answer begins and ends, the first answer where there are several; a
    window that does not hold all of it points at the CLS token twice, as does a question without an answer
    (Devlin et al. 2019, section 4.3; run_qa of transformers). The loss is the mean of both cross entropies
    over the tokens of the window.

    Args:
        tokenizer: the model's tokenizer.
        rows: rows to train or validate on; those whose question leaves no room for the passage are left out.
    """

    name = "span"
    packed = False
    truncated = 0
    rejected_by_template: Sequence[str] = ()
    baseline_loss = None
    compares = False

    def __init__(self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[SpanRow], settings: SpanSettings):
        self.settings, self.pad_id = settings, tokenizer.pad_token_id
        self.encoded = EncodedQuestions.of(tokenizer, rows, settings)
        self.rows, self.windows = self.encoded.rows, self.encoded.windows
        self.too_long = [row.id for row, _ in self.encoded.too_long]
        self.examples = [(row, window) for row, some in enumerate(self.windows) for window in some]
        self.lengths = [len(window) for _, window in self.examples]
        self.targets = [[self._target(row, w) for w in some] for row, some in enumerate(self.windows)]
        self._flat_targets = [target for some in self.targets for target in some]
        self.remarks = self._remarks()

    def _target(self, row: int, window: SpanWindow) -> tuple[int, int]:
        """Return the places of start and end in a window."""
        answers = self.rows[row].answers
        if not answers:
            return window.null, window.null
        return window.places(answers[0].start, answers[0].end)

    def _remarks(self) -> dict[str, int]:
        """Count answers that a token does not end with, or that are longer than the longest allowed."""
        divided = long = 0
        for row, some in zip(self.rows, self.windows, strict=True):
            for answer in row.answers[:1]:
                tokens = some[0].tokens
                found = tokens.cover(answer.start, answer.end)
                if found is None:
                    continue
                place = tokens.starts[found[0]], tokens.ends[found[1]]
                divided += place != (answer.start, answer.end)
                long += found[1] - found[0] >= self.settings.max_answer_length
        limit = self.settings.max_answer_length
        notes = {
            WITHIN_A_TOKEN: divided,
            f"答案超過 {limit} 個 token，模型答不出整個（--max_answer_length）": long,
        }
        return {note: count for note, count in notes.items() if count}

    def epoch(self, epoch: int) -> list[tuple[str, int]]:
        """Return every window once."""
        return [("span", index) for index in range(len(self.examples))]

    def example(self, kind: str, index: int, epoch: int) -> Example:
        """Return one window. There is nothing to draw."""
        row, window = self.examples[index]
        return Example(
            window.ids, (START, END), self._flat_targets[index], row=self.rows[row].id,
            segments=window.segments,
        )  # fmt: skip

    def show(self, index: int) -> str:
        """Return a window and its target in words, for --show_examples."""
        row, window = self.examples[index]
        question, (start, end) = self.rows[row], self._flat_targets[index]
        tokens, part = window.tokens, window.part
        shift = window.part.start - window.first
        answer = "（這一段沒有答案）"
        if start != window.null:
            answer = question.context[tokens.starts[start + shift] : tokens.ends[end + shift]]
        context = question.context[tokens.starts[part.start] : tokens.ends[part.stop - 1]]
        return f"問：{question.question}\n    文：{context}\n    → {answer}"

    def predict(self, forward: Forward, config: PreTrainedConfig, world: Distributed) -> list[SpanAnswers]:
        """Return the best answers to each row. Collective."""
        search = SpanSearch(forward, self.pad_id, self.settings.max_answer_length, world.device, world)
        return search(self.windows, self.targets)

    def metrics(
        self, outputs: Sequence[SpanAnswers], config: PreTrainedConfig, before: Any = None
    ) -> dict[str, Any]:
        """Compute the metrics of answers, see `evaluation.extraction`."""
        return self.encoded.metrics(outputs, finds_no_answer(config))

    def records(self, outputs: Sequence[SpanAnswers], config: PreTrainedConfig) -> Iterable[dict[str, Any]]:
        """Yield the rows of predictions.jsonl."""
        return self.encoded.records(outputs, finds_no_answer(config))

    def validation_metrics(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Return those that the log of an epoch shows."""
        if not metrics:
            return {}
        return {
            "validation_loss": metrics["loss"], "validation_f1": metrics["f1"],
            "validation_exact_match": metrics["exact_match"], "validation_rows": metrics["n"],
        }  # fmt: skip

    @classmethod
    def add_baselines(
        cls,
        metrics: dict[str, dict[str, Any]],
        evaluated: Mapping[str, tuple[SpanObjective, list[SpanAnswers]]],
        train: SpanObjective,
        config: PreTrainedConfig,
    ) -> None:
        """Add the metrics of sentences of the passage, see evaluation/span_baselines.py."""
        for name, (objective, outputs) in evaluated.items():
            if objective.rows:
                texts = objective.encoded.chosen(outputs, finds_no_answer(config))[1]
                add_span_baselines(metrics[name], objective.rows, texts)
