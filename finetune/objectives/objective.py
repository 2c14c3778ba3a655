"""The interface of a training objective: rows that become examples, epoch by epoch.

Six classes satisfy it, by structure alone: `ExamObjective`, `MultipleChoiceObjective`, `MaskedLMObjective`,
`CausalLMObjective` and `InstructionObjective`, and `ClassificationObjective`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from finetune.objectives.batching import Example, MultipleChoiceExample

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
        """Name of the objective or task: a value of --objective, `cpt`, `sft`, `mlm` or `classify`."""
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
