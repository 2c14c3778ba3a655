"""The interface of a training objective: rows that become examples, epoch by epoch.

Classes satisfy it by structure alone: `ExamObjective`, `MultipleChoiceObjective`, `MaskedLMObjective`,
`CausalLMObjective` and `InstructionObjective`. `ClassificationObjective`, `TaggingObjective`, `SpanObjective`
and `Seq2SeqObjective` satisfy `RowObjective` too: their outputs are measured row by row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from finetune.evaluation.queries import Forward
from finetune.objectives.batching import Example, MultipleChoiceExample

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from finetune.runtime.distributed import Distributed

ExampleKey = tuple[str, int]  # kind of an example (see preview.KINDS), index of its row


class BaselineLoss(NamedTuple):
    """Losses of two guesses that read no text, in nats a decision.

    Attributes:
        by_shares: of always giving each class its share of the rows, weighted as the loss is.
        uniform: of giving all classes the same probability: ln K, of several labels ln 2.
    """

    by_shares: float
    uniform: float


class Objective(Protocol):
    """Rows of a dataset as examples to train or validate on."""

    @property
    def name(self) -> str:
        """Name of the objective or task: a value of --objective, or of a task."""
        ...

    @property
    def rows(self) -> Sequence[Any]:
        """Rows of the dataset that are used: Question, Statement, Text, Instruction or Labelled."""
        ...

    @property
    def lengths(self) -> Sequence[int]:
        """Length of each row of the model's input in tokens, by the index in `ExampleKey`."""
        ...

    @property
    def packed(self) -> bool:
        """True if several documents share a row and must not attend to each other."""
        ...

    @property
    def too_long(self) -> Sequence[str]:
        """Ids of the rows left out because they do not fit in the model's context even when shortened."""
        ...

    @property
    def truncated(self) -> int:
        """Number of rows that were shortened to fit."""
        ...

    @property
    def rejected_by_template(self) -> Sequence[str]:
        """Id and error of each row that the chat template does not accept."""
        ...

    @property
    def remarks(self) -> Mapping[str, int]:
        """Remark -> number of rows that were written otherwise than one may expect."""
        ...

    @property
    def baseline_loss(self) -> BaselineLoss | None:
        """Losses of guesses that read no text; None where the targets are no fixed set of classes."""
        ...

    def epoch(self, epoch: int) -> Sequence[ExampleKey]:
        """Return the keys of the examples of an epoch, in a fixed order."""
        ...

    def example(self, kind: str, index: int, epoch: int) -> Example | MultipleChoiceExample:
        """Return one example; the same for the same (seed, epoch, key), in any process at any time."""
        ...


@runtime_checkable
class RowObjective(Objective, Protocol):
    """Rows whose outputs are measured one by one: labels, tagged texts, answers, written texts.

    Attributes:
        compares: the model before it was trained is measured too; False where its head is new.
    """

    compares: bool

    def predict(self, forward: Forward, config: PreTrainedConfig, world: Distributed) -> Any:
        """Return the outputs of a model for the rows. Collective; every rank gets all of them.

        Args:
            forward: the forward pass, see models/heads.py; while training an engine's.
            config: the model's configuration.
        """
        ...

    def metrics(self, outputs: Any, config: PreTrainedConfig, before: Any = None) -> dict[str, Any]:
        """Compute the metrics of what `predict` returned, as values of JSON.

        Args:
            before: outputs of the model before it was trained, where that was measured.
        """
        ...

    def validation_metrics(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Return those that the log of an epoch shows, by names that begin with `validation_`.

        The best model is chosen by `validation_f1` or `validation_accuracy`, then by `validation_loss`.
        """
        ...

    @classmethod
    def add_baselines(
        cls,
        metrics: dict[str, dict[str, Any]],
        evaluated: Mapping[str, tuple[Any, Any]],
        train: Any,
        config: PreTrainedConfig,
    ) -> None:
        """Add to the metrics of each set those of simple rules on the same rows.

        Args:
            metrics: by name of the set; changed in place.
            evaluated: by name of the set its objective and what `predict` returned.
            train: objective of the training rows.
        """
        ...


@runtime_checkable
class RecordedObjective(Protocol):
    """A `RowObjective` whose outputs are written to predictions.jsonl, and can be shown in words."""

    def records(self, outputs: Any, config: PreTrainedConfig) -> Iterable[dict[str, Any]]:
        """Yield the rows of predictions.jsonl of what `predict` returned."""
        ...

    def show(self, index: int) -> str:
        """Return an example and its target in words, for --show_examples."""
        ...
